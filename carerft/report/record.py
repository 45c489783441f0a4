"""The results of runs without their words, in one small archive: with it, others can make a report again.

Of each run it has the manifest, what was logged of each step, every metric, and for each question and sample what the
metrics are computed from: which answers agree, verdicts, likelihoods. The questions may be another's data, and answers
may repeat them: in the place of each text stands a number, the same where texts are equal.
"""

import io
import json
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from carerft.evaluation.measurement import json_lines
from carerft.report.build import write_files
from carerft.runs.reading import Run, read_lines

OF_THE_MACHINE = ("inputs", "sweep", "error")
"""Entries of a manifest that are left out: the first names files by their paths."""
DIGITS = 6  # of a log-probability


def write_record(runs: Sequence[Run], name: str, file: Path) -> None:
    """Write the archive, `<name>/<run>/...`, of the finished runs among these. Unpacked in a directory, it is one that
    `carerft report` reads, and in `outputs/` one whose runs a sweep finds done.

    Raises RunDirectoryError if the file can't be written.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for run in runs:
            for path, text in _files(run) if run.has_results else ():
                content = text.encode("utf-8")
                entry = tarfile.TarInfo(f"{name}/{run.name}/{path}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    write_files(file.parent, {file.name: lzma.compress(packed.getvalue(), preset=9)}, "choose another record=")


def _files(run: Run) -> Iterator[tuple[str, str]]:
    """(path below the run's directory, content)."""
    manifest = json.loads((run.directory / "manifest.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in manifest.items() if key not in OF_THE_MACHINE}
    yield "manifest.json", json.dumps(kept, indent=2) + "\n"
    copied = ["metrics.jsonl", "evaluation.json", "evaluation/step_*/evaluation.json"]
    for path in sorted(path for pattern in copied for path in run.directory.glob(pattern)):
        yield str(path.relative_to(run.directory)), path.read_text(encoding="utf-8")
    for benchmark in run.benchmarks:
        problems, samples = (
            list(read_lines(run.directory / "evaluation" / f"{benchmark}{end}", []))
            for end in (".problems.jsonl", ".jsonl")
        )
        _drop_words(problems, samples)
        yield f"evaluation/{benchmark}.problems.jsonl", json_lines(problems)
        yield f"evaluation/{benchmark}.jsonl", json_lines(samples)


def _drop_words(problems: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]]) -> None:
    """Number the answers of each problem, and its completions, in the order in which they come."""
    answers: dict[str, dict[str, str]] = {problem["problem_id"]: {} for problem in problems}
    texts: dict[str, dict[str, str]] = {problem["problem_id"]: {} for problem in problems}

    def code(known: dict[str, str], text: str | None) -> str | None:
        return None if text is None else known.setdefault(text, str(len(known) + 1))

    for problem in problems:
        known = answers[problem["problem_id"]]
        problem["answer"] = code(known, problem["answer"])
        problem["misconceptions"] = [code(known, text) for text in problem.get("misconceptions") or ()]
        for name in ("prompt", "aliases"):
            problem.pop(name, None)
    for sample in samples:
        sample["extracted"] = code(answers[sample["problem_id"]], sample["extracted"])
        sample["text"] = code(texts[sample["problem_id"]], sample["text"])
        if sample.get("log_probability") is not None:
            sample["log_probability"] = float(f"{sample['log_probability']:.{DIGITS}g}")
