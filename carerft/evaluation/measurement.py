"""One measurement: the answers to each benchmark's questions, graded, written down, and summed up.

Where answers come from is a subclass's affair: a worker of ours (`evaluate.py`), or whoever has written them
(`texts.py`). The files are enough to compute every metric again without the model. A measurement that was interrupted
continues: each question's samples depend on the seed and the question alone.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from carerft.config.settings import EvaluationSettings
from carerft.errors import DataError
from carerft.evaluation import QUESTIONS_AT_ONCE
from carerft.evaluation.answers import Answer
from carerft.evaluation.self_report import QUESTION
from carerft.metrics.scores import score, score_together
from carerft.rollout import Sampling
from carerft.runs.directory import write_atomically
from carerft.runs.reading import read_lines
from carerft.tasks import Problem, Task
from carerft.tasks.encoding import Prompts
from carerft.tasks.replies import grade_completions
from carerft.terminal import Bar

COMBINED = "combined"
"""The name under which evaluation.json holds the calibration of `evaluation.combine`'s benchmarks together."""
Record = dict[str, Any]
"""One line of a file of the evaluation."""
Questions = tuple[Sequence[Problem], Iterable[list[int]]]
"""Problems and, where a model of ours answers, their prompts as tokens."""


@dataclass
class Benchmark:
    """A task that a model is measured on. max_tokens: where a completion is cut; 0: none is sampled, and the choices'
    likelihoods alone count. stop: strings that end one, as an end-of-sequence token does."""

    task: Task
    max_tokens: int
    stop: tuple[str, ...] = ()
    _prompts: Prompts | None = None

    def prompts(
        self, tokenizer: PreTrainedTokenizerBase, settings: EvaluationSettings, context: int
    ) -> tuple[Sequence[Problem], Prompts]:
        """The problems that are asked, the first `limit`, and prompts, of which theirs are tokenised. They are kept: an
        evaluation during the training asks them again.

        context: tokens that the model can hold. Raises DataError.
        """
        if self._prompts is None or self._prompts.longest + self._prompts.max_tokens > context:
            reserved = self.max_tokens
            if settings.self_report:
                reserved += len(tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
            problems = self.task.problems()
            check_choices(problems, self.max_tokens)
            self._prompts = Prompts(problems, tokenizer, reserved, context)
        problems = self._prompts.problems[: settings.limit]
        self._prompts.prepare(range(len(problems)))
        return problems, self._prompts

    def tokens(self, indices: range) -> list[list[int]]:
        """The prompts of some of the problems that `prompts` returned, without making all of these again."""
        assert self._prompts is not None
        return [self._prompts[i] for i in indices]


def check_choices(problems: Sequence[Problem], max_tokens: int) -> None:
    """Raises DataError where no answers are sampled, and a problem has no choices to be measured by."""
    if not max_tokens and (bare := next((problem.id for problem in problems if not problem.choices), None)):
        raise DataError(
            f"max_tokens=0 measures by the likelihoods of choices alone, as TruthfulQA has them, and problem "
            f"{bare} has none",
            "write the benchmark's max_tokens=512, or as many as an answer needs",
        )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What every measurement has. samples: k, answers to each question."""

    settings: EvaluationSettings
    samples: int
    seed: int
    questions_at_once: int = QUESTIONS_AT_ONCE["transformers"]

    def evaluate(
        self,
        benchmarks: dict[str, Benchmark],
        directory: Path,
        header: dict[str, Any],
        console: Console,
        place: Path | None = None,
    ) -> dict[str, Any]:
        """Measure the model on every benchmark; returns what evaluation.json holds.

        Writes `<benchmark>.problems.jsonl` and `<benchmark>.jsonl` in `place` (None: `directory/evaluation`), and
        `directory/evaluation.json`. header: what evaluation.json says of the model. Raises DataError where a benchmark
        is empty, or a prompt is too long, before anything is sampled.
        """
        settings, place = self.settings, place or directory / "evaluation"
        statistics = settings.bootstrap, settings.level, self.seed
        place.mkdir(parents=True, exist_ok=True)
        questions = self._questions(benchmarks, place)
        result = {**header, "samples": self.samples, "seed": self.seed, "temperature": settings.temperature}
        result |= {"top_p": settings.top_p, "bootstrap": {"resamples": settings.bootstrap, "level": settings.level}}
        result["benchmarks"] = {}
        recorded: dict[str, tuple[Sequence[Record], Sequence[Record]]] = {}
        with Bar(console, "questions") as bar:
            for name, (problems, prompts) in questions.items():
                problem_records = self._problem_records(problems, prompts, place / f"{name}.problems.jsonl", bar)
                sampled = problems if benchmarks[name].max_tokens else []
                records = self._samples(name, benchmarks[name], sampled, place / f"{name}.jsonl", bar)
                if name in (settings.combine or ()):
                    recorded[name] = problem_records, records
                result["benchmarks"][name] = score(problem_records, records, *statistics)
        if settings.combine:
            parts = {name: recorded[name] for name in settings.combine}
            result["benchmarks"][COMBINED] = score_together(parts, *statistics)
        write_atomically(directory / "evaluation.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        return result

    def _samples(
        self, name: str, benchmark: Benchmark, problems: Sequence[Problem], path: Path, bar: Progress
    ) -> list[Record]:
        """Write the file of these questions' answers as they come, and return what it then holds."""
        if not problems:
            write_atomically(path, "")
            return []
        records = _recorded(path, problems, self.samples)
        done = len(records) // self.samples
        write_atomically(path, json_lines(records))
        sampling = Sampling(benchmark.max_tokens, self.settings.temperature, self.settings.top_p, stop=benchmark.stop)
        seed = self.seed + (zlib.crc32(name.encode()) << 20)
        task = bar.add_task(name, total=len(problems), completed=done)
        with open(path, "a", encoding="utf-8") as file:
            for start in range(done, len(problems), self.questions_at_once):
                asked = problems[start : start + self.questions_at_once]
                made = self._records(benchmark, asked, self._answers(benchmark, asked, start, sampling, seed))
                file.write(json_lines(made))
                file.flush()
                records += made
                bar.update(task, completed=start + len(asked))
        return records

    def _questions(self, benchmarks: dict[str, Benchmark], place: Path) -> Mapping[str, Questions]:
        """The questions to ask, by benchmark. Raises CareError before anything is asked."""
        raise NotImplementedError

    def _answers(
        self, benchmark: Benchmark, problems: Sequence[Problem], start: int, sampling: Sampling, seed: int
    ) -> list[Answer]:
        """k neighbouring answers to each of these questions, of which the first is the benchmark's start-th. seed: of
        the benchmark."""
        raise NotImplementedError

    def _problem_records(
        self, problems: Sequence[Problem], prompts: Iterable[list[int]], path: Path, bar: Progress
    ) -> list[Record]:
        """Write one record per problem, and return them."""
        records = [problem_record(problem) for problem in problems]
        write_atomically(path, json_lines(records))
        return records

    def _records(self, benchmark: Benchmark, problems: Sequence[Problem], answers: Sequence[Answer]) -> list[Record]:
        """One record per answer."""
        k = self.samples
        asked, finished = [p for p in problems for _ in range(k)], [answer.finished is not False for answer in answers]
        texts = [answer.text for answer in answers]
        grades = grade_completions(benchmark.task, asked, texts, finished, self.settings.count_truncated)
        asks = getattr(benchmark.task, "without_confidence", None) is not None
        return [
            {
                "problem_id": problems[i // k].id,
                "sample": i % k,
                "text": answer.text,
                "extracted": grade.extracted,
                "correct": grade.correct,
                "refused": grade.refused,
                **({} if (any_words := grade.refused_in_any_words) is None else {"refused_in_any_words": any_words}),
                **({"stated_confidence": grade.confidence} if asks else {}),
                "truncated": None if answer.finished is None else not answer.finished,
                "log_probability": answer.log_probability,
                "tokens": answer.tokens,
            }
            for i, (answer, grade) in enumerate(zip(answers, grades, strict=True))
        ]


def problem_record(problem: Problem) -> Record:
    """What is written down of a problem, without the scores of its choices."""
    record: Record = {
        "problem_id": problem.id,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "misconceptions": list(problem.misconceptions),
    }
    if problem.aliases:
        record["aliases"] = list(problem.aliases)
    return record


def json_lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _recorded(path: Path, problems: Sequence[Problem], k: int) -> list[Record]:
    """The records of an interrupted evaluation, up to the last question that has all of its samples."""
    expected = ((problem.id, sample) for problem in problems for sample in range(k))
    records: list[Record] = []
    for record, key in zip(read_lines(path, []), expected, strict=False):
        if (record.get("problem_id"), record.get("sample")) != key:
            break
        records.append(record)
    return records[: len(records) // k * k]
