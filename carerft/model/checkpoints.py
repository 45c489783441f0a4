"""A run's policy, at its end or at a checkpoint, as a model directory in Hugging Face format."""

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from carerft.config.checks import TENSORS
from carerft.config.composition import train_settings
from carerft.errors import CareError, reason
from carerft.model.chat import uses_chat
from carerft.model.export import export
from carerft.model.loading import load_model
from carerft.model.lora import add_lora, merged_weights
from carerft.processes import made_once

log = logging.getLogger(__name__)


def checkpoint_model(checkpoint: Path) -> Path:
    """The policy of a checkpoint as a directory beside the run's model/, written if it is absent. Raises CareError."""
    checkpoint = checkpoint.expanduser().resolve()
    run = checkpoint.parents[1]
    directory, lock = run / f"model_{checkpoint.name}", run / f".model_{checkpoint.name}.lock"
    made_once(directory, lock, lambda: write_model(run, checkpoint, directory))
    return directory


def write_model(run: Path, checkpoint: Path | None, directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the policy of a run. checkpoint: one of its checkpoints; None: the model at its end. dtype: of all weights.

    Raises CareError if the checkpoint or its base model cannot be read.
    """
    settings = train_settings(json.loads((run / "manifest.json").read_text())["config"])
    if checkpoint is None:
        finished = replace(settings.model, path=str(run / "model"), revision=None)
        policy, tokenizer = load_model(finished, torch.device("cpu"))
    else:
        policy, tokenizer = load_model(settings.model, torch.device("cpu"))
        if settings.model.adapter:
            add_lora(policy, settings.model, settings.seed)
        trained = {f"weights.{name}": p.detach() for name, p in policy.named_parameters() if p.requires_grad}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # this is one process
                dcp.load(trained, checkpoint_id=checkpoint / TENSORS, no_dist=True)
        except Exception as error:  # torch's reader has many
            raise CareError(
                f"{checkpoint} cannot be read ({reason(error)})", "choose another checkpoint of the run"
            ) from error
    weights = {
        name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in merged_weights(policy)
    }
    policy.to(dtype)  # pyright: ignore[reportArgumentType]  # so that its configuration says so
    export(policy, tokenizer, directory, uses_chat(settings.model.chat, policy, tokenizer), weights)
    log.info("written: %s", directory)
