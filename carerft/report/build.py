"""From run directories to files: everything that the report writes is written here."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from carerft.errors import RunDirectoryError
from carerft.report import curves, reliability, tradeoff
from carerft.report.cells import Scores, make_cells, scores
from carerft.report.columns import MainTable, benchmark_order, benchmark_title, main_table
from carerft.report.notes import notes
from carerft.report.page import MOST_DIAGRAMS, Drawing, Report, render
from carerft.report.questions import choose
from carerft.report.runs import common_directory, load_runs
from carerft.report.style import Look, arrange, inline_svg, looks, png, styled, svg
from carerft.report.summary import telling_columns
from carerft.report.tables import interval_text, latex, level, markdown, tidy_csv

TEXT_BUDGET, LONGEST_TEXT = 800_000, 3000  # characters of model text on the page in all, and of one sample


def build(
    directories: Sequence[Path], output: Path | None = None, shown: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Report on every run at or below these directories. Returns the path of the HTML page.

    output: where `index.html`, `table.md`, `table.csv`, `table.tex` and `figures/` are written; by default `report/`
    in the directory that holds all of `directories`. shown: metrics by benchmark that the main table shows in place
    of its own choice. Raises DataError if there are no runs, RunDirectoryError if the
    output can't be written.
    """
    runs = load_runs(directories)
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
        "table.md": markdown(main) + "".join(f"\n{note}\n" for note in beside),
        "table.csv": tidy_csv(cells, table),
        "table.tex": "".join(f"% {note}\n" for note in beside) + latex(main),
    }
    with styled():
        drawings = _draw(main, table, benchmarks, look, files)
    report = Report(runs, main, table, benchmarks, level(runs), look, drawings, chosen, troubles)
    files["index.html"] = render(report)
    _write(output, files)
    return output / "index.html"


def _draw(
    main: MainTable, table: Scores, benchmarks: Sequence[str], look: dict[str, Look], files: dict[str, str | bytes]
) -> list[Drawing]:
    """Every figure, for the page; its SVG and PNG are added to `files`."""
    drawings = []
    cells = main.cells

    def save(name: str, figure: Figure) -> str:
        stem = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
        while f"figures/{stem}.svg" in files:
            stem += "-"
        arrange(figure)
        text = svg(figure)
        files[f"figures/{stem}.svg"], files[f"figures/{stem}.png"] = text, png(figure)
        return text

    def show(section: str, text: str, label: str, group: str = "") -> None:
        drawings.append(Drawing(section, group, inline_svg(text, f"f{len(drawings)}", label)))

    telling = telling_columns(main)
    if telling and telling[0].metric == "accuracy":
        for column in telling[1:]:
            figure = tradeoff.tradeoff(cells, table, telling[0], column, look)
            text = save(f"tradeoff-{column.benchmark}-{column.metric}", figure)
            show("tradeoff", text, tradeoff.in_words(cells, table, telling[0], column))
    for name in benchmarks:
        panels = reliability.diagrams(cells, table, name, look)
        tallest = reliability.largest_share(panels) if panels else 0.0
        if panels:
            save(f"reliability-{name}", reliability.reliability(panels, tallest, name))
        for panel in panels[: MOST_DIAGRAMS // len(benchmarks)]:
            ece = f", ECE {interval_text(panel.ece)}" if panel.ece else ""
            label = f"Reliability diagram of {panel.label} on {benchmark_title(name)}{ece}"
            show("reliability", svg(reliability.reliability([panel], tallest)), label, name)
    for metric in curves.curve_metrics(cells):
        text = save(f"curve-{metric}", curves.curves(cells, metric, look))
        show("curves", text, f"{curves.CURVES[metric][0]} over training, by row")
    return drawings


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
