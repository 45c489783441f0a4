"""From run directories to files: everything that the report writes is written here."""

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from carerft.errors import RunDirectoryError
from carerft.report.columns import BENCHMARKS, main_table, notes, ordered
from carerft.report.figures.drawings import draw
from carerft.report.findings import find
from carerft.report.learned import learned
from carerft.report.page import render
from carerft.report.paper import Paper
from carerft.report.questions import select_questions
from carerft.report.rows import level, make_rows
from carerft.report.tables import Grid, experiment_grids, latex, main_grid, tidy_csv
from carerft.runs.reading import Run, common_directory, load_runs
from carerft.text import duration

TEXT_BUDGET, LONGEST_TEXT = 800_000, 3000  # characters of model text on the page in all, and of one sample


@contextmanager
def collected_by_hand() -> Iterator[None]:
    """A context in which garbage is collected only by `gc.collect()`, and none that is there at a `gc.freeze()`. By
    itself, the collection would look at every part of a large figure, and at every sample, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def build(
    directories: Sequence[Path],
    output: Path | None = None,
    shown: Mapping[str, Sequence[str]] | None = None,
    about: tuple[str, Paper] | None = None,
    runs: Sequence[Run] | None = None,
) -> Path:
    """Report on every run at or below these directories. Returns the path of the HTML page.

    output: where `index.html`, `table.md`, `table.csv`, `table.tex` and `figures/` are written; by default `report/`
    in the directory that holds all of `directories`. shown: by benchmark, the metrics that the main table shows in
    place of its default. about: the runs' experiment, its name and paper; adds `report.md` and the experiment's
    tables. runs: those of the directories to report on; by default all. Raises DataError if there are no runs,
    RunDirectoryError if the output can't be written.
    """
    runs = load_runs(directories) if runs is None else runs
    common = common_directory(directories)
    output = common / "report" if output is None else Path(output)
    write_files(output, {})  # an unwritable output fails now, not after minutes of drawing
    rows, confidence = make_rows(runs), level(runs)
    main = main_table(rows, shown)
    benchmarks = ordered({name for row in rows for run in row.evaluated for name in run.benchmarks}, BENCHMARKS)
    troubles = [f"{run.name}/{trouble}" for run in runs for trouble in run.troubles]
    findings = find(*about, rows, confidence) if about else None
    texts = min(LONGEST_TEXT, TEXT_BUDGET // max(1, 12 * len(rows)))
    with collected_by_hand():
        questions = select_questions(rows, benchmarks, texts, troubles)
        gc.freeze()
        drawings, files = draw(main, benchmarks, findings)
    content = {
        "title": f"{common.name}: accuracy, honesty and calibration",
        "runs": runs,
        "rows": rows,
        "main": main,
        "notes": notes(rows, main.columns),
        "benchmarks": benchmarks,
        "level": confidence,
        "drawings": drawings,
        "questions": questions,
        "learned": learned(rows, texts),
        "troubles": troubles,
        "findings": findings,
    }
    files["table.md"] = main_grid(main).markdown() + "".join(f"\n{note}\n" for note in content["notes"])
    files["table.csv"] = tidy_csv(rows)
    files["table.tex"] = "".join(f"% {note}\n" for note in content["notes"]) + latex(main)
    if findings:
        content["title"] = f"{findings.name}: {findings.paper.asks}"
        grids, wanted = experiment_grids(findings), findings.paper.figures
        for name, grid in grids.items():
            files |= {f"{name}.csv": grid.csv(), f"{name}.tex": grid.latex()}
        listing = [[run.name, run.status, duration(run.elapsed), run.config_hash, run.git[:10]] for run in runs]
        grids |= {"main": main_grid(main), "runs": Grid(["run", "status", "took", "configuration", "source"], listing)}
        content["tables"] = {name: grid.markdown() for name, grid in grids.items()}
        content["shown"] = [d for d in drawings if d.file in wanted] if wanted else drawings[:2]
        files["report.md"] = render("report.md.j2", content)
    files["index.html"] = render("page.html.j2", content)
    write_files(output, files)
    return output / "index.html"


def publish(report: Path, page: Path) -> None:
    """Copy an experiment's `report.md` to `page`, and the figures that it shows to `figures/` beside it.

    Raises RunDirectoryError if they can't be written.
    """
    text = (report / "report.md").read_text(encoding="utf-8")
    figures = {name: (report / name).read_bytes() for name in re.findall(r"\]\((figures/[^)]+)\)", text)}
    write_files(page.parent, {page.name: text, **figures}, "choose another page=")


def write_files(
    directory: Path, files: Mapping[str, str | bytes], remedy: str = "choose another place with output=DIRECTORY"
) -> None:
    """Write files into a directory, which is made. Raises RunDirectoryError, with this remedy, if that can't be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        raise RunDirectoryError(
            f"{error.filename or directory} can't be written: {error.strerror or error}", remedy
        ) from error
