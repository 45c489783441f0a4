"""Loading a causal language model and its tokenizer from a directory or the hub."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

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

from carerft.config.settings import ModelSettings
from carerft.errors import CareError
from carerft.world.bases import base_directory


def choose_device(device: str) -> torch.device:
    """The device of this name; "auto" is cuda if available, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def model_path(model: ModelSettings) -> str:
    """The model's directory or hub name. Builds the built-in base model if it does not exist yet."""
    return str(base_directory(model.base)) if model.path == "world" else model.path


def load_model(model: ModelSettings, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 on this device, in evaluation mode, and its tokenizer.

    On the meta device the model has no weights and takes no memory. Code that comes with a model is never run.
    Raises CareError if the model or its tokenizer cannot be loaded, needs its own code, or has an unsuitable LM head.
    """
    path = model_path(model)
    hf_logging.set_verbosity_error()  # what matters is checked here and raised
    # Only a download deserves a progress bar.
    (hf_logging.disable_progress_bar if os.path.isdir(path) else hf_logging.enable_progress_bar)()
    source: dict[str, Any] = {"revision": model.revision, "trust_remote_code": False}
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": model.attention}
    part = "tokenizer"
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
            policy = AutoModelForCausalLM.from_pretrained(path, **source, **options)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise CareError(
                f"the {part} of {path} wants to run code that comes with it, which carerft never does",
                "use a model whose architecture is part of transformers",
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CareError(
            f"cannot load the {part} of {path}: {reason}",
            "model=/a/directory takes a local model in Hugging Face format; a hub name needs network or a filled cache",
        ) from error
    _check_head(policy, path)
    # transformers' decorator of `to` hides that it is a method.
    return policy.to(device).eval(), tokenizer  # pyright: ignore[reportArgumentType]  # `to` takes a device


def _check_head(policy: PreTrainedModel, path: str) -> None:
    """Raise CareError unless the head computes hidden @ weight.T and nothing else, as the learner does itself."""
    head = policy.get_output_embeddings()
    softcap = getattr(policy.config, "final_logit_softcapping", None)
    scale = getattr(policy.config, "logits_scaling", None) or getattr(policy.config, "logit_scale", None)
    if head is None or getattr(head, "bias", None) is not None or softcap or (scale and scale != 1.0):
        raise CareError(
            f"the LM head of {path} is not a plain matrix (it has a bias, a soft cap or a scale)",
            "use a model of the Qwen2, Qwen3, Llama or Mistral family",
        )


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


def context_length(policy: PreTrainedModel) -> int:
    """The most tokens, prompt and completion together, that the model reads exactly.

    That is what its configuration says or, where its rotary factors change with the longest position of a batch
    (LongRoPE, dynamic NTK), the length at which they begin to: beyond it a cached key and a key that is read again
    differ, and so do sequences that are read alone and beside a longer one.
    """
    config = policy.config.get_text_config()
    lengths = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length")]
    stated = next((int(length) for length in lengths if length), sys.maxsize)  # some configurations name no limit
    return min(stated, rotary_limit(config) or stated)


def rotary_limit(config: PreTrainedConfig) -> int | None:
    """The length beyond which rotary factors depend on the longest position of a batch; None: they never do."""
    parameters = getattr(config, "rope_parameters", None) or {}
    limits = []
    for entry in (parameters, *parameters.values()):  # some models have parameters for each type of layer
        if isinstance(entry, Mapping) and entry.get("rope_type") in ("longrope", "dynamic"):
            original = entry.get("original_max_position_embeddings")
            limits.append(original or getattr(config, "original_max_position_embeddings", None))
    known = [int(limit) for limit in limits if limit]
    fallback = getattr(config, "max_position_embeddings", None)
    return min(known) if known else fallback if limits else None


def described(model: PreTrainedModel) -> str:
    """A model's class and type, for messages."""
    return f"{type(model).__name__} (model_type={model.config.model_type})"
