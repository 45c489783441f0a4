"""The measurement of answers that come as text alone, from a server or from a file: no model is loaded."""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from carerft.config.settings import EvaluationSettings
from carerft.errors import DataError
from carerft.evaluation.answers import Answer, Source
from carerft.evaluation.measurement import Benchmark, Measurement
from carerft.rollout import Sampling
from carerft.tasks import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextMeasurement(Measurement):
    """Measures whoever answers. questions: of each benchmark, those to which there are answers."""

    source: Source
    questions: dict[str, Sequence[Problem]]
    settings: EvaluationSettings
    samples: int
    seed: int
    questions_at_once: int = 64

    def _questions(self, benchmarks: dict[str, Benchmark], place: Path) -> dict[str, Sequence[Problem]]:
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
        return self.questions

    def _answers(self, name: str, benchmark: Benchmark, problems: Sequence[Problem], start: int) -> list[Answer]:
        sampling = Sampling(benchmark.max_tokens, self.settings.temperature, self.settings.top_p, stop=benchmark.stop)
        seed = self.seed + (zlib.crc32(name.encode()) << 20) + (start << 40)
        answers = [answer for row in self.source.answers(problems, self.samples, sampling, seed) for answer in row]
        if (self.settings.temperature, self.settings.top_p) != (1.0, 1.0):  # servers differ in what they then report
            answers = [replace(answer, log_probability=None) for answer in answers]
        return answers
