"""Rewards: one number for each completion, the weighted sum of one or more functions.

`correctness`, the grader's verdict as 1 or 0, is this package's. The others are functions of a user's own with the
signature of TRL's GRPOTrainer, `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, where
`columns` are the columns of the data, and `grades` the grader's (`carerft.tasks.Grade`). None is no verdict: the other
functions decide, and where all are silent the completion has no reward.
"""

import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carerft.config.functions import is_reference
from carerft.config.settings import RewardSettings
from carerft.errors import ConfigError, UserCodeError
from carerft.tasks import Grade, Problem

OWN = ("correctness",)
START_SECONDS = 600.0
"""For a file's imports, such as of a reward model."""
LARGEST = torch.finfo(torch.float32).max
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
        if self._own:
            self._start()

    def __call__(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        completion_ids: Sequence[list[int]],
        grades: Sequence[Grade],
        state: dict[str, int],
    ) -> Scored:
        """Score N completions. state: `global_step` and `max_steps`, as of TRL's `trainer_state`.

        Raises UserCodeError, which names the function, the problem and the completion.
        """
        scores = {"correctness": [None if g.correct is None else float(g.correct) for g in grades]}
        logged: dict[str, float] = {}
        if self._own:
            given = arguments(problems, texts, completion_ids, grades) | {"trainer_state": state}
            own, logged = self._scores(given, problems, texts)
            scores |= zip(self._own, own, strict=True)
        parts = {
            name_of(function): torch.tensor([math.nan if score is None else float(score) for score in scores[function]])
            for function in self.settings.functions
        }
        table = torch.stack(list(parts.values()))
        total = torch.nansum(table * torch.tensor(self.weights)[:, None], dim=0)
        total[table.isnan().all(0)] = math.nan
        return Scored(total, parts, logged)

    def _scores(
        self, given: dict[str, Any], problems: Sequence[Problem], texts: Sequence[str]
    ) -> tuple[list[list[float | None]], dict[str, float]]:
        if self._process.poll() is not None:
            self._start()
        kind, answer = self._exchange(given, self.settings.timeout_s)
        if kind == "error":
            number, words = answer
            which = self._culprit(given, number)
            where = f"{problems[0].id} and others: {len(texts)} completions together; each alone goes well"
            if which is not None:
                where = f"{problems[which].id} and the completion {texts[which][:200]!r}"
            raise _failed(self._own[number], f"failed: {words}", where)
        scores, logged = answer
        for function, values in zip(self._own, scores, strict=True):
            if not isinstance(values, list) or len(values) != len(texts):
                what = f"{len(values)} numbers" if isinstance(values, list) else f"a {type(values).__name__}"
                raise _failed(function, f"returned {what} for {len(texts)} completions", f"{problems[0].id} and others")
            for problem, text, value in zip(problems, texts, values, strict=True):
                if value is not None and not (isinstance(value, int | float) and abs(value) <= LARGEST):
                    raise _failed(
                        function, f"returned {value!r:.100}", f"{problem.id} and the completion {text[:200]!r}"
                    )
        return scores, logged

    def _culprit(self, given: dict[str, Any], number: int) -> int | None:
        """The first completion on which the function fails alone; None if it fails on none."""
        count = len(given["completions"])
        for i in range(count):
            one = {key: [value[i]] if isinstance(value, list) else value for key, value in given.items()}
            kind, answer = self._exchange(one, self.settings.timeout_s)
            if kind == "error" and answer[0] == number:
                return i
        return None

    def _start(self) -> None:
        self._connection, remote = Pipe()
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "carerft.training.reward_process", str(remote.fileno())],
            stdin=subprocess.DEVNULL, pass_fds=[remote.fileno()], start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        remote.close()
        self._end = weakref.finalize(self, _kill, self._process)
        kind, answer = self._exchange(self._own, START_SECONDS)
        if kind == "error":
            raise ConfigError(answer[1], "correct the file, or the name")

    def _exchange(self, message: Any, seconds: float) -> tuple[str, Any]:
        """Raises UserCodeError if no answer comes in time, or the process has ended."""
        functions = " and ".join(self._own)
        try:
            self._connection.send(message)
            if not self._connection.poll(seconds):
                self._end()
                raise UserCodeError(
                    f"reward {functions}: no answer within {seconds:g} s; the process was ended",
                    "mend what hangs, or allow more time: reward.timeout_s=600. The same command goes on from here",
                )
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self._end()
            raise UserCodeError(
                f"reward {functions}: the process that runs it has ended (exit status {self._process.wait()})",
                "see its messages above. The same command goes on from here",
            ) from error


def arguments(
    problems: Sequence[Problem], texts: Sequence[str], completion_ids: Sequence[list[int]], grades: Sequence[Grade]
) -> dict[str, Any]:
    """What TRL gives its reward functions: prompts and completions as texts or, where the data holds conversations, as
    messages; each column of the data as a list, with None where a row lacks it."""
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
    return UserCodeError(
        f"reward {function} {what}, on problem {where}", "correct the function; the same command goes on from here"
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
