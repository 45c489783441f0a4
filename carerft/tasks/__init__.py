"""Tasks: where problems come from and how an answer to one is graded.

A task serves training (its grade is the reward) and evaluation (its grade is what the metrics count). Adding one takes
one file here (load, prompt, grade) and one YAML file in `conf/task/` that names it with `_target_`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Problem:
    """One question, as the model sees it.

    id: unique within its task and stable between runs.
    prompt: the exact text given to the model.
    answer: the gold answer; None for a question without one, where refusing is correct.
    misconceptions: wrong answers that many people believe.
    choices: (continuation of the prompt, whether it is true) pairs, for scoring by likelihood (TruthfulQA's MC1 and
        MC2). The first true one is the best answer, which MC1 asks for.
    aliases: other correct answers.
    messages: the turns of a conversation, {"role": ..., "content": ...} each, for the model's chat template; empty: the
        prompt is the one turn.
    columns: the fields of its row, for graders and rewards of a user's own.
    untemplated: the prompt before it was put into a chat template; None: the prompt as it is.
    """

    id: str
    prompt: str
    answer: str | None
    misconceptions: tuple[str, ...] = ()
    choices: tuple[tuple[str, bool], ...] = ()
    aliases: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = field(default=(), hash=False)
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    untemplated: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Grade:
    """A grader's judgement of one completion.

    extracted: the answer in a canonical form, so that equivalent answers are equal strings and can vote together;
        None if the completion gives no answer. A refusal is not an answer: it has `refused=True, extracted=None`.
    correct: whether the answer is right; None if the grader could not tell ("no verdict": counted, never a 0).
        On a problem without an answer, refusing is correct.
    confidence: the probability of being right that the completion states, in [0, 1]; None where it states none that can
        be read, or was not asked to (`carerft.tasks.confidence`).
    refused: by the benchmark's own rule. refused_in_any_words: by `carerft.tasks.refusals`; None where no one looked.
    """

    extracted: str | None
    correct: bool | None
    refused: bool = False
    refused_in_any_words: bool | None = field(default=None, compare=False)
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class LazyProblems(Sequence[Problem]):
    """Problems, each made where it is used: ten million of them need no more memory than what they are made of.

    make: from the position among them, 0 to size - 1.
    """

    size: int
    make: Callable[[int], Problem]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        positions = range(self.size)[index]
        return [self.make(i) for i in positions] if isinstance(positions, range) else self.make(positions)


class Task(Protocol):
    """A dataset and its grader.

    A task that ignores everything after some text (such as the beginning of another question) has that text in an
    attribute `until`; evaluation stops sampling there. One that asks for a confidence after the answer has a
    function in `without_confidence` which takes its statements out of a reply, as that of `carerft.tasks.confidence`.
    """

    @property
    def name(self) -> str: ...

    def problems(self) -> Sequence[Problem]:
        """All problems, in a fixed order. Raises DataError (absent, empty or malformed data; names file and line)."""
        ...

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """One grade per (problem, completion text) pair, in order. The text is hostile input."""
        ...
