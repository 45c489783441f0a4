"""How costs grow with the work: CPU seconds and memory of what a large run, sweep or report does beside the model.

    python benchmarks/growth.py [--checkout DIRECTORY] [--small] [ROW ...]

Each row is measured in a process of its own, which imports carerft from the checkout (by default the one of this
script), so that two versions can be compared. Preparation is not counted. `--small` does every row in a size that takes
no time, to show that it still runs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """What is measured. prepare: makes the work of a size; sizes: of each line that is printed; small: one that takes
    no time; before: what each line took when the row was written, in CPU seconds or memory."""

    prepare: Callable[..., Work]
    quantity: str
    sizes: tuple[tuple[int, ...], ...]
    small: tuple[int, ...]
    before: tuple[str, ...]


def prompts(problems: int, asked: int) -> Work:
    """What a training does with its prompts before the first sample, where its steps ask so many of the problems."""
    from transformers import AutoTokenizer

    from carerft.config.settings import ModelSettings
    from carerft.model.loading import model_path
    from carerft.tasks import Problem
    from carerft.tasks.encoding import Prompts
    from carerft.training.collector import prompt_order

    tokenizer = AutoTokenizer.from_pretrained(model_path(ModelSettings(name="tiny", path="world")))
    text = "what is two plus three and then " * 7
    made = [Problem(str(number), f"{text}{number}", "5") for number in range(problems)]
    return lambda: Prompts(made, tokenizer, max_tokens=64, context=4096).prepare(prompt_order(problems, 0, 0, asked))


def ece_floor(questions: int, samples: int) -> Work:
    import numpy as np

    from carerft.metrics.calibration import ece_floor

    answers = np.random.default_rng(0).integers(-1, 8, size=(questions, samples))
    return lambda: ece_floor(answers)


def bootstrap(questions: int) -> Work:
    import numpy as np

    from carerft.metrics.scores import score

    random, samples = np.random.default_rng(0), 4
    problems = [{"problem_id": str(n), "answer": "1", "prompt": ""} for n in range(questions)]
    records = [
        {
            "problem_id": str(n), "sample": s, "extracted": str(a), "correct": bool(a == 1), "refused": False,
            "text": str(a), "truncated": False, "log_probability": -1.0 - a, "tokens": 5,
        }
        for n, row in enumerate(random.integers(1, 4, size=(questions, samples)))
        for s, a in enumerate(row)
    ]  # fmt: skip
    return lambda: score(problems, records)


def sweep_cells(seeds: int) -> Work:
    from carerft.sweeps.cells import cells
    from carerft.sweeps.folders import experiment

    texts = ["model=tiny", f"seed={','.join(map(str, range(seeds)))}"]
    return lambda: cells(experiment("table1"), texts)


def sweep_lookups(finished: int, looked_up: int) -> Work:
    """Cells that have not run, each looked up among finished runs of other cells."""
    from carerft.config.composition import plain
    from carerft.config.identity import config_hash
    from carerft.sweeps.composition import composing
    from carerft.sweeps.sharing import link_finished_run

    with composing():
        from hydra import compose

        config = plain(compose("train", ["experiment=table1", "model=tiny"]))
    for seed in range(finished):
        directory = Path("outputs", "table1", f"cell{seed // 3}", f"seed={seed}")
        directory.mkdir(parents=True)
        own = {**config, "seed": seed}
        record = {"status": "done", "command": "train", "config": own, "config_hash": config_hash(own), "inputs": []}
        (directory / "manifest.json").write_text(json.dumps(record, indent=2))

    def look_up() -> None:
        for seed in range(finished, finished + looked_up):
            place = Path("outputs", "table2", f"cell{seed}", f"seed={seed}")
            assert link_finished_run(place, "train", {**config, "seed": seed}, Path("outputs")) is None

    return look_up


def report(rows: int) -> Work:
    """A report on so many rows of three seeds each."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.synthetic_runs import manifest, write_run

    from carerft.report.build import build

    for row in range(rows):
        for seed in range(3):
            record = manifest("train", "srkl", seed)
            record["config"]["regularizer"]["beta"] = 0.01 * (row + 1)
            write_run(Path("runs", f"row{row}", f"seed={seed}"), record, "srkl", questions=200)
    return lambda: build([Path("runs")])


ROWS = {
    "prompts": Row(prompts, "problems x asked", ((1_000_000, 1600),), (20, 4), ("124 s",)),
    "ece_floor": Row(ece_floor, "questions x samples", ((500, 256), (5000, 128)), (20, 8), ("46 s", "76 s")),
    "bootstrap": Row(bootstrap, "questions", ((50_000,),), (20,), ("2.7 GB",)),
    "sweep_cells": Row(sweep_cells, "seeds of table1, 10 cells each", ((300,),), (1,), ("480 s",)),
    "sweep_lookups": Row(sweep_lookups, "finished runs x cells looked up", ((3000, 100),), (6, 2), ("9 s",)),
    "report": Row(report, "rows of three runs", ((100,),), (2,), ("76 s",)),
}


@contextmanager
def empty_directory() -> Iterator[None]:
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(before)


def memory() -> int:
    """The peak of this process's memory so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_seconds() -> float:
    """Of this process and those that it has started and seen end."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(row: Row, size: tuple[int, ...]) -> dict[str, Any]:
    """CPU seconds of one size of a row, and by how much its peak of memory exceeds that of its preparation."""
    with empty_directory():
        work = row.prepare(*size)
        before, start = memory(), cpu_seconds()
        work()
        return {"cpu_s": cpu_seconds() - start, "peak_mb": (memory() - before) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; by default all")
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--size", help=argparse.SUPPRESS)  # of the one row that this process measures
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}: {', '.join(ROWS)}")
    if arguments.size:
        (name,) = arguments.rows
        print(json.dumps(measure(ROWS[name], tuple(json.loads(arguments.size)))))
        return
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(arguments.checkout.resolve())}
    print(f"{'row':<16}{'size':>14}{'CPU s':>9}{'more MB':>9}{'before':>9}  size is of")
    for name in arguments.rows or ROWS:
        row = ROWS[name]
        sizes, before = ((row.small,), ("",)) if arguments.small else (row.sizes, row.before)
        for size, earlier in zip(sizes, before, strict=True):
            command = [sys.executable, __file__, name, "--size", json.dumps(size)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            text = " x ".join(f"{number:,}" for number in size)
            figures = f"{result['cpu_s']:>9.2f}{result['peak_mb']:>9.0f}{earlier:>9}"
            print(f"{name:<16}{text:>14}{figures}  {row.quantity}", flush=True)


if __name__ == "__main__":
    main()
