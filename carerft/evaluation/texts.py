"""The measurement of answers that come as text alone, from a server or from a file: no model is loaded."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from carerft.errors import DataError
from carerft.evaluation.answers import Answer
from carerft.evaluation.measurement import Benchmark, Measurement, Questions
from carerft.evaluation.recorded import Recorded
from carerft.evaluation.served import Server
from carerft.rollout import Sampling
from carerft.tasks import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextMeasurement(Measurement):
    """Measures whoever answers. questions: of each benchmark, those to which there are answers."""

    source: Server | Recorded
    questions: dict[str, Sequence[Problem]]

    def _questions(self, benchmarks: dict[str, Benchmark], place: Path) -> Mapping[str, Questions]:
        for name, problems in self.questions.items():
            if not problems:
                raise DataError(f"{name} has no question", "give its file at least one")
            if not benchmarks[name].max_tokens:
                raise DataError(
                    f"benchmark.{name}.max_tokens=0 asks for no answers, and answers are all that is measured here",
                    f"write benchmark.{name}.max_tokens=50, or leave {name} out",
                )
            if any(problem.choices for problem in problems):
                log.warning("%s: no MC1 and MC2, which need the model's probabilities of given texts", name)
        return {name: (problems, ()) for name, problems in self.questions.items()}

    def _answers(
        self, benchmark: Benchmark, problems: Sequence[Problem], start: int, sampling: Sampling, seed: int
    ) -> list[Answer]:
        rows = self.source.answers(problems, self.samples, sampling, seed + (start << 40))
        answers = [answer for row in rows for answer in row]
        if (sampling.temperature, sampling.top_p) != (1.0, 1.0):  # servers differ in what they then report
            answers = [replace(answer, log_probability=None) for answer in answers]
        return answers
