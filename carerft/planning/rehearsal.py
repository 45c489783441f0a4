"""A few seconds of a run, to see how fast this machine is: one rollout batch, its updates, some of the questions.

Processor time where one thread works, so that what else the machine does at the moment counts for little.
"""

import contextlib
import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any

from carerft.planning.measured import Measured
from carerft.planning.remedies import changed
from carerft.runs.reading import read_lines


def rehearse(config: dict[str, Any], cores: int, start: float) -> Measured:
    """What a run of this configuration would measure on this machine's CPU, extrapolated from a small part of it.

    Dynamic sampling is left out: how many groups it replaces, the untrained model doesn't tell.

    cores: threads. start: seconds that a run takes to import everything and start its trackers, which by now have
    passed. Leaves nothing behind.
    """
    import torch

    config = changed(config, {"algorithm.dynamic_sampling": False})
    clock = time.process_time if cores == 1 else time.perf_counter
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
            return _rehearse(config, cores, start, Path(place), clock)
    finally:
        torch.set_num_threads(before)


def _rehearse(config: dict[str, Any], cores: int, start: float, place: Path, clock: Any) -> Measured:
    import torch
    from rich.console import Console

    from carerft import assembly
    from carerft.config.settings import Model
    from carerft.evaluation.evaluate import evaluate
    from carerft.metrics.scores import score
    from carerft.model.loading import load_model

    model = {**config["model"], "base": 0}  # the others may not have been built
    policy, tokenizer = load_model(Model(**model), torch.device("cpu"))
    algorithm, regularizer = assembly.method(config)
    context = assembly.context(config, policy)
    answers, questions, rest = {}, {}, start
    with assembly.rollout_worker(config, policy, tokenizer) as worker:
        collector = assembly.collector(config, worker, policy, tokenizer, algorithm)
        learner = assembly.learner(config, policy, algorithm, regularizer)
        collector.sync(learner)
        for warm in (True, False):
            began = clock()
            batch = collector.sample()
            sampled = clock()
            parts = batch.parts(config["learner"]["updates_per_batch"])
            for part in parts[:1] if warm else parts:
                members = slice(part.start * batch.rollouts.group_size, part.stop * batch.rollouts.group_size)
                learner.step(batch.rollouts.prompts(part), batch.advantages[members])
            ended = clock()
        asked = assembly.protocol(config)
        few = dataclasses.replace(asked, limit=asked.questions_at_once, bootstrap=1)  # one piece of each benchmark
        for name, benchmark in assembly.benchmarks(config, policy, tokenizer).items():
            questions[name] = min(asked.limit or len(benchmark.task.problems()), len(benchmark.task.problems()))
            since = clock()
            evaluate(worker, tokenizer, {name: benchmark}, few, place, context, {}, Console(quiet=True))
            piece = clock() - since
            written = (place / "evaluation" / f"{name}{end}.jsonl" for end in (".problems", ""))
            problems, samples = (list(read_lines(path, [])) for path in written)
            answers[name] = sum(line["tokens"] for line in samples) / len(samples)
            since = clock()
            score(problems, samples, resamples=asked.bootstrap, level=asked.level)
            rest += piece * questions[name] / len(problems) + clock() - since
    return Measured(
        config=config,
        cores=cores,
        sampling=(sampled - began) * config["steps"] / (len(parts) * config["learner"]["epochs"]),
        learning=(ended - sampled) / len(parts) * config["steps"],
        rest=rest,
        completion=batch.metrics["rollout/length_mean"],
        answers=answers,
        questions=questions,
    )
