"""What sampling ahead gains: the same short training with `rollout.lookahead=0` and `1`, with dedicated engines.

    python benchmarks/speed/overlap.py [--steps 12] [override ...]

Prints, for each, the seconds of a rollout batch's cycle (sampling, grading, syncing, learning), and the share of it in
which either side waited: the sampler while the learner learned, the learner while the sampler sampled. The first batch,
which has nothing to overlap with, is left out. Further arguments are overrides of `carerft train`.

Overlap can help only if both sides have a device of their own: on two cores, give each side one (OMP_NUM_THREADS=1).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

FIXED = [
    "rollout=vllm", "rollout.placement=dedicated", "model=tiny", "benchmark=none", "tracker=none",
    "learner.updates_per_batch=1",
]  # fmt: skip


def cycles(lookahead: int, steps: int, overrides: list[str]) -> list[dict[str, float]]:
    """The metrics of each step but the first; each batch has one step."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "carerft", "train", *FIXED, f"steps={steps}", f"rollout.lookahead={lookahead}"]
        words = [*command, *overrides, f"hydra.run.dir={directory}/run"]
        process = subprocess.run(words, capture_output=True, text=True)
        if process.returncode:
            raise SystemExit(process.stdout[-2000:] + process.stderr[-2000:])
        lines = (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][1:]


def summary(steps: list[dict[str, float]]) -> dict[str, float]:
    """Medians, in seconds and in shares of the cycle, which is the sum of what the learner's process does."""

    def median(*names: str) -> float:
        return statistics.median(sum(step.get(f"time/{name}_s", 0.0) for name in names) for step in steps)

    ahead = "time/wait_s" in steps[0]
    waited = ("wait",) if ahead else ("rollout", "grade")
    cycle = median(*waited, "sync", "score", "learn")
    sampling = median("rollout", "grade")
    return {
        "cycle_s": cycle,
        "sampling_s": sampling,
        "learning_s": median("learn", "score"),
        "learner_waits": median(*waited) / cycle,
        "sampler_waits": max(0.0, 1.0 - sampling / cycle),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    options, overrides = parser.parse_known_args()
    console = Console()
    rows = {}
    for lookahead in (0, 1):
        with console.status(f"rollout.lookahead={lookahead}"):
            rows[lookahead] = summary(cycles(lookahead, options.steps, overrides))
    table = Table(title="One rollout batch, from sampling to its optimizer step")
    for column in ("lookahead", "cycle, s", "sampling, s", "learning, s", "learner waits", "sampler waits", "speed"):
        table.add_column(column, justify="right")
    for lookahead, row in rows.items():
        seconds = [f"{row[key]:.3f}" for key in ("cycle_s", "sampling_s", "learning_s")]
        shares = [f"{row[key]:.0%}" for key in ("learner_waits", "sampler_waits")]
        table.add_row(str(lookahead), *seconds, *shares, f"{rows[0]['cycle_s'] / row['cycle_s']:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
