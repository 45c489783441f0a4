"""The results of runs without their texts, in one small archive: with it, others can make a report again.

Of each run it has the manifest, what was logged of each step, every metric, and for each question and sample what the
metrics are computed from: which answers agree, verdicts, likelihoods. Questions may be somebody else's data, and
answers may repeat them: in the place of each text stands a number, the same where texts are equal. The configuration
is kept as it is, with its paths.
"""

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from carerft.errors import DataError
from carerft.evaluation.measurement import COMBINED, Record, json_lines
from carerft.report.build import write_files
from carerft.runs.reading import Run, read_lines

DIGITS = 6  # of a log-probability


def write_record(runs: Sequence[Run], name: str, file: Path) -> int:
    """Write the archive, `<name>/<run>/...`, of the finished runs among these, and return how many they are.

    Unpacked in a directory, it is one that `carerft report` reads, and in `outputs/` one whose runs a sweep finds done.

    Raises DataError if no run is finished or the files of one are damaged, RunDirectoryError if the file can't be
    written.
    """
    finished = [run for run in runs if run.has_results]
    if not finished:
        raise DataError(f"{name}: no run is finished, and a record would hold nothing", "leave record= out")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as archive:
        for run in finished:
            for path, text in _files(run):
                content = text.encode("utf-8")
                entry = tarfile.TarInfo(f"{name}/{run.name}/{path}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    write_files(file.parent, {file.name: packed.getvalue()}, "choose another record=")
    return len(finished)


def _files(run: Run) -> Iterator[tuple[str, str]]:
    """(path below the run's directory, content). Raises DataError."""
    yield "manifest.json", json.dumps(_manifest(run.directory / "manifest.json"), indent=2) + "\n"
    copied = ["metrics.jsonl", "evaluation.json", "evaluation/step_*/evaluation.json"]
    for path in sorted(path for pattern in copied for path in run.directory.glob(pattern)):
        yield str(path.relative_to(run.directory)), path.read_text(encoding="utf-8")
    for benchmark in sorted(run.benchmarks.keys() - {COMBINED}):
        troubles = list(run.troubles)
        problems, samples = (
            list(read_lines(run.directory / "evaluation" / f"{benchmark}{end}", troubles))
            for end in (".problems.jsonl", ".jsonl")
        )
        if troubles:
            raise DataError(
                f"{run.name} is damaged: {troubles[0]}", "measure it again, or move it away, and report once more"
            )
        _drop_texts(problems, samples)
        yield f"evaluation/{benchmark}.problems.jsonl", json_lines(problems)
        yield f"evaluation/{benchmark}.jsonl", json_lines(samples)


def _manifest(path: Path) -> Record:
    """Without what tells of one machine alone: copies of published data, and the times of files."""
    manifest = json.loads(path.read_text(encoding="utf-8")) | {"recorded": True}
    entries = manifest.get("inputs") or []
    kept = [entry for entry in entries if not (entry.get("published") and Path(entry["path"]).is_absolute())]
    manifest["inputs"] = [{key: value for key, value in entry.items() if key != "modified"} for entry in kept]
    return {key: value for key, value in manifest.items() if key not in ("sweep", "error")}


def _drop_texts(problems: Sequence[Record], samples: Sequence[Record]) -> None:
    """Number the answers of each problem, and its completions, in the order in which they come."""
    answers, texts = defaultdict[str, dict[str, str]](dict), defaultdict[str, dict[str, str]](dict)

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
