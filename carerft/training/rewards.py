"""Rewards: one number for each completion, the weighted sum of one or more functions.

This package's are `correctness`, the grader's verdict as 1 or 0; `ternary`, which sets refusing apart from a wrong
answer (TruthRL, arXiv 2509.25760); and `calibrated`, correctness and a proper score of the confidence that the
completion states (RLCR, arXiv 2507.16806). The others are functions of a user's own with the signature of TRL's
GRPOTrainer, `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, where `columns` are the columns
of the data, and `grades` the grader's (`carerft.tasks.Grade`). None is no verdict: the other functions decide, and
where all that have a weight are silent the completion has no reward.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from carerft.config.functions import is_reference
from carerft.config.settings import RewardSettings
from carerft.errors import ConfigError, UserCodeError
from carerft.processes.functions import FunctionFault, Metrics, OwnFunctions, log_extra
from carerft.tasks import Grade, Problem, Task
from carerft.tasks.refusals import refuses
from carerft.tasks.replies import free_text, open_tag

TAKEN = {
    "correctness": "the grader's verdict as a reward",
    "ternary": "TruthRL's reward",
    "calibrated": "RLCR's reward",
    "total": "the rewards' weighted sum, in samples/",
}
OWN = tuple(TAKEN)[:-1]
"""The rewards of this package."""
LARGEST = torch.finfo(torch.float32).max
LARGEST_SUM = 1e15
"""Of a completion's weighted rewards: float32 has to hold the squares of a group's, for its standard deviation."""
LOGGED = ("mean", "std", "no_verdict", "equal_groups", "overlong_penalty")  # reward/NAME is the run's own
RESERVED = ("prompts", "completions", "completion_ids", "grades", "trainer_state", "log_metric", "log_extra")


def name_of(function: str) -> str:
    """What metrics call a reward function: `score` of `mine.py:score`."""
    return function.rpartition(":")[2]


def check_rewards(settings: RewardSettings) -> None:
    """Raises ConfigError."""
    functions, weights = settings.functions, settings.weights
    if not functions:
        raise ConfigError("reward.functions is empty", "write reward=correctness, or reward=mine.py:score")
    for function in functions:
        if function not in OWN and not is_reference(function):
            raise ConfigError(
                f"reward.functions={function}: there is no such reward",
                f"write {', '.join(OWN)}, or a function of your own: mine.py:score",
            )
        if is_reference(function) and not (file := Path(function.rpartition(":")[0]).expanduser()).is_file():
            raise ConfigError(f"reward.functions={function}: there is no file {file}", "write FILE.py:FUNCTION")
        if is_reference(function) and name_of(function) in TAKEN:
            raise ConfigError(
                f"reward.functions={function}: {name_of(function)!r} is the name of {TAKEN[name_of(function)]}",
                "give the function another name",
            )
    names = [name_of(function) for function in functions]
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise ConfigError(
            f"reward.functions has two rewards of the name {twice[0]}: their metrics could not be told apart",
            "give one of the functions another name",
        )
    if weights is not None and len(weights) != len(functions):
        raise ConfigError(
            f"reward.weights has {len(weights)} numbers for {len(functions)} reward.functions", "write one for each"
        )
    values = [settings.right, settings.refused, settings.wrong]
    if "ternary" in functions and not (_usable(values) and len(set(values)) > 1):
        raise ConfigError(
            f"reward.right={values[0]} reward.refused={values[1]} reward.wrong={values[2]}: no completion would earn "
            "more than another",
            f"write numbers up to {LARGEST_SUM:g}, not all of them equal; TruthRL's are 1, 0 and -1",
        )
    if weights is not None and not (_usable(weights) and any(weights)):
        raise ConfigError(
            f"reward.weights={weights}: no completion would earn more than another",
            f"write numbers up to {LARGEST_SUM:g}, not all of them 0",
        )


def _usable(values: Sequence[float]) -> bool:
    return all(abs(value) <= LARGEST_SUM for value in values)  # NaN is not


def check_asked(settings: RewardSettings, task: Task) -> None:
    """Raises ConfigError where a reward needs what the task's prompt doesn't ask for."""
    if "calibrated" in settings.functions and getattr(task, "without_confidence", None) is None:
        raise ConfigError(
            f"reward=calibrated with task={task.name}: its prompt asks for no confidence, and every completion would "
            "get the worst score",
            "write model.confidence=true or task.prompt=confidence, or a template of your own with confidence: true",
        )


@dataclass(frozen=True)
class Scored:
    """total: (N,) float32, NaN without a verdict. parts: the same of each function, by its name. logged: what functions
    have given to TRL's `log_metric`."""

    total: Tensor
    parts: dict[str, Tensor]
    logged: dict[str, float]


class Rewards:
    """The reward functions of a run. Those of a user's own run in a process of theirs, which starts here.

    Raises ConfigError if a file cannot be run, or has no such function.
    """

    def __init__(self, settings: RewardSettings):
        check_rewards(settings)
        self.settings = settings
        self.weights = [1.0] * len(settings.functions) if settings.weights is None else list(settings.weights)
        self._own = [function for function in settings.functions if is_reference(function)]
        self._functions = OwnFunctions(self._own, "reward.functions") if self._own else None

    def __call__(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        completion_ids: Sequence[list[int]],
        grades: Sequence[Grade],
        state: dict[str, int],
        until: str | None = None,
    ) -> Scored:
        """Score N completions. state: `global_step` and `max_steps`, as of TRL's `trainer_state`. until: where the
        task's replies end.

        Raises UserCodeError, which names the function, the problem and the completion.
        """
        scores: dict[str, list[float | None]] = {
            "correctness": [None if g.correct is None else float(g.correct) for g in grades],
            "ternary": [
                ternary(self.settings, grade, free_text(open_tag(problem.prompt) + text, until))
                for grade, problem, text in zip(grades, problems, texts, strict=True)
            ],
            "calibrated": [calibrated(self.settings, g) for g in grades],
        }
        logged: dict[str, float] = {}
        if self._own:
            given = arguments(problems, texts, completion_ids, grades)
            given |= {"trainer_state": SimpleNamespace(**state), "log_metric": Metrics(), "log_extra": log_extra}
            own, logged = self._scores(given, problems, texts)
            scores |= zip(self._own, own, strict=True)
        parts = {
            name_of(function): torch.tensor([math.nan if score is None else float(score) for score in scores[function]])
            for function in self.settings.functions
        }
        table = torch.stack(list(parts.values()))
        total = torch.nansum(table * torch.tensor(self.weights)[:, None], dim=0)
        counts = torch.tensor(self.weights) != 0  # what is only logged gives no verdict
        total[table[counts].isnan().all(0)] = math.nan
        if large := (total.abs() > LARGEST_SUM).nonzero().flatten().tolist():
            raise UserCodeError(
                f"reward: {problems[large[0]].id} and the completion {texts[large[0]][:200]!r} earn "
                f"{float(total[large[0]]):g}, beyond the {LARGEST_SUM:g} of which an advantage can be computed",
                "return smaller rewards, or write smaller reward.weights; the same command goes on from here",
            )
        return Scored(total, parts, logged)

    def _scores(
        self, given: dict[str, Any], problems: Sequence[Problem], texts: Sequence[str]
    ) -> tuple[list[list[float | None]], dict[str, float]]:
        """What the user's functions return, each checked, and what they log. Each gets a copy of its arguments."""
        assert self._functions is not None
        scores, logged = [], {}
        for number, function in enumerate(self._own):
            try:
                values, own = self._functions.call(number, given, self.settings.timeout_s)
            except FunctionFault as fault:
                raise self._explained(fault, number, given, problems, texts) from fault
            if not isinstance(values, list) or len(values) != len(texts):
                what = f"{len(values)} numbers" if isinstance(values, list) else f"{values!r:.100}"
                raise _failed(function, f"returned {what} for {len(texts)} completions", f"{problems[0].id} and others")
            for problem, text, value in zip(problems, texts, values, strict=True):
                if value is not None and not (isinstance(value, int | float) and abs(value) <= LARGEST):
                    raise _failed(
                        function, f"returned {value!r:.100}", f"{problem.id} and the completion {text[:200]!r}"
                    )
            scores.append(values)
            logged |= own
        if hidden := next((name for name in logged if name in LOGGED), None):
            raise UserCodeError(
                f"reward {' and '.join(self._own)}: log_metric({hidden!r}, ...) would hide reward/{hidden} of the run",
                "log it by another name; the same command goes on from here",
            )
        return scores, logged

    def _explained(
        self,
        fault: FunctionFault,
        number: int,
        given: dict[str, Any],
        problems: Sequence[Problem],
        texts: Sequence[str],
    ) -> UserCodeError:
        """The error that names the first completion on which the function fails alone, if there is one."""
        if fault.ended:
            remedy = "mend what hangs, or allow more time: reward.timeout_s=1200" if "no answer" in str(fault) else ""
            return UserCodeError(
                f"reward {self._own[number]}: {fault}",
                f"{remedy or 'see its messages above'}. The same command goes on from here",
            )
        where = f"{problems[0].id} and others: {len(texts)} completions together; each alone goes well"
        for i, (problem, text) in enumerate(zip(problems, texts, strict=True)):
            one = {key: [value[i]] if isinstance(value, list) else value for key, value in given.items()}
            try:
                assert self._functions is not None
                self._functions.call(number, one, self.settings.timeout_s)
            except FunctionFault:
                where = f"{problem.id} and the completion {text[:200]!r}"
                break
        return _failed(self._own[number], f"failed: {fault}", where)


def ternary(settings: RewardSettings, grade: Grade, reply: str) -> float | None:
    """`right`, `refused` or `wrong`; None without a verdict. Where the grader knows no refusals (MATH, GSM8K), a reply
    without an answer that refuses in any words (`carerft.tasks.refusals`) is one. reply: of `free_text`."""
    if grade.correct is None:
        return None
    if grade.correct:
        return settings.right
    refused = grade.refused or (grade.extracted is None and refuses(reply))
    return settings.refused if refused else settings.wrong


def calibrated(settings: RewardSettings, grade: Grade) -> float | None:
    """1 or 0 for the answer, plus the proper score of the stated confidence; None without a verdict.

    Each score is best, 0, where the confidence was 1 in what came true, and worst, -1, where it was 0. These bounds are
    what RLCR's theorem asks for: the expected reward rises with the chance of the answer, so that the likeliest answer
    with its true chance is best. Of an unbounded log score an answer that is surely wrong would be better than one that
    is right one time in four.
    """
    if grade.correct is None:
        return None
    if grade.confidence is None:
        return float(grade.correct) - 1.0
    return float(grade.correct) + proper_score(settings, grade.confidence if grade.correct else 1 - grade.confidence)


def proper_score(settings: RewardSettings, given: float) -> float:
    """The score in [-1, 0] of having given the outcome that came true this probability."""
    match settings.score:
        case "brier":
            return -((1 - given) ** 2)
        case "spherical":
            return given / math.hypot(given, 1 - given) - 1
    clip = settings.log_clip
    best, worst = math.log(1 - clip), math.log(clip)
    return (math.log(min(max(given, clip), 1 - clip)) - best) / (best - worst)


def arguments(
    problems: Sequence[Problem], texts: Sequence[str], completion_ids: Sequence[list[int]], grades: Sequence[Grade]
) -> dict[str, Any]:
    """What TRL gives its reward functions: prompts and completions as texts or, where the data holds conversations, as
    messages; each column of the data as a list, with None where a row lacks it. Without a column `answer`, that is the
    gold answer."""
    columns = dict.fromkeys(name for problem in problems for name in problem.columns if name not in RESERVED)
    return {
        **{name: [problem.columns.get(name) for problem in problems] for name in columns},
        **({} if "answer" in columns else {"answer": [problem.answer for problem in problems]}),
        "prompts": [[dict(turn) for turn in p.messages] if p.messages else p.untemplated or p.prompt for p in problems],
        "completions": [
            [{"role": "assistant", "content": text}] if problem.messages else text
            for problem, text in zip(problems, texts, strict=True)
        ],
        "completion_ids": list(completion_ids),
        "grades": list(grades),
    }


def _failed(function: str, what: str, where: str) -> UserCodeError:
    remedy = "correct the function"
    if what.startswith("returned"):
        remedy += ": a list of one finite number, or None for no verdict, for each completion"
    return UserCodeError(
        f"reward {function} {what}, on problem {where}", f"{remedy}; the same command goes on from here"
    )
