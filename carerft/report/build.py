"""From run directories to files: everything that the report writes is written here."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from carerft.errors import RunDirectoryError
from carerft.report import markdown
from carerft.report.cells import make_cells, scores
from carerft.report.columns import benchmark_order, main_table
from carerft.report.drawings import draw
from carerft.report.experiment import findings
from carerft.report.grids import grids
from carerft.report.notes import notes
from carerft.report.page import Report, render
from carerft.report.paper import Paper
from carerft.report.questions import choose
from carerft.report.style import looks
from carerft.report.tables import latex, level, tidy_csv
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
    in the directory that holds all of `directories`. shown: metrics by benchmark that the main table shows in place
    of its own choice. about: the experiment whose runs these are, by name, and what it asks; adds `report.md`.
    model: only runs of the model of this name. Raises DataError if there are no runs, RunDirectoryError if the
    output can't be written.
    """
    runs = load_runs(directories, model)
    output = common_directory(directories) / "report" if output is None else Path(output)
    _write(output, {})  # a place that can't be written is known before the work, not after it
    cells = make_cells(runs)
    table = scores(cells, level(runs))
    main = main_table(cells, table, shown)
    benchmarks = benchmark_order(sorted({name for cell in cells for run in cell.evaluated for name in run.benchmarks}))
    troubles = [f"{run.place}/{trouble}" for run in runs for trouble in run.troubles]
    limit = min(LONGEST_TEXT, TEXT_BUDGET // max(1, 12 * len(cells)))
    look = looks(cells)
    chosen = choose(cells, benchmarks, limit, troubles)
    beside = notes(cells, table, main.columns)
    files: dict[str, str | bytes] = {
        "table.md": markdown_table(main) + "".join(f"\n{note}\n" for note in beside),
        "table.csv": tidy_csv(cells, table),
        "table.tex": "".join(f"% {note}\n" for note in beside) + latex(main),
    }
    found = findings(*about, cells, table, level(runs)) if about else None
    drawings, figures = draw(main, table, benchmarks, look, found)
    files |= figures
    if found:
        tables = grids(found)
        for name, grid in tables.items():
            files |= {f"{name}.csv": grid.csv(), f"{name}.tex": grid.latex()}
        files["report.md"] = markdown.page(found, tables, main, beside, runs, drawings, level(runs))
    report = Report(runs, main, table, benchmarks, level(runs), look, drawings, chosen, troubles, found)
    files["index.html"] = render(report)
    _write(output, files)
    return output / "index.html"


def publish(report: Path, page: Path) -> None:
    """Copy an experiment's `report.md` to `page`, and the figures that it shows to `figures/` beside it."""
    text = (report / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\((figures/[^)]+)\)", text)
    try:
        (page.parent / "figures").mkdir(parents=True, exist_ok=True)
        for name in shown:
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
            data = content.encode("utf-8") if isinstance(content, str) else content
            (output / name).write_bytes(data)
    except OSError as error:
        raise RunDirectoryError(
            f"the report can't be written to {output}: {error.strerror or error}",
            "choose another place with output=DIRECTORY",
        ) from error
