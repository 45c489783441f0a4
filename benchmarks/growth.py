"""How costs grow with the work: CPU seconds and memory of what a large run, sweep or report does beside the model.

    python benchmarks/growth.py [--checkout DIRECTORY] [--small] [ROW ...]

Each row is measured in a process of its own, which imports carerft from the checkout (by default the one of this
script), so that two versions can be compared. Preparation is not counted. `--small` does every row in a size that takes
no time, to show that it still runs.
"""

import argparse
import gc
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


def tiny_model(vocabulary: int, hidden: int = 64) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64, intermediate_size=2 * hidden, max_position_embeddings=8192, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def rollouts_of(prompts: int, prompt_tokens: int, lengths: list[int], vocabulary: int = 64) -> Any:
    import torch

    from carerft.rollout import Rollouts

    random, counts = torch.Generator().manual_seed(0), torch.tensor(lengths)
    tokens = torch.randint(2, vocabulary, (len(lengths), max(lengths)), generator=random)
    tokens *= torch.arange(max(lengths)) < counts[:, None]
    return Rollouts(
        torch.randint(2, vocabulary, (prompts, prompt_tokens), generator=random), torch.full((prompts,), prompt_tokens),
        tokens, counts, -4.0 * (tokens > 0), torch.ones(len(lengths), dtype=torch.bool),
    )  # fmt: skip


def microbatches(sequences: int) -> Work:
    """Sequences of 110 tokens, of which no two fit into a microbatch of 218."""
    from carerft.training.packing import microbatches

    rollouts = rollouts_of(sequences // 8, 10, [100] * sequences)
    microbatches(rollouts_of(1, 10, [100] * 8), 218, "separate")  # torch prepares much at its first operations
    return lambda: microbatches(rollouts, 218, "separate")


def padded_batch(sequences: int) -> Work:
    """A gradient, and what a checkpoint holds, of completions of 16 tokens beside one of 2,048."""
    import torch

    from carerft.config.settings import LearnerSettings
    from carerft.objective.algorithms import Algorithm
    from carerft.objective.regularizers import NoRegularizer
    from carerft.training.collector import Batch
    from carerft.training.learner import Learner

    rollouts = rollouts_of(sequences // 8, 8, [2048] + [16] * (sequences - 1))
    algorithm = Algorithm(
        name="dapo", group_size=8, clip_low=0.2, clip_high=0.28, ratio="token", aggregation="token",
        advantage_std="sample",
    )  # fmt: skip
    settings = LearnerSettings(learning_rate=1e-4, tokens_per_microbatch=256)
    learner, advantages = Learner(tiny_model(64), algorithm, NoRegularizer(), settings, 1), torch.randn(sequences)

    def work() -> None:
        learner.gradient(rollouts, advantages)
        torch.save(Batch(rollouts, advantages, ["problem"] * (sequences // 8), {}).state(), "state.pt")

    return work


def shared_prompts(completions: int, tokens: int) -> Work:
    """The states of completions of one prompt of 64 tokens, and the gradient through them."""
    import torch

    from carerft.training.attention import use_packed_attention
    from carerft.training.hidden_states import completion_states

    model, rollouts = tiny_model(64), rollouts_of(1, 64, [tokens] * completions)
    use_packed_attention(model)
    return lambda: completion_states(model, rollouts, torch.arange(completions), "shared").square().sum().backward()


def choices(questions: int, vocabulary: int) -> Work:
    """Nine choices of twelve tokens and one of 200 for each question of 64 tokens."""
    import random

    from carerft.rollout.transformers import TransformersWorker

    draw = random.Random(0)
    worker = TransformersWorker(tiny_model(vocabulary), [1], 0)
    text: Callable[[int], list[int]] = lambda length: [draw.randrange(2, vocabulary) for _ in range(length)]  # noqa: E731
    prompts = [prompt for prompt in (text(64) for _ in range(questions)) for _ in range(10)]
    continuations = [text(length) for _ in range(questions) for length in [12] * 9 + [200]]
    return lambda: worker.log_likelihood(prompts, continuations)


ROWS = {
    "prompts": Row(prompts, "problems x asked", ((1_000_000, 1600),), (20, 4), ("124 s",)),
    "ece_floor": Row(ece_floor, "questions x samples", ((500, 256), (5000, 128)), (20, 8), ("46 s", "76 s")),
    "bootstrap": Row(bootstrap, "questions", ((50_000,),), (20,), ("2.7 GB",)),
    "sweep_cells": Row(sweep_cells, "seeds of table1, 10 cells each", ((300,),), (1,), ("480 s",)),
    "sweep_lookups": Row(sweep_lookups, "finished runs x cells looked up", ((3000, 100),), (6, 2), ("9 s",)),
    "microbatches": Row(microbatches, "sequences over half of the budget", ((4096,),), (8,), ("12.5 s",)),
    "padded_batch": Row(padded_batch, "sequences, one of them long", ((4096,),), (8,), ("8.3 s",)),
    "shared_prompts": Row(shared_prompts, "completions x tokens", ((1, 4032), (4, 4032)), (2, 600), (".58 s", "2.2 s")),
    "choices": Row(choices, "questions x vocabulary", ((100, 32_000),), (2, 100), ("47 s",)),
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
        gc.collect()  # imports leave much to look through, which is not the work's
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
