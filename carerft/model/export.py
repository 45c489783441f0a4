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
    """Write a Hugging Face directory (safetensors) that transformers and vLLM can load.

    weights: full tensors by name; needed where the policy's own are sharded or have an adapter. chat: the policy was
    trained in its chat template, so its generation config is made to stop at the end of a turn.
    """
    if chat:
        policy.generation_config.eos_token_id = eos_token_ids(policy, tokenizer, chat)
    with atomic_directory(directory) as temporary:
        policy.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A path for the `with` block to write to, which is renamed to `directory` at its end and replaces what was
    there. If the block fails, `directory` is unchanged."""
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    yield temporary
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(temporary, directory)
