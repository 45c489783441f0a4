"""Grade mathematical answers from any source. A verdict is correct, wrong or none; hostile answers are refused.

usage: carerft grade benchmark=BENCHMARK input=FILE output=FILE

input holds lines {"id", "gold", "text"}; output gets {"id", "verdict", "extracted", "why"} in the same order.

example:
  carerft grade benchmark=math input=pairs.jsonl output=verdicts.jsonl
"""

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from carerft.commands.arguments import argument, read, refuse
from carerft.errors import ConfigError, DataError
from carerft.grading.grader import Verdict, grade_answers
from carerft.grading.mathematics import canonical, final_answer, normalise, number
from carerft.grading.pool import Pool
from carerft.runs.directory import write_atomically
from carerft.tasks import gsm8k, math
from carerft.tasks.files import read_rows
from carerft.tasks.replies import after_thinking

EXTRACTIONS = {"math": math.EXTRACTIONS, "gsm8k": gsm8k.EXTRACTIONS}


def grade_file(
    benchmark: str, source: Path, target: Path, pool: Pool | None = None, extraction: str = "flexible"
) -> Counter[str]:
    """Grade every line of source and write the verdicts to target, in the same order. Returns how many of each.

    benchmark: a key of EXTRACTIONS. extraction: one of its values, where in the text the answer is looked for. target
    is replaced at once, after the whole file has been graded.
    Raises ConfigError (unknown benchmark or extraction) and DataError (source absent or malformed, target unwritable).
    """
    if extraction not in EXTRACTIONS.get(benchmark, ()):
        choices = (f"benchmark={name} with extraction={' or '.join(values)}" for name, values in EXTRACTIONS.items())
        raise ConfigError(
            f"benchmark={benchmark} with extraction={extraction}: no such grader", f"write {'; '.join(choices)}"
        )
    extract = final_answer if benchmark == "math" else gsm8k.extracted_number
    names, pairs = [], []
    for row in read_rows(source):
        if "id" not in row.fields:
            raise DataError(
                f"{row.location}: no field 'id'", 'every line must be {"id": ..., "gold": ..., "text": ...}'
            )
        names.append(row.fields["id"])
        pairs.append((row.text("gold"), extract(after_thinking(row.text("text")), extraction != "flexible")))
    verdicts = grade_answers(pairs, pool) if benchmark == "math" else [_same_number(*pair) for pair in pairs]
    lines = (
        json.dumps({"id": name, "verdict": verdict.name, "extracted": answer and answer[:2000], "why": verdict.why})
        for name, (_, answer), verdict in zip(names, pairs, verdicts, strict=True)
    )
    try:
        write_atomically(target, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise DataError(f"output={target}: {error.strerror}", "give a path that can be written to") from error
    return Counter(verdict.name for verdict in verdicts)


def _same_number(gold: str, answer: str | None) -> Verdict:
    """The verdict on a number extracted from a text. gold: as GSM8K has it, ending in "#### 42", or a number alone."""
    if answer is None:
        return Verdict(False, "no number found", None)
    plain = gold.rpartition("####")[2].strip()
    if number(normalise(plain)) is None:
        return Verdict(None, "the gold answer is no number", answer)
    equal = answer == canonical(plain)
    return Verdict(equal, "equal as a number" if equal else "different as a number", answer)


@dataclass
class Grade:
    """The keys of `carerft grade`."""

    benchmark: str = argument(f"how answers are found and compared: {' or '.join(EXTRACTIONS)}", "math")
    input: str = argument("file of JSON lines to grade")
    output: str = argument("file of JSON lines to write")
    extraction: str = argument("where the answer is: flexible; or boxed (math), strict (gsm8k) alone", "flexible")


def main() -> None:
    """Grade a file and print how many of its answers are right, wrong, or without a verdict."""
    words = [re.sub(r"^benchmark\.\w+\.extraction=", "extraction=", word) for word in sys.argv[1:]]  # as in `evaluate`
    settings, others = read(Grade, words, __doc__)
    refuse(settings, others)
    counts = grade_file(settings.benchmark, Path(settings.input), Path(settings.output), extraction=settings.extraction)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("correct", "wrong", "none")))
