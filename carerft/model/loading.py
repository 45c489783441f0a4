"""Loading a causal language model and its tokenizer from a directory or the hub."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from carerft.config.checks import is_checkpoint
from carerft.config.gpus import check_gpus
from carerft.config.settings import ModelSettings
from carerft.errors import CareError, reason
from carerft.model.modes import evaluating
from carerft.world.bases import base_directory

log = logging.getLogger(__name__)


def choose_device(device: str) -> torch.device:
    """The device of this name; "auto" is cuda if available, else the CPU, but CareError if this machine has GPUs that
    torch cannot use."""
    if device == "auto" and not torch.cuda.is_available():
        check_gpus("take the CPU knowingly: learner.device=cpu, of carerft evaluate device=cpu")
        device = "cpu"
    elif device == "auto":
        device = "cuda"
    return torch.device(device)


def model_path(model: ModelSettings) -> str:
    """The model's directory or hub name. The built-in base model is built, and the model of a checkpoint written, if it
    does not exist yet."""
    if model.path == "world":
        return str(base_directory(model.base, model.confidence))
    path = Path(model.path).expanduser()
    if not is_checkpoint(path):
        return model.path
    from carerft.model.checkpoints import checkpoint_model  # which loads the run's own model

    return str(checkpoint_model(path))


def load_model(model: ModelSettings, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 on this device, in evaluation mode, and its tokenizer.

    On the meta device the model has no weights and takes no memory. Code that comes with a model is never run.
    Raises CareError if the model or its tokenizer cannot be loaded or needs its own code, if the weights in its files
    are not those that its configuration asks for, and if its LM head or its attention would be read wrongly.
    """
    path = model_path(model)
    hf_logging.set_verbosity_error()  # what matters is checked here and raised
    # Only a download deserves a progress bar.
    (hf_logging.disable_progress_bar if os.path.isdir(path) else hf_logging.enable_progress_bar)()
    source: dict[str, Any] = {"revision": model.revision, "trust_remote_code": False}
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": model.attention}
    part, report = "tokenizer", {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
        part = "model"
        if device.type == "meta":
            config = AutoConfig.from_pretrained(path, **source)
            with device:
                policy = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
            with suppress(OSError):  # not every model has a generation config
                policy.generation_config = GenerationConfig.from_pretrained(path, revision=source["revision"])
        else:
            options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # `_check_weights` refuses them
            policy, report = cast(Any, AutoModelForCausalLM.from_pretrained(path, **source, **options))
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise CareError(
                f"the {part} of {path} wants to run code that comes with it, which carerft never does",
                "use a model whose architecture is part of transformers: docs/models.md lists the types",
            ) from error
        raise CareError(f"cannot load the {part} of {path}: {reason(error)}", _remedy(error)) from error
    if report:
        _check_weights(policy, report, path)
        _make_savable(policy, path)
    # transformers' decorator of `to` hides that it is a method.
    policy = policy.to(device).eval()  # pyright: ignore[reportArgumentType]  # `to` takes a device
    _check_head(policy, path)
    _check_attention(policy, path)
    return policy, tokenizer


def _remedy(error: Exception) -> str:
    """What to do about a model that cannot be loaded."""
    if "scaled_dot_product_attention" in str(error):
        return "write model.attention=eager"
    if "Unrecognized configuration class" in str(error):
        return "choose another model, of the types in docs/models.md"
    return "model=/a/directory takes a local model in Hugging Face format; a hub name needs network or a filled cache"


def _make_savable(policy: PreTrainedModel, path: str) -> None:
    """Replace a generation config that transformers loads but refuses to save (one with a temperature and without
    do_sample): with it, a finished training could not be exported. What carerft reads of it is kept."""
    old = policy.generation_config
    if old is None:
        return
    try:
        old.validate(strict=True)
    except ValueError as error:
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens")
        policy.generation_config = GenerationConfig(**{name: getattr(old, name) for name in names})
        named = ", ".join(re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)) or reason(error)
        log.warning(
            "the generation config of %s contradicts itself (%s): this is left out of what is saved", path, named
        )


# What a checkpoint may hold beside the model's weights: buffers that older versions of transformers saved, and that are
# computed from the configuration today; parts for images and sound, where the language model alone is loaded.
BESIDE = re.compile(
    r"(rotary\w*\.inv_freq|\.masked_bias|attn\.bias|attention\.bias|position_ids)$"
    r"|(^|\.)(vision|visual|audio|multi_modal)\w*\."
)


def _check_weights(policy: PreTrainedModel, report: Mapping[str, Any], path: str) -> None:
    """Raise CareError unless the files hold exactly the model's weights. Tied weights may be saved once.

    report: what `from_pretrained` says of its loading. It fills in random numbers for what is missing.
    """
    missing = set(report.get("missing_keys", ()))
    tensors: dict[int, list[str]] = {}
    for name, tensor in policy.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), []).append(name)
    wrong = {
        "missing": [names[0] for names in tensors.values() if missing.issuperset(names)],
        "of another shape": [name for name, *_ in report.get("mismatched_keys", ())],
        "unexpected": [name for name in report.get("unexpected_keys", ()) if not BESIDE.search(name)],
    }
    parts = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in wrong.items()
        if names
    ]
    if parts:
        raise CareError(
            f"the weights of {path} are not those of the model that its config.json describes: {'; '.join(parts)}",
            "save the model again by save_pretrained of the plain model (not of a compiled or a wrapped one, whose "
            "weights' names begin with _orig_mod. or module.), or correct config.json",
        )


def _check_head(policy: PreTrainedModel, path: str) -> None:
    """Raise CareError unless the head computes hidden @ weight.T and nothing else, as the learner does itself."""
    if not _head_is_plain(policy):
        raise CareError(
            f"the LM head of {path}, {described(policy)}, is not a plain matrix: it has a bias, a soft cap, a scale or "
            "layers of its own, without which the learner would compute other probabilities",
            "use a model of the Qwen2, Qwen3, Llama or Mistral family, or another one of the types in docs/models.md",
        )


def _check_attention(policy: PreTrainedModel, path: str) -> None:
    """Raise CareError if the attention implementation leaves out a soft cap of the scores, as torch's does."""
    config = policy.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation == "sdpa":
        raise CareError(
            f"{path}, {described(policy)}, caps its attention's scores, which model.attention=sdpa would leave out",
            "write model.attention=eager",
        )


def _head_is_plain(policy: PreTrainedModel) -> bool:
    head = policy.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if head is None or weight is None or getattr(head, "bias", None) is not None:
        return False
    for config in (policy.config, policy.config.get_text_config()):
        scale = getattr(config, "logits_scaling", None) or getattr(config, "logit_scale", None)
        if getattr(config, "final_logit_softcapping", None) or (scale and scale != 1.0):
            return False
    return policy.device.type == "meta" or _head_is_last(policy, head, weight)


def _head_is_last(policy: PreTrainedModel, head: torch.nn.Module, weight: torch.Tensor) -> bool:
    """Whether the head multiplies by its weight, and its product is returned as it is: tried with a single token, for
    whose logits, half way, others are put, so large that a soft cap, a scale or a mask would show."""
    exact, given = [], torch.linspace(-100, 100, len(weight), device=weight.device, dtype=weight.dtype)

    def replace(module: torch.nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        product = arguments[0] @ weight.T
        exact.append(torch.allclose(output, product, rtol=1e-3, atol=1e-3 * float(product.abs().max())))
        return given.expand_as(output)

    hook = head.register_forward_hook(replace)
    try:
        with evaluating(policy):
            logits = policy(input_ids=torch.tensor([[len(weight) // 2]], device=policy.device), use_cache=False).logits
    except Exception as error:
        raise CareError(
            f"{described(policy)} cannot read a sequence of tokens by itself: {reason(error)}",
            "choose another model, of the types in docs/models.md",
        ) from error
    finally:
        hook.remove()
    same = logits.shape[-1] == len(given) and torch.equal(logits, given.expand_as(logits))
    return exact == [True] and same


def round_matrices(model: PreTrainedModel, exactly: bool = False) -> None:
    """Store frozen linear layers in bfloat16, for use under autocast, which would round them in every pass: the same
    results for half the memory. A head that is tied to the embedding is left in float32.

    exactly: only layers that bfloat16 represents exactly, as it does those of most published models.
    """
    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or module.weight is embedding:
            continue
        weights = list(module.parameters())
        frozen = not any(weight.requires_grad for weight in weights)
        if frozen and (not exactly or all(torch.equal(weight, weight.bfloat16().float()) for weight in weights)):
            module.to(torch.bfloat16)


def attends_fully(model: PreTrainedModel) -> bool:
    """Whether all layers have full causal attention of queries and keys alone (Qwen2, Qwen3, Llama), by the model's
    configuration: no sliding window, no soft cap, no attention sinks."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    plain = layers == {"full_attention"} and not getattr(config, "attn_logit_softcapping", None)
    return plain and not any(name.endswith("sinks") for name, _ in model.named_parameters())


class Context(int):
    """A number of tokens. why: what limits it, which is shown with it."""

    why: str

    def __new__(cls, tokens: int, why: str = "") -> "Context":
        context = super().__new__(cls, tokens)
        context.why = why
        return context

    def __str__(self) -> str:
        return f"{int(self)} ({self.why})" if self.why else int.__str__(self)


def context_length(policy: PreTrainedModel) -> Context:
    """The most tokens, prompt and completion together, that the model accepts and reads exactly.

    Beyond some length, some models read a token in ways that depend on what is read beside it, or on rounding: cached
    keys then differ from those that are read again, and a sequence alone from the same one beside a longer one.
    """
    config = policy.config.get_text_config()
    lengths = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length")]
    stated = next((int(length) for length in lengths if length), sys.maxsize)  # some configurations name no limit
    return min([*rotary_limits(config), *selection_limits(config), Context(stated)])


def rotary_limits(config: PreTrainedConfig) -> Iterator[Context]:
    """The lengths beyond which rotary factors depend on the longest position of a batch, if they ever do."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for entry in (parameters, *parameters.values()):  # some models have parameters for each type of layer
        if isinstance(entry, Mapping) and entry.get("rope_type") in ("longrope", "dynamic"):
            original = (
                entry.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or getattr(config, "max_position_embeddings", None)
            )
            factors = f"the factors of its {entry['rope_type']} rotary embedding"
            if original:
                yield Context(original, f"beyond it {factors} change with the longest sequence of a batch")


def selection_limits(config: PreTrainedConfig) -> Iterator[Context]:
    """The lengths beyond which attention reads only the keys with the highest scores, whose choice turns on rounding;
    none if it reads all."""
    selected = [getattr(config, name, None) for name in ("index_topk", "keep_window_size", "indexer_budget")]
    blocks, size = getattr(config, "index_topk_blocks", None), getattr(config, "index_block_size", None)
    for number in (*selected, blocks and size and blocks * size):
        if number:
            yield Context(number, "beyond it the model attends to selected keys only")


def described(model: PreTrainedModel) -> str:
    """A model's class and type, for messages."""
    return f"{type(model).__name__} (model_type={model.config.model_type})"


def backbone(model: PreTrainedModel) -> Callable[..., Any]:
    """The model without its head: takes input_ids, returns last_hidden_state.

    Of a model of several parts this is the whole of them, since the outer part may treat tokens specially.
    """
    if model.config.get_text_config() is not model.config and model.base_model is not model:
        return model.base_model
    return decoder(model)


def decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The module that holds the decoder's layers."""
    inner = model.get_decoder()
    return cast(Any, model).model if inner is model else inner  # Llama 4's text model names itself
