"""Tables as Markdown, LaTeX (booktabs), CSV and for a terminal."""

import csv
import io
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from carerft.metrics.statistics import Interval
from carerft.report.columns import MainTable, arrow, glossary, notes, terminal_table
from carerft.report.findings import Findings
from carerft.report.rows import Row, make_rows
from carerft.runs.reading import Run
from carerft.terminal import open_console
from carerft.text import MINUS, decimal, signed

LATEX = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MINUS: "$-$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "⟨": r"$\langle$", "⟩": r"$\rangle$",
})  # fmt: skip
NOTHING = (None, None, None)  # the numbers of an interval that is undefined


def interval_text(value: Interval | None, is_change: bool = False) -> str:
    """0.123 [0.100, 0.150]; a change as +0.010* [+0.002, +0.018], the star where the interval excludes 0."""
    if value is None:
        return "-"
    middle, *ends = (signed(number) if is_change else decimal(number) for number in value if number is not None)
    star = "*" if is_change and value.excludes_zero else ""
    return f"{middle}{star} [{', '.join(ends)}]" if ends else middle


def change_text(change: Interval | None) -> str:
    return interval_text(change, is_change=True)


def escape(text: str) -> str:
    """Text for LaTeX."""
    return text.translate(LATEX).replace(" alpha=", r" $\alpha$=").replace(" beta=", r" $\beta$=")


def _tabular(numeric_columns: int, head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A booktabs tabular whose first column is text. Needs \\usepackage{booktabs}."""
    lines = [" & ".join(row) + r" \\" for row in body]
    begin = rf"\begin{{tabular}}{{l{'r' * numeric_columns}}}"
    return "\n".join([begin, r"\toprule", *head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if v is None else v for v in row] for row in rows)
    return text.getvalue()


@dataclass(frozen=True)
class Grid:
    """A table as text. numbers: the same values unrounded, one per line, their header first. bold: (row, column)."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[Sequence[object]] = ()
    bold: Container[tuple[int, int]] = ()

    def markdown(self) -> str:
        """A GitHub table, its first column to the left."""

        def cell(text: str) -> str:
            return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")

        lines = [[cell(text) for text in self.header], ["---", *("---:" for _ in self.header[1:])]]
        lines += [
            [f"**{cell(text)}**" if (r, c) in self.bold else cell(text) for c, text in enumerate(row)]
            for r, row in enumerate(self.rows)
        ]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def latex(self) -> str:
        header, *body = ([escape(text) for text in row] for row in (self.header, *self.rows))
        return _tabular(len(self.header) - 1, [" & ".join(header) + r" \\"], body)

    def csv(self) -> str:
        return _csv(self.numbers)


# The main table


def main_grid(table: MainTable) -> Grid:
    """The main table with a single row of headings; the clear best of a column in bold."""
    rows = [
        [row.label, row.seeds, *(interval_text(value) for value, _ in table.row(index))]
        for index, row in enumerate(table.rows)
    ]
    best = {(index, column + 2) for column, index in enumerate(table.best) if index is not None}
    return Grid(["", "seeds", *(column.heading for column in table.columns)], rows, bold=best)


def latex(table: MainTable) -> str:
    """A booktabs tabular; the clear best of a column in bold, intervals in small type."""

    def number(value: Interval | None, bold: bool) -> str:
        if value is None:
            return "--"
        text = escape(decimal(value.value))
        text = rf"\textbf{{{text}}}" if bold else text
        if value.low is None or value.high is None:
            return text
        return rf"{text} {{\scriptsize [{escape(decimal(value.low))}, {escape(decimal(value.high))}]}}"

    ends = accumulate((len(columns) for _, columns in table.groups), initial=1)  # the last column of each group
    groups = [rf"\multicolumn{{{len(columns)}}}{{c}}{{{escape(name)}}}" for name, columns in table.groups]
    titles = [escape(f"{column.title} {arrow(column.metric)}".strip()) for column in table.columns]
    head = [
        " & ".join(["", *groups]) + r" \\",
        " ".join(rf"\cmidrule(lr){{{before + 1}-{end}}}" for before, end in pairwise(ends)),
        " & ".join(["", *titles]) + r" \\",
    ]
    body = ([escape(row.label), *(number(*entry) for entry in table.row(i))] for i, row in enumerate(table.rows))
    return _tabular(len(table.columns), head, body)


def tidy_csv(rows: Sequence[Row]) -> str:
    """Every metric of every row, one per line, unrounded: the mean over seeds, its interval, and each seed's value."""
    lines: list[Sequence[object]] = [
        ("row", "benchmark", "metric", "value", "low", "high", "seeds", "questions", "k", "per_seed")
    ]
    for row in rows:
        for (benchmark, metric), value in row.scores.items():
            counts = ({str(getattr(result, name)) for result in row.results(benchmark)} for name in ("n", "k"))
            questions, k = ("/".join(sorted(texts - {"None"})) for texts in counts)
            seeds = [interval.value for interval in row.per_seed(benchmark, metric)]
            lines.append((row.label, benchmark, metric, *value, len(seeds), questions, k, " ".join(map(repr, seeds))))
    return _csv(lines)


def print_table(
    runs: Sequence[Run],
    console: Console | None = None,
    shown: Mapping[str, Sequence[str]] | None = None,
    everything: bool = False,
) -> None:
    """Print the metrics that matter most, or everything, to a terminal; beneath it what they mean, and a line for each
    run that is missing. shown: as for main_table.

    Rows and columns are swapped where there are fewer rows than columns; columns that don't fit follow beneath.
    """
    console = console or open_console()
    rows = make_rows(runs)
    table = terminal_table(rows, shown or {}, everything)
    names = [Text(row.label) for row in rows]
    headings = [Text("seeds"), *(Text(column.heading) for column in table.columns)]
    body = [[Text(row.seeds), *(_entry(*entry) for entry in table.row(index))] for index, row in enumerate(rows)]
    if len(rows) < len(headings):
        body, names, headings = [list(column) for column in zip(*body, strict=True)], headings, names
    width = len("0.000\u20130.000")
    abreast = max(1, (console.width - 16) // (width + 1))  # 16 for the names
    for start in range(0, len(headings), abreast):
        part = slice(start, start + abreast)
        grid = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
        grid.add_column("", overflow="fold")
        for heading in headings[part]:
            grid.add_column(heading, justify="right", overflow="fold", min_width=width)
        for name, entries in zip(names, body, strict=True):
            grid.add_row(name, *entries[part])
        console.print(grid)
    for title, meaning in glossary(table.columns).items():
        console.print(Text(f"{title}: {meaning}."))
    if table.columns and not everything:
        console.print("The same command with --all shows every metric.")
    for note in notes(rows, table.columns):
        console.print(Text(note, "bold red" if note.startswith("FEW") else ""))
    for run in runs:
        if not run.has_results:
            console.print(Text(f"not in the table: {run.name} ({run.why_no_results})"))


def _entry(value: Interval | None, best: bool) -> Text:
    entry = Text("-" if value is None else decimal(value.value), style="bold green" if best else "", no_wrap=True)
    if value is not None and value.low is not None and value.high is not None:
        entry.append(f"\n{decimal(value.low)}\u2013{decimal(value.high)}", style="dim not bold")
    return entry


# The tables of an experiment


def experiment_grids(findings: Findings) -> dict[str, Grid]:
    """`beside` (ours and the paper's), and `claims` and `compared` (paired differences) where there are any."""
    names = findings.paper.columns
    rows: list[list[str]] = []
    numbers: list[list[object]] = [["row", "column", "ours", "low", "high", "paper"]]
    for row, values in findings.beside:
        texts = []
        for name, (ours, theirs) in zip(names, values, strict=True):
            texts.append(interval_text(ours) + (f" ({theirs:.3f})" if theirs is not None else ""))
            numbers.append([row.label, name, *(ours or NOTHING), theirs])
        rows.append([row.label, row.seeds, *texts])
    grids = {"beside": Grid(["", "seeds", *(f"{name} (paper)" for name in names)], rows, numbers)}

    rows, numbers = [], [["claim", "column", "row", "against", "difference", "low", "high", "verdict"]]
    for j in findings.judgements:
        changes = "; ".join(map(change_text, j.differences)) or "-"
        rows.append([j.claim.says, ", ".join(j.claim.columns), j.row or "-", j.against or "-", changes, j.verdict])
        for column, change in zip(j.claim.columns, j.differences or [None] * len(j.claim.columns), strict=True):
            numbers.append([j.claim.says, column, j.row, j.against, *(change or NOTHING), j.verdict])
    grids["claims"] = Grid(["claim", "column", "row", "against", "difference", "verdict"], rows, numbers)

    rows, numbers = [], [["row", "less", "column", "difference", "low", "high"]]
    for row, other, changes in findings.compared:
        rows.append([row, other, *map(change_text, changes)])
        numbers += [[row, other, name, *(change or NOTHING)] for name, change in zip(names, changes, strict=True)]
    grids["compared"] = Grid(["row", "less", *names], rows, numbers)
    return {name: grid for name, grid in grids.items() if grid.rows}


def print_claims(file: Path, console: Console) -> None:
    """Print how often each claim holds, from `claims.csv`."""
    with open(file, encoding="utf-8", newline="") as lines:
        verdicts = {(line["claim"], line["row"], line["against"]): line["verdict"] for line in csv.DictReader(lines)}
    table = Table("the paper's claims", "verdicts, by row", box=box.SIMPLE_HEAD, pad_edge=False)
    for claim, judged in groupby(verdicts.items(), key=lambda item: item[0][0]):
        counts = Counter(verdict for _, verdict in judged)
        table.add_row(Text(claim), ", ".join(f"{verdict}: {count}" for verdict, count in counts.items()))
    console.print(table)
