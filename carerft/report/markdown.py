"""An experiment's report as one Markdown page, to be read beside the code: tables, claims, figures, provenance."""

from collections.abc import Sequence

from carerft.report.cells import Cell
from carerft.report.columns import MainTable, benchmark_title
from carerft.report.drawings import Drawing
from carerft.report.experiment import Findings, meaning
from carerft.report.intervals import Interval
from carerft.report.runs import Run
from carerft.report.tables import interval_text, markdown, seeds_text
from carerft.report.text import duration, signed


def page(findings: Findings, table: MainTable, runs: Sequence[Run], drawings: Sequence[Drawing], level: float) -> str:
    """The page; its figures are the files of `drawings`."""
    paper = findings.paper
    counted = [run for run in runs if run.counts]
    parts = [
        f"# {findings.name}: {paper.asks}",
        f"{paper.source}.",
        f"{len(counted)} of {len(runs)} runs give numbers. Intervals: {100 * level:g}%, over questions and seeds.",
        f"The columns here: {meaning(findings)}.",
        "## Ours, and the paper's",
        beside_table(findings, table.cells),
        *(["The paper's best figures: " + ", ".join(f"{k} {v:g}" for k, v in paper.best.items()) + "."]
          if paper.best else []),
        "## The paper's claims, checked",
        claims_table(findings) if findings.judged else "None is known to us.",
        "## Differences, paired by question and seed",
        compared_table(findings) or "No two rows to compare yet.",
        "## Every main metric",
        markdown(table),
        *(["## Figures", *(f"![{_caption(d)}](figures/{d.file}.svg)" for d in drawings if d.file)] if drawings else []),
        "## Runs",
        provenance(runs),
    ]  # fmt: skip
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _caption(drawing: Drawing) -> str:
    together = drawing.section == "reliability"
    return f"Reliability diagrams on {benchmark_title(drawing.group)}" if together else drawing.label


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "".join(f"| {' | '.join(_escaped(c) for c in row)} |\n" for row in cells)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def beside_table(findings: Findings, cells: Sequence[Cell]) -> str:
    """Each row's value with its interval, and the paper's in parentheses where it is known."""
    rows = []
    for row, cell in zip(findings.beside, cells, strict=True):
        shown = [
            interval_text(ours) + (f" ({theirs:.3f})" if theirs is not None else "")
            for ours, theirs in zip(row.ours, row.theirs, strict=True)
        ]
        rows.append([row.label, seeds_text(cell), *shown])
    return _table(["", "seeds", *(f"{name} (paper)" for name in findings.paper.columns)], rows)


def claims_table(findings: Findings) -> str:
    """A line for each claim and row."""
    rows = [
        [j.claim.says, ", ".join(j.claim.columns), j.row or "-", j.against or "-",
         "; ".join(change_text(change) for change in j.differences) or "-", f"**{j.verdict}**"]
        for j in findings.judged
    ]  # fmt: skip
    return _table(["claim", "column", "row", "against", "difference", "verdict"], rows)


def compared_table(findings: Findings) -> str:
    rows = [[c.row, c.against, *(change_text(d) for d in c.differences)] for c in findings.compared]
    return _table(["row", "less", *findings.paper.columns], rows) if rows else ""


def change_text(change: Interval | None) -> str:
    """+0.010* [+0.002, +0.018]; the star where the interval excludes 0."""
    if change is None:
        return "-"
    if change.low is None or change.high is None:
        return signed(change.value)
    star = "*" if change.excludes_zero else ""
    return f"{signed(change.value)}{star} [{signed(change.low)}, {signed(change.high)}]"


def provenance(runs: Sequence[Run]) -> str:
    rows = [
        [run.place, run.status, duration(run.elapsed),
         run.config_hash, run.git[:10]]
        for run in runs
    ]  # fmt: skip
    return _table(["run", "status", "took", "configuration", "source"], rows)
