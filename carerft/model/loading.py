"""Loading a causal language model and its tokenizer from a directory or the hub, and writing one."""

import os
from contextlib import suppress
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from carerft.config.settings import ModelSettings
from carerft.errors import CareError
from carerft.world.bases import base_directory


def choose_device(device: str) -> torch.device:
    """ "auto" is cuda where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def model_path(model: ModelSettings) -> str:
    """A directory or a hub name; the built-in base model is built first where it isn't there yet."""
    return str(base_directory(model.base)) if model.path == "world" else model.path


def load_model(model: ModelSettings, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 on its device, in evaluation mode, and its tokenizer.

    On the meta device it has no weights, and takes no memory. Code that comes with a model is never run. Raises
    CareError where the model can't be had, wants to run its own code, or has no tokenizer.
    """
    path = model_path(model)
    hf_logging.set_verbosity_error()  # what matters is checked here, and said as errors
    # A download deserves a progress bar, reading a local file doesn't.
    (hf_logging.disable_progress_bar if os.path.isdir(path) else hf_logging.enable_progress_bar)()
    source = {"revision": model.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
    except Exception as error:
        raise _unloadable(path, "tokenizer", error) from error
    try:
        how = {"dtype": torch.float32, "attn_implementation": model.attention}
        if device.type == "meta":
            policy = _outline(path, source, how)
        else:
            policy = AutoModelForCausalLM.from_pretrained(path, **source, **how)
    except Exception as error:
        raise _unloadable(path, "model", error) from error
    _check_head(policy, path)
    return policy.to(device).eval(), tokenizer


def _outline(path: str, source: dict[str, Any], how: dict[str, Any]) -> PreTrainedModel:
    """The model on the meta device. source, how: of `from_pretrained`, which reads the same files but the weights'."""
    config = AutoConfig.from_pretrained(path, **source)
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(config, trust_remote_code=source["trust_remote_code"], **how)
    with suppress(OSError):  # not every model has one
        policy.generation_config = GenerationConfig.from_pretrained(path, revision=source["revision"])
    return policy


def _unloadable(path: str, part: str, error: Exception) -> CareError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        return CareError(
            f"the {part} of {path} wants to run code that comes with it, which carerft never does",
            "use a model whose architecture is part of transformers",
        )
    return CareError(
        f"cannot load the {part} of {path}: {reason}",
        "model=/a/directory takes a local model in Hugging Face format; a hub name needs network or a filled cache",
    )


def _check_head(policy: PreTrainedModel, path: str) -> None:
    """The learner makes logits itself, as hidden @ weight.T: refuse a model whose head does anything else."""
    head = policy.get_output_embeddings()
    softcap = getattr(policy.config, "final_logit_softcapping", None)
    scale = getattr(policy.config, "logits_scaling", None) or getattr(policy.config, "logit_scale", None)
    if head is None or getattr(head, "bias", None) is not None or softcap or (scale and scale != 1.0):
        raise CareError(
            f"the LM head of {path} is not a plain matrix (it has a bias, a soft cap or a scale)",
            "use a model of the Qwen2, Qwen3, Llama or Mistral family",
        )


def round_matrices(model: PreTrainedModel, exactly: bool = False) -> None:
    """Keep frozen linear layers in bfloat16, for use under autocast, which would round them each time: same results,
    half the memory. A head that is the embedding too stays as it is.

    exactly: only layers that bfloat16 holds to the last bit, as it does those of most models' files.
    """
    tied = model.get_input_embeddings().weight
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or module.weight is tied:
            continue
        own = list(module.parameters())
        frozen = not any(weight.requires_grad for weight in own)
        if frozen and not (exactly and any(not torch.equal(weight, weight.bfloat16().float()) for weight in own)):
            module.to(torch.bfloat16)


def context_length(policy: PreTrainedModel) -> int:
    """Tokens of prompt and completion that the model can hold."""
    return int(policy.config.max_position_embeddings)
