"""What the scripts of this folder share: processes that measure one system each, the console, and the tables."""

import json
import os
import subprocess
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

TRL_VERSION = "1.16.0"


def how_to_get_trl(script: str) -> str:
    """What to do to have TRL measured by this script, too."""
    return f"""TRL is left out: it needs an environment of its own. Make one, and name its Python with --trl-python:
  python -m venv trl-venv
  trl-venv/bin/pip install torch==2.13.0
  trl-venv/bin/pip install trl=={TRL_VERSION} "transformers>=5.16.1,<5.20"
  python benchmarks/speed/{script} --trl-python trl-venv/bin/python"""


def run(command: list[str], threads: int) -> dict[str, Any]:
    """Run a process that needs no network, and return the JSON that its last line holds.

    A process that fails returns {"why_not": the last line of its errors}; the end of them is printed.
    """
    settings = {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    if process.returncode:
        print(process.stderr[-3000:], file=sys.stderr)
        errors = process.stderr.splitlines() or [f"exit status {process.returncode}"]
        return {"why_not": f"failed: {errors[-1][:300]}"}
    return json.loads(process.stdout.splitlines()[-1])


def make_console(width: int) -> Console:
    """width: in characters, where the output does not go to a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = width
    return console


def load_average(console: Console) -> float:
    """The machine's load over the last minute. Warns if the machine is not idle."""
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"[yellow]The machine is not idle (load {load:.1f}): times and ratios will be off.[/]")
    return load


def make_table(title: str, columns: list[str]) -> Table:
    """A table of numbers, the first column the names of the rows."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def device_named(choice: str) -> str:
    """The device of --device: "auto" is "cuda" where there is a GPU, otherwise "cpu"."""
    return choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
