"""Writing a model directory in Hugging Face format."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from carerft.model.chat import eos_token_ids


def export(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    chat: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face directory (safetensors) that transformers and vLLM load as it is, as one act.

    weights: whole, where the policy's own are not. chat: it was trained in its chat template: for every tool that loads
    it, the end of a turn ends a generation.
    """
    if chat:
        policy.generation_config.eos_token_id = eos_token_ids(policy, tokenizer, chat)
    with replacing(directory) as beside:
        policy.save_pretrained(beside, state_dict=weights)
        tokenizer.save_pretrained(beside)


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A place for what becomes `directory` once the `with` block has written it."""
    beside = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    yield beside
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(beside, directory)
