"""Write a run's policy as a model directory (safetensors) that transformers and vLLM load.

usage: carerft export RUN [step=N] [dtype=bfloat16] [output=DIRECTORY]

A run that trained an adapter is written merged. Weights are learnt in float32; bfloat16 is what they are served in, and
halves the files.

examples:
  carerft export outputs/train/2026-11-29_10-00-00 dtype=bfloat16
  carerft export outputs/train/2026-11-29_10-00-00 step=40
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from carerft.commands.arguments import argument, read, refuse
from carerft.errors import ConfigError
from carerft.runs.reading import steps_of

DTYPES = ("float32", "bfloat16")


@dataclass
class Export:
    """The keys of `carerft export`."""

    step: int | None = argument("of the checkpoint; null: the end of the run", None)
    dtype: str = argument("of the weights: float32 or bfloat16", "float32", choices=DTYPES)
    output: str | None = argument("directory to write; null: one in the run's, named by step and dtype", None)


def main() -> None:
    """Write the directory and print what serves it. Raises ConfigError: no such run, or no such step."""
    settings, words = read(Export, sys.argv[1:], __doc__)
    runs = [word for word in words if (Path(word) / "manifest.json").is_file()]
    if len(runs) != 1 or len(words) != 1:
        refuse(settings, [word for word in words if "=" in word])
        raise ConfigError(f"{' '.join(words) or 'nothing'}: not one run's directory", "write carerft export RUN")
    run, step = Path(runs[0]), settings.step
    steps = steps_of(run / "checkpoints")
    there = f"there are checkpoints of {', '.join(map(str, steps))}" if steps else "it has no checkpoints"
    if step is None and not (run / "model").is_dir():
        raise ConfigError(f"{run} has not come to its end: it has no model/", f"{there}: write step=N")
    if step is not None and step not in steps:
        raise ConfigError(f"step={step}: {run} has no checkpoint of that step", there)
    import torch

    from carerft.model.checkpoints import write_model

    name = "model" + (f"_step_{step}" if step is not None else "")
    output = Path(settings.output or run / (name if settings.dtype == "float32" else f"{name}_{settings.dtype}"))
    if output.resolve() == (run / "model").resolve():
        raise ConfigError(
            f"{output} is the run's own model, in float32, already", "write dtype=bfloat16, or output=..."
        )
    if settings.output and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"output={output} exists already", "choose another directory, or remove this one")
    checkpoint = None if step is None else run / "checkpoints" / f"step_{step}"
    write_model(run, checkpoint, output, getattr(torch, settings.dtype))
    print(f"written: {output}\nserve it: vllm serve {output} --dtype {settings.dtype}")
