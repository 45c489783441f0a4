"""Evaluation: k samples of each question of each benchmark, graded, written down, and summed up.

What is written is enough to compute every metric again without the model. An evaluation that was cut continues: each
question's samples depend on the seed and the question alone.
"""

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from carerft.errors import DataError
from carerft.evaluation.self_report import QUESTION, self_reports
from carerft.metrics.scores import score
from carerft.metrics.votes import answered, collect_votes
from carerft.rollout import RolloutWorker, Sampling, completion_texts
from carerft.runs.directory import write_atomically
from carerft.tasks import Problem, Task
from carerft.tasks.encoding import encode, prompt_tokens, show_prompt
from carerft.terminal import progress_bar


@dataclass(frozen=True)
class Benchmark:
    """A task to be measured on, how long its answers may be, and what ends one, as an end-of-sequence token does."""

    task: Task
    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """How a model is measured. samples: k. limit: questions per benchmark, the first ones; None is all.
    self_report: ask the model of each majority answer whether it is true (`carerft.evaluation.self_report`)."""

    samples: int
    seed: int
    limit: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    bootstrap: int = 1000
    level: float = 0.95
    self_report: bool = False
    questions_at_once: int = 64


def evaluate(
    worker: RolloutWorker,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: dict[str, Benchmark],
    protocol: Protocol,
    directory: Path,
    context: int,
    header: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Measure the worker's model on every benchmark; returns what evaluation.json holds.

    Writes `directory/evaluation/<benchmark>.problems.jsonl`, `<benchmark>.jsonl` and `directory/evaluation.json`.
    context: tokens that the model can hold. header: what evaluation.json says of the model. Raises DataError where
    a benchmark is empty, or a prompt is too long, before anything is sampled.
    """
    place = directory / "evaluation"
    place.mkdir(parents=True, exist_ok=True)
    prepared = {}
    asked = len(tokenizer(QUESTION, add_special_tokens=False)["input_ids"]) if protocol.self_report else 0
    for name, benchmark in benchmarks.items():
        problems = benchmark.task.problems()[: protocol.limit]
        prompts = prompt_tokens(problems, tokenizer, benchmark.max_tokens + asked, context)
        prepared[name] = problems, prompts
        show_prompt(name, problems[0], prompts[0], tokenizer)
    result = {**header, "samples": protocol.samples, "seed": protocol.seed, "temperature": protocol.temperature}
    result |= {"top_p": protocol.top_p, "bootstrap": {"resamples": protocol.bootstrap, "level": protocol.level}}
    result["benchmarks"] = {}
    with progress_bar(console, "questions") as bar:
        for name, (problems, prompts) in prepared.items():
            task = bar.add_task(name, total=len(problems), shown="")
            records = _problem_records(worker, tokenizer, problems, prompts, place / f"{name}.problems.jsonl")
            path = place / f"{name}.jsonl"
            samples = _finished(path, problems, protocol.samples)
            done = len(samples) // protocol.samples
            write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples))
            bar.update(task, completed=done)
            with open(path, "a", encoding="utf-8") as file:
                for start in range(done, len(problems), protocol.questions_at_once):
                    piece = slice(start, start + protocol.questions_at_once)
                    lines = _sample(
                        worker, tokenizer, benchmarks[name], protocol, name, problems[piece], prompts[piece]
                    )
                    if protocol.self_report:
                        _add_self_reports(worker, tokenizer, problems[piece], lines, context)
                    file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                    file.flush()
                    samples += lines
                    bar.update(task, completed=min(piece.stop, len(problems)))
            result["benchmarks"][name] = score(
                records, samples, resamples=protocol.bootstrap, level=protocol.level, seed=protocol.seed
            )
    write_atomically(directory / "evaluation.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _sample(
    worker: RolloutWorker,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    protocol: Protocol,
    name: str,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
) -> list[dict[str, Any]]:
    """One record per sampled answer: the questions in order, each one's k samples together."""
    k = protocol.samples
    sampling = Sampling(benchmark.max_tokens, protocol.temperature, protocol.top_p, stop=benchmark.stop)
    rollouts = worker.sample(prompts, k, sampling, seed=protocol.seed + (zlib.crc32(name.encode()) << 20))
    texts = completion_texts(rollouts, tokenizer)
    grades = benchmark.task.grade([p for p in problems for _ in range(k)], texts)
    log_probs = (rollouts.log_probs * rollouts.mask()).sum(-1).tolist()
    return [
        {
            "problem_id": problems[i // k].id,
            "sample": i % k,
            "text": texts[i],
            "extracted": grade.extracted,
            "correct": grade.correct,
            "refused": grade.refused,
            "truncated": not bool(rollouts.finished[i]),
            "log_probability": log_probs[i],
            "tokens": int(rollouts.lengths[i]),
        }
        for i, grade in enumerate(grades)
    ]


def _add_self_reports(
    worker: RolloutWorker,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    lines: list[dict[str, Any]],
    context: int,
) -> None:
    """Give each record a `self_report`: P(True) at the sample that stands for an answer by majority, else null."""
    for line in lines:
        line["self_report"] = None
    votes = collect_votes(lines, [problem.id for problem in problems])
    owners, samples = answered(votes.answers).nonzero()
    chosen = [votes.rows[owner][sample] for owner, sample in zip(owners, samples, strict=True)]
    asked = [problems[owner] for owner in owners]
    reports = self_reports(worker, tokenizer, asked, [line["extracted"] for line in chosen], context)
    for line, report in zip(chosen, reports, strict=True):
        line["self_report"] = report


def _finished(path: Path, problems: Sequence[Problem], k: int) -> list[dict[str, Any]]:
    """The records of an evaluation that was cut, up to the last question that has all of its samples."""
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
            in_place = (
                i // k < len(problems) and record["problem_id"] == problems[i // k].id and record["sample"] == i % k
            )
        except (ValueError, KeyError):
            break
        if not in_place:
            break
        records.append(record)
    return records[: len(records) // k * k]


def _problem_records(
    worker: RolloutWorker,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    path: Path,
) -> list[dict[str, Any]]:
    """Write and return one record per problem, with MC1 and MC2 where it has choices; as recorded, if it is."""
    recorded = _recorded(path)
    asked = [(problem.id, problem.prompt, problem.answer) for problem in problems]
    if [(r["problem_id"], r["prompt"], r["answer"]) for r in recorded] == asked:
        return recorded
    owners = [i for i, problem in enumerate(problems) for _ in problem.choices]
    texts = [problem.prompt + text for problem in problems for text, _ in problem.choices]
    # As lm-evaluation-harness does it: prompt and choice are tokenised together, and what follows as many tokens as
    # the prompt has by itself is the choice. Alone, a choice could begin otherwise (SentencePiece would add a space).
    together = encode(texts, tokenizer)
    continuations = [tokens[len(prompts[i]) :] for i, tokens in zip(owners, together, strict=True)]
    for i, tokens in zip(owners, continuations, strict=True):
        if not tokens:
            raise DataError(
                f"problem {problems[i].id}: a choice adds no token to its prompt", "leave out the empty choice"
            )
    likelihoods = worker.log_likelihood([prompts[i] for i in owners], continuations) if texts else []
    scored = iter(likelihoods)
    records = []
    for problem in problems:
        record: dict[str, Any] = {
            "problem_id": problem.id,
            "prompt": problem.prompt,
            "answer": problem.answer,
            "misconceptions": list(problem.misconceptions),
        }
        if problem.aliases:
            record["aliases"] = list(problem.aliases)
        if problem.choices:
            record |= multiple_choice([next(scored) for _ in problem.choices], [true for _, true in problem.choices])
        records.append(record)
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return records


def _recorded(path: Path) -> list[dict[str, Any]]:
    """The problem records of an evaluation that was cut: scoring the choices again would take minutes."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] if path.exists() else []


def multiple_choice(log_likelihoods: Sequence[float], true: Sequence[bool]) -> dict[str, float]:
    """MC1 and MC2 of one question from its choices' log-likelihoods (nats). There is at least one true choice.

    MC1: 1 if no false choice is likelier than the first true one, the best answer; the other true ones take no part.
    MC2: the true choices' share of the choices' total probability. No length normalisation in either. TruthfulQA
    (arXiv 2109.07958, section 3), as lm-evaluation-harness computes them.
    """
    answer = log_likelihoods[list(true).index(True)]
    mc1 = all(value <= answer for value, t in zip(log_likelihoods, true, strict=True) if not t)
    best = max(log_likelihoods)
    shares = [math.exp(value - best) for value in log_likelihoods]
    mc2 = sum(s for s, t in zip(shares, true, strict=True) if t) / sum(shares)
    return {"mc1": float(mc1), "mc2": mc2}
