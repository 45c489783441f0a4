"""The sizes of a transformer that determine its memory and its arithmetic."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from carerft.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A decoder with attention and gated MLPs in each layer: Qwen2, Qwen3, Llama, Mistral.

    queries, keys: the widths of all query heads and of all key (or value) heads together. context: the longest
    sequence, in tokens. biases: whether the projections to queries, keys and values have biases.
    """

    hidden: int
    intermediate: int
    layers: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool
    context: int
    biases: bool = False

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """The input and output width of each matrix of a layer: the projections to queries, keys, values and back; the
        MLP's gate, up and down."""
        hidden, keys, intermediate = self.hidden, self.keys, self.intermediate
        attention = [(hidden, self.queries), (hidden, keys), (hidden, keys), (self.queries, hidden)]
        return [*attention, (hidden, intermediate), (hidden, intermediate), (intermediate, hidden)]

    @property
    def layer(self) -> int:
        """The number of weights in one layer's matrices."""
        return sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def head(self) -> int:
        """The number of weights in the LM head."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """The number of all weights. A tied head counts once; each layer has two norms, and the model one."""
        small = 2 * self.hidden + (self.queries + 2 * self.keys if self.biases else 0)
        return self.layers * (self.layer + small) + self.hidden + self.head * (1 if self.tied else 2)

    def cache_bytes(self, width: int) -> int:
        """Bytes of one token's keys and values, in numbers of `width` bytes."""
        return 2 * self.layers * self.keys * width


def forward(shape: Shape, tokens: float, context: float) -> float:
    """Floating-point operations of the body for `tokens` tokens in sequences of `context` tokens: 2 for each weight and
    token, and two products of each query with the keys (then the values) before it, half of the context on average."""
    return tokens * shape.layers * (2 * shape.layer + 2 * shape.queries * context)


def shape_from(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes. Raises KeyError for a missing key."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        queries=heads * size,
        keys=(config.get("num_key_value_heads") or heads) * size,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        context=config["max_position_embeddings"],
        biases=config.get("model_type") == "qwen2",
    )


def shape_of_model(policy: "PreTrainedModel") -> Shape:
    """The shape of a loaded model of any type; what its configuration does not say is as usual."""
    config = policy.config.get_text_config()
    vocabulary, hidden = map(int, cast(Any, policy.get_input_embeddings()).weight.shape)

    def number(*names: str, usual: int) -> int:
        values = [getattr(config, name, None) for name in names]
        return next((value for value in values if isinstance(value, int) and value > 0), usual)

    heads = number("num_attention_heads", usual=1)
    size = number("head_dim", usual=max(1, hidden // heads))
    return Shape(
        hidden=number("hidden_size", usual=hidden),
        intermediate=number("intermediate_size", "n_inner", "ffn_dim", usual=4 * hidden),
        layers=number("num_hidden_layers", usual=1),
        queries=heads * size,
        keys=number("num_key_value_heads", usual=heads) * size,
        vocabulary=vocabulary,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        context=number("max_position_embeddings", usual=1),
        biases=config.model_type == "qwen2",
    )


def shape_of(path: str, known: Mapping[str, Any]) -> Shape:
    """The shape of the model at `model.path`: a local directory, the built-in model ("world"), one of `known`, which
    maps hub names to the content of their config.json, or one whose config.json the hub's cache on this disk has.

    Raises ConfigError for any other model, because nothing is downloaded, and for a config.json that cannot be read.
    """
    from carerft.world.bases import SHIPPED

    file = (SHIPPED if path == "world" else Path(path).expanduser()) / "config.json"
    if not file.is_file() and path not in known:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with suppress(HFValidationError):  # no hub name
            file = Path(cached) if isinstance(cached := try_to_load_from_cache(path, "config.json"), str) else file
    if not file.is_file() and path not in known:
        raise ConfigError(
            f"the shape of {path} is unknown: a plan needs the model's config.json, and downloads nothing",
            f"fetch that file alone: hf download {path} config.json; or give a local directory, or one of "
            f"{', '.join(known)}",
        )
    try:
        return shape_from(json.loads(file.read_text()) if file.is_file() else known[path])
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{file}: {error} is missing or wrong", "carerft plan knows Qwen, Llama and Mistral"
        ) from error
