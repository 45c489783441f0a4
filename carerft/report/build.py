"""From run directories to files: everything that the report writes is written here."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from carerft.errors import RunDirectoryError
from carerft.report import markdown
from carerft.report.columns import BENCHMARKS, main_table, notes, ordered
from carerft.report.experiment import find
from carerft.report.figures.drawings import draw
from carerft.report.figures.style import make_looks
from carerft.report.page import Report, render
from carerft.report.paper import Paper
from carerft.report.questions import select_questions
from carerft.report.rows import level, make_rows, scores
from carerft.report.tables import experiment_grids, latex, tidy_csv
from carerft.report.tables import markdown as markdown_table
from carerft.runs.reading import common_directory, load_runs

TEXT_BUDGET, LONGEST_TEXT = 800_000, 3000  # characters of model text on the page in all, and of one sample


def build(
    directories: Sequence[Path],
    output: Path | None = None,
    shown: Mapping[str, Sequence[str]] | None = None,
    about: tuple[str, Paper] | None = None,
    model: str | None = None,
) -> Path:
    """Report on every run at or below these directories. Returns the path of the HTML page.

    output: where `index.html`, `table.md`, `table.csv`, `table.tex` and `figures/` are written; by default `report/`
    in the directory that holds all of `directories`. shown: by benchmark, the metrics that the main table shows in
    place of its default. about: the runs' experiment, its name and paper; adds `report.md` and the experiment's
    tables. model: only runs of the model of this name. Raises DataError if there are no runs, RunDirectoryError if the
    output can't be written.
    """
    runs = load_runs(directories, model)
    common = common_directory(directories)
    output = common / "report" if output is None else Path(output)
    _write(output, {})  # an unwritable output fails now, not after minutes of drawing
    rows, confidence = make_rows(runs), level(runs)
    values = scores(rows, confidence)
    main = main_table(rows, values, shown)
    benchmarks = ordered(list({name for row in rows for run in row.evaluated for name in run.benchmarks}), BENCHMARKS)
    troubles = [f"{run.name}/{trouble}" for run in runs for trouble in run.troubles]
    questions = select_questions(rows, benchmarks, min(LONGEST_TEXT, TEXT_BUDGET // max(1, 12 * len(rows))), troubles)
    beneath = notes(rows, values, main.columns)
    files: dict[str, str | bytes] = {
        "table.md": markdown_table(main) + "".join(f"\n{note}\n" for note in beneath),
        "table.csv": tidy_csv(rows, values),
        "table.tex": "".join(f"% {note}\n" for note in beneath) + latex(main),
    }
    findings = find(*about, rows, values, confidence) if about else None
    looks = make_looks(rows)
    drawings, figures = draw(main, values, benchmarks, looks, findings)
    files |= figures
    title = f"{common.name}: accuracy, honesty and calibration"
    if findings:
        title = f"{findings.name}: {findings.paper.asks}"
        grids = experiment_grids(findings)
        for name, grid in grids.items():
            files |= {f"{name}.csv": grid.csv(), f"{name}.tex": grid.latex()}
        files["report.md"] = markdown.page(findings, grids, main, beneath, runs, drawings, confidence)
    report = Report(
        title, runs, main, values, benchmarks, confidence, looks, drawings, questions, troubles, findings
    )  # fmt: skip
    files["index.html"] = render(report)
    _write(output, files)
    return output / "index.html"


def publish(report: Path, page: Path) -> None:
    """Copy an experiment's `report.md` to `page`, and the figures that it shows to `figures/` beside it.

    Raises RunDirectoryError if they can't be written.
    """
    text = (report / "report.md").read_text(encoding="utf-8")
    try:
        (page.parent / "figures").mkdir(parents=True, exist_ok=True)
        for name in re.findall(r"\]\((figures/[^)]+)\)", text):
            shutil.copyfile(report / name, page.parent / name)
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(
            f"the page can't be written to {page}: {error.strerror}", "choose another page="
        ) from error


def _write(output: Path, files: dict[str, str | bytes]) -> None:
    try:
        (output / "figures").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (output / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        raise RunDirectoryError(
            f"the report can't be written to {output}: {error.strerror or error}",
            "choose another place with output=DIRECTORY",
        ) from error
