"""An experiment's report as one Markdown page: tables, claims, figures and provenance."""

from collections.abc import Mapping, Sequence

from carerft.report.columns import MainTable
from carerft.report.experiment import Findings
from carerft.report.figures.drawings import Drawing
from carerft.report.tables import Grid, markdown
from carerft.runs.reading import Run
from carerft.text import duration


def page(
    findings: Findings,
    grids: Mapping[str, Grid],
    main: MainTable,
    notes: Sequence[str],
    runs: Sequence[Run],
    drawings: Sequence[Drawing],
    level: float,
) -> str:
    """The page. grids: the experiment's tables by name. notes: beneath the main table.

    It shows the figures that paper.yaml names, or else the first two: `publish` copies their files.
    """
    paper = findings.paper
    best = ", ".join(f"{name} {value:g}" for name, value in paper.best.items())
    figures = [d for d in drawings if d.file in paper.figures] if paper.figures else drawings[:2]

    def table(name: str, otherwise: str) -> str:
        return grids[name].markdown() if name in grids else otherwise

    parts = [
        f"# {findings.name}: {paper.asks}",
        f"{paper.source}.",
        f"{sum(run.has_results for run in runs)} of {len(runs)} runs give numbers. "
        f"Intervals: {100 * level:g}%, over questions and seeds.",
        f"The columns here: {findings.meaning}.",
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
        "## Figures" if figures else "",
        *(f"![{drawing.label}](figures/{drawing.file}.png)" for drawing in figures),
        "## Runs",
        Grid(
            ["run", "status", "took", "configuration", "source"],
            [[run.name, run.status, duration(run.elapsed), run.config_hash, run.git[:10]] for run in runs],
        ).markdown(),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"
