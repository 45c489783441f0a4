"""An experiment's report as one Markdown page, to be read beside the code: tables, claims, figures, provenance."""

from collections.abc import Mapping, Sequence

from carerft.report.columns import MainTable, benchmark_title
from carerft.report.drawings import Drawing
from carerft.report.experiment import Findings, meaning
from carerft.report.grids import Grid
from carerft.report.tables import markdown
from carerft.runs.reading import Run
from carerft.text import duration


def page(
    findings: Findings,
    tables: Mapping[str, Grid],
    main: MainTable,
    notes: Sequence[str],
    runs: Sequence[Run],
    drawings: Sequence[Drawing],
    level: float,
) -> str:
    """The page. tables: of `carerft.report.grids`. notes: beneath the main table. Figures are the drawings' files."""
    paper = findings.paper
    best = ", ".join(f"{name} {value:g}" for name, value in paper.best.items())
    counted = sum(run.counts for run in runs)

    files = [drawing for drawing in drawings if drawing.file]
    shown = [drawing for drawing in files if drawing.file in paper.figures] if paper.figures else files[:2]

    def table(name: str, otherwise: str) -> str:
        return tables[name].markdown() if name in tables else otherwise

    parts = [
        f"# {findings.name}: {paper.asks}",
        f"{paper.source}.",
        f"{counted} of {len(runs)} runs give numbers. Intervals: {100 * level:g}%, over questions and seeds.",
        f"The columns here: {meaning(findings)}.",
        "## Ours, and the paper's",
        table("beside", "No rows yet."),
        f"The paper's best figures: {best}." if best else "",
        "## The paper's claims, checked",
        table("claims", "None is known to us."),
        "## Differences, paired by question and seed",
        table("compared", "No two rows to compare yet."),
        "## Every main metric",
        markdown(main),
        *notes,
        "## Figures" if shown else "",
        *(f"![{_caption(drawing)}](figures/{drawing.file}.png)" for drawing in shown),
        "## Runs",
        _provenance(runs).markdown(),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _caption(drawing: Drawing) -> str:
    together = drawing.section == "reliability"
    return f"Reliability diagrams on {benchmark_title(drawing.group)}" if together else drawing.label


def _provenance(runs: Sequence[Run]) -> Grid:
    header = ["run", "status", "took", "configuration", "source"]
    rows = [[run.place, run.status, duration(run.elapsed), run.config_hash, run.git[:10]] for run in runs]
    return Grid(header, rows, [header, *rows])
