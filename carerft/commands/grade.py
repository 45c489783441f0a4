"""Grade answers from any source. A verdict is correct, wrong or none; hostile answers are refused.

usage: carerft grade benchmark=BENCHMARK input=FILE output=FILE
       carerft grade benchmark=questions grader=GRADER input=FILE output=FILE [id=.. gold=.. text=..]

input holds lines {"id", "gold", "text"}; output gets {"id", "verdict", "extracted", "why"} in the same order.
benchmark=questions takes JSON, CSV, TSV and Parquet, columns by their names, and the graders of task=questions.

examples:
  carerft grade benchmark=math input=pairs.jsonl output=verdicts.jsonl
  carerft grade benchmark=questions grader=contains gold=answer text=completion input=mine.csv output=verdicts.jsonl
"""

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carerft.commands.arguments import argument, read, refuse
from carerft.errors import ConfigError, DataError
from carerft.grading.grader import Verdict, grade_answers
from carerft.grading.mathematics import canonical, final_answer, normalise, number
from carerft.grading.pool import Pool
from carerft.runs.directory import write_atomically
from carerft.tasks import Problem, gsm8k, math
from carerft.tasks.files import read_rows
from carerft.tasks.questions import QuestionsTask, present
from carerft.tasks.replies import after_thinking
from carerft.tasks.tables import file_rows

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
    return _write(target, names, [answer and answer[:2000] for _, answer in pairs], verdicts)


def grade_questions(settings: "Grade", source: Path, target: Path) -> Counter[str]:
    """As `grade_file`, by a grader of `carerft.tasks.questions`."""
    task = QuestionsTask(
        path=str(source),
        question=settings.text,
        answer=settings.gold,
        grader=settings.grader,
        timeout_s=settings.timeout_s,
    )
    rows = list(file_rows(str(source)))
    if not rows:
        raise DataError(f"{source} is empty", "give it a row for each answer")
    names = [row.fields.get(settings.id, row.index) for row in rows]
    problems = [
        Problem(str(name), "", task.gold(row), columns=row.fields) for name, row in zip(names, rows, strict=True)
    ]
    # Where the column is null, nothing was answered.
    texts = ["" if present(row, settings.text) is None else row.text(settings.text) for row in rows]
    grades = task.grade(problems, texts)
    verdicts = [Verdict(grade.correct, "refuses" * grade.refused, grade.extracted) for grade in grades]
    return _write(target, names, [grade.extracted for grade in grades], verdicts)


def _write(target: Path, names: list[Any], extracted: list[str | None], verdicts: list[Verdict]) -> Counter[str]:
    """Write a line for each verdict. Returns how many there are of each."""
    lines = (
        {"id": name, "verdict": verdict.name, "extracted": answer, "why": verdict.why}
        for name, answer, verdict in zip(names, extracted, verdicts, strict=True)
    )
    try:
        write_atomically(target, "".join(f"{json.dumps(line)}\n" for line in lines))
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

    benchmark: str = argument(f"how answers are found and compared: {', '.join(EXTRACTIONS)} or questions", "math")
    input: str = argument("file of JSON lines to grade")
    output: str = argument("file of JSON lines to write")
    grader: str | None = argument("benchmark=questions: one of task.grader's", None)
    timeout_s: float = argument("benchmark=questions: seconds of a grader of your own for an answer", 60.0, above=0)
    id: str = argument("benchmark=questions: the column that names a row; without it rows are counted from 0", "id")
    gold: str = argument("benchmark=questions: the column with the answer", "gold")
    text: str = argument("benchmark=questions: the column with what was answered", "text")
    extraction: str = argument("where the answer is: flexible; or boxed (math), strict (gsm8k) alone", "flexible")


def main() -> None:
    """Grade a file and print how many of its answers are right, wrong, or without a verdict."""
    words = [re.sub(r"^benchmark\.\w+\.extraction=", "extraction=", word) for word in sys.argv[1:]]  # as in `evaluate`
    settings, others = read(Grade, words, __doc__)
    refuse(settings, others)
    files = Path(settings.input), Path(settings.output)
    unused = {"extraction"} if settings.benchmark == "questions" else {"grader", "timeout_s", "id", "gold", "text"}
    usual = vars(Grade(input=settings.input, output=settings.output))
    for key, value in vars(settings).items():
        if key in unused and value != usual[key]:
            raise ConfigError(
                f"{key}={value}: benchmark={settings.benchmark} does not take it",
                "leave it out" if settings.benchmark == "questions" else "write benchmark=questions as well",
            )
    if settings.benchmark == "questions":
        counts = grade_questions(settings, *files)
    else:
        counts = grade_file(settings.benchmark, *files, extraction=settings.extraction)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("correct", "wrong", "none")))
