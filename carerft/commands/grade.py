"""`carerft grade`: grades answers from any source.

JSON lines `{"id", "gold", "text"}` in, `{"id", "verdict", "extracted", "why"}` out, in the same order.
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from carerft.commands.arguments import argument, read, refuse
from carerft.errors import ConfigError, DataError
from carerft.grading.grader import Verdict, grade_answers
from carerft.grading.mathematics import canonical, final_answer, normalise, number
from carerft.grading.pool import Pool
from carerft.tasks.files import read_rows
from carerft.tasks.gsm8k import extracted_number


def _grade_numbers(pairs: list[tuple[str, str | None]], pool: Pool | None) -> list[Verdict]:
    def verdict(gold: str, answer: str | None) -> Verdict:
        if answer is None:
            return Verdict(False, "no number found", None)
        value = number(normalise(gold.rpartition("####")[2].strip()))
        if value is None:
            return Verdict(None, "the gold answer is no number", answer)
        equal = answer == canonical(gold.rpartition("####")[2].strip())
        return Verdict(equal, "equal as a number" if equal else "different as a number", answer)

    return [verdict(*pair) for pair in pairs]


Grader = Callable[[list[tuple[str, str | None]], Pool | None], list[Verdict]]
GRADERS: dict[str, tuple[Callable[[str, bool], str | None], Grader]] = {
    "math": (final_answer, grade_answers),
    "gsm8k": (extracted_number, _grade_numbers),
}
"""benchmark: (what finds the answer in a text, in the narrow way or not; what grades it)."""


def grade_file(
    benchmark: str, source: Path, target: Path, pool: Pool | None = None, extraction: str = "flexible"
) -> Counter[str]:
    """Grade every line of source and write the verdicts to target, in the same order; returns how many of each.

    benchmark: a key of GRADERS. extraction: where the answer is looked for, as the benchmark's task has it. The whole
    file is graded before target is written, and then renamed into place.
    Raises ConfigError (unknown benchmark) and DataError (source absent, malformed; target unwritable).
    """
    if benchmark not in GRADERS:
        raise ConfigError(f"benchmark={benchmark} has no grader of texts", f"write one of {', '.join(GRADERS)}")
    find, grade = GRADERS[benchmark]
    names, pairs = [], []
    for row in read_rows(source):
        if "id" not in row.fields:
            raise DataError(
                f"{row.location}: no field 'id'", 'every line must be {"id": ..., "gold": ..., "text": ...}'
            )
        names.append(row.fields["id"])
        pairs.append((row.text("gold"), find(row.text("text"), extraction != "flexible")))
    verdicts = grade(pairs, pool)
    lines = (
        json.dumps({"id": name, "verdict": verdict.name, "extracted": answer and answer[:2000], "why": verdict.why})
        for name, (_, answer), verdict in zip(names, pairs, verdicts, strict=True)
    )
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"output={target}: {error.strerror}", "give a path that can be written to") from error
    return Counter(verdict.name for verdict in verdicts)


ABOUT = """usage: carerft grade benchmark=BENCHMARK input=FILE output=FILE

Grade mathematical answers from any source. A verdict is correct, wrong or none; hostile answers are refused.
input holds lines {"id", "gold", "text"}; output gets {"id", "verdict", "extracted", "why"} in the same order.

example:
  carerft grade benchmark=math input=pairs.jsonl output=verdicts.jsonl"""


@dataclass
class Grade:
    """The keys of `carerft grade`."""

    benchmark: str = argument(f"how answers are found and compared: {' or '.join(GRADERS)}", "math")
    input: str = argument("file of JSON lines to grade")
    output: str = argument("file of JSON lines to write")
    extraction: str = argument("where the answer is: flexible; or boxed (math), strict (gsm8k) alone", "flexible")


def main() -> None:
    """Grade a file and print how many of its answers are right, wrong, or without a verdict."""
    words = [re.sub(r"^benchmark\.\w+\.extraction=", "extraction=", word) for word in sys.argv[1:]]  # as in `evaluate`
    settings, others = read(Grade, words, ABOUT)
    refuse(Grade, others)
    counts = grade_file(settings.benchmark, Path(settings.input), Path(settings.output), extraction=settings.extraction)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("correct", "wrong", "none")))


if __name__ == "__main__":
    main()
