"""Choices are scored in portions: the bar moves, a kill loses one portion, and the numbers are those of one call."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from carerft.config.settings import EvaluationSettings, ModelSettings
from carerft.evaluation.evaluate import Evaluator
from carerft.model.loading import choose_device, load_model
from carerft.rollout.transformers import TransformersWorker
from carerft.tasks.encoding import encode
from carerft.tasks.world import WorldTask
from carerft.terminal import Bar

QUESTIONS = 60


class Worker:
    """Scores by another worker, says when, and is killed after some calls. portions: whether it names its batches."""

    def __init__(self, inner: TransformersWorker, portions: bool, calls: int = 1000):
        self.inner, self.calls, self.scored = inner, calls, 0
        if portions:
            self.likelihood_batches = inner.likelihood_batches

    def log_likelihood(self, prompts, continuations):
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.scored += len(prompts)
        return self.inner.log_likelihood(prompts, continuations)


@dataclass
class Scoring:
    """The built-in world's questions with choices, and a worker of the built-in model."""

    inner: TransformersWorker
    tokenizer: object
    problems: list = field(default_factory=lambda: WorldTask(part="truth", split="test").problems()[:QUESTIONS])

    def records(self, worker, path: Path, bar=None) -> list[dict]:
        prompts = encode([problem.prompt for problem in self.problems], self.tokenizer)  # type: ignore[arg-type]
        evaluator = Evaluator(
            worker, self.tokenizer, context=512, settings=EvaluationSettings(), samples=1, seed=0, questions_at_once=7  # type: ignore[arg-type]
        )  # fmt: skip
        return evaluator._problem_records(self.problems, prompts, path, bar or Progress(disable=True))


@pytest.fixture(scope="module")
def scoring() -> Scoring:
    policy, tokenizer = load_model(ModelSettings(name="tiny", path="world"), choose_device("cpu"))
    return Scoring(TransformersWorker(policy, [0], 0, batch_size=16), tokenizer)


@pytest.mark.parametrize("mixes", [True, False])
def test_portions_score_to_the_last_bit_as_all_at_once(scoring: Scoring, tmp_path: Path, mixes: bool, monkeypatch):
    monkeypatch.setattr(scoring.inner, "mixes_lengths", mixes)
    prompts = encode([p.prompt for p in scoring.problems for _ in p.choices], scoring.tokenizer)  # type: ignore[arg-type]
    together = encode([p.prompt + text for p in scoring.problems for text, _ in p.choices], scoring.tokenizer)  # type: ignore[arg-type]
    continuations = [tokens[len(prompt) :] for prompt, tokens in zip(prompts, together, strict=True)]
    expected = scoring.inner.log_likelihood(prompts, continuations)
    worker, seen = Worker(scoring.inner, portions=True), {}
    batches = worker.likelihood_batches(prompts, continuations)
    assert len(batches) > 5 and sorted(i for batch in batches for i in batch) == list(range(len(prompts)))
    for batch in batches:
        scores = worker.log_likelihood([prompts[i] for i in batch], [continuations[i] for i in batch])
        seen |= zip(batch, scores, strict=True)
    assert [seen[i] for i in range(len(prompts))] == expected
    (records := scoring.records(worker, tmp_path / "x.problems.jsonl"))
    assert len(records) == QUESTIONS and all("mc2" in record for record in records)


@pytest.mark.parametrize("portions", [True, False])
def test_a_killed_scoring_goes_on(scoring: Scoring, tmp_path: Path, portions: bool):
    whole = Worker(scoring.inner, portions)
    expected = scoring.records(whole, tmp_path / "whole.problems.jsonl")
    path, scores = tmp_path / "cut.problems.jsonl", tmp_path / "cut.choices.jsonl"
    first = Worker(scoring.inner, portions, calls=3)
    with pytest.raises(KeyboardInterrupt):
        scoring.records(first, path)
    assert not path.exists() and scores.read_text().count("\n") == 3
    with open(scores, "a") as file:  # as a kill leaves it
        file.write(scores.read_text().splitlines()[0][:50])
    rest = Worker(scoring.inner, portions)
    assert scoring.records(rest, path) == expected
    assert rest.scored == whole.scored - first.scored > 0 and first.scored > 0
    assert path.read_bytes() == (tmp_path / "whole.problems.jsonl").read_bytes()
    assert not scores.exists()  # its numbers are in the other file


def test_scores_of_other_questions_are_not_taken(scoring: Scoring, tmp_path: Path):
    first = Worker(scoring.inner, portions=True, calls=3)
    with pytest.raises(KeyboardInterrupt):
        scoring.records(first, tmp_path / "x.problems.jsonl")
    other = Scoring(scoring.inner, scoring.tokenizer, scoring.problems[1:])
    worker = Worker(scoring.inner, portions=True)
    other.records(worker, tmp_path / "x.problems.jsonl")
    assert worker.scored == sum(len(problem.choices) for problem in other.problems)


@pytest.mark.parametrize("portions", [True, False])
def test_the_bar_moves(scoring: Scoring, tmp_path: Path, portions: bool):
    seen = []
    with Bar(Console(file=io.StringIO()), "questions") as bar:

        class Watched(Worker):
            def log_likelihood(self, prompts, continuations):
                seen.append(bar.tasks[0].completed)
                return super().log_likelihood(prompts, continuations)

        scoring.records(Watched(scoring.inner, portions), tmp_path / "x.problems.jsonl", bar)
        (task,) = bar.tasks
    assert (task.description, task.total, task.completed) == ("x, choices", QUESTIONS, QUESTIONS)
    assert seen == sorted(set(seen)) and seen[0] == 0 and len(seen) > 5


def test_problems_without_choices_are_not_scored(scoring: Scoring, tmp_path: Path):
    plain = WorldTask(part="reasoning", split="test").problems()[:3]
    records = Scoring(scoring.inner, scoring.tokenizer, plain).records(None, tmp_path / "x.problems.jsonl")
    assert [json.loads(line) for line in (tmp_path / "x.problems.jsonl").read_text().splitlines()] == records
    assert [path.name for path in tmp_path.iterdir()] == ["x.problems.jsonl"]
