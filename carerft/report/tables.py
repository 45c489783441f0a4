"""The main table as Markdown, LaTeX (booktabs) and for a terminal, and every metric as a tidy CSV file."""

import csv
import io
from collections.abc import Container, Mapping, Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from carerft.metrics.intervals import Interval
from carerft.report.cells import Cell, Scores, make_cells, scores
from carerft.report.columns import MainTable, main_table
from carerft.report.notes import notes
from carerft.runs.reading import Run
from carerft.text import MINUS, decimal

LATEX = str.maketrans({
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MINUS: "$-$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "⟨": r"$\langle$", "⟩": r"$\rangle$",
})  # fmt: skip


def seeds_text(cell: Cell) -> str:
    """How many of a row's runs give numbers: "3", or "2 of 3" where some are missing."""
    done, total = len(cell.evaluated), len(cell.runs)
    return str(done) if done == total else f"{done} of {total}"


def level(runs: Sequence[Run]) -> float:
    """The confidence level of the runs' intervals (the lowest, where they differ)."""
    return min((run.level for run in runs if run.counts), default=0.95)


def interval_text(value: Interval | None) -> str:
    """0.123 [0.100, 0.150]; a dash where undefined."""
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return decimal(value.value)
    return f"{decimal(value.value)} [{decimal(value.low)}, {decimal(value.high)}]"


def markdown_grid(header: Sequence[str], rows: Sequence[Sequence[str]], bold: Container[tuple[int, int]] = ()) -> str:
    """A GitHub table, its first column to the left. bold: (row, column) places."""

    def cell(text: str, place: tuple[int, int] | None = None) -> str:
        escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
        return f"**{escaped}**" if place in bold else escaped

    lines = [[cell(text) for text in header], ["---", *("---:" for _ in header[1:])]]
    lines += [[cell(text, (r, c)) for c, text in enumerate(row)] for r, row in enumerate(rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def markdown(table: MainTable) -> str:
    """A GitHub table; the clear best of a column in bold."""
    entries = [table.row(index) for index in range(len(table.cells))]
    rows = [
        [row.label, seeds_text(row), *(interval_text(value) for value, _ in entry)]
        for row, entry in zip(table.cells, entries, strict=True)
    ]
    best = {(r, c + 2) for r, entry in enumerate(entries) for c, (_, is_best) in enumerate(entry) if is_best}
    return markdown_grid(["", "seeds", *(column.heading for column in table.columns)], rows, best)


def escape(text: str) -> str:
    """Text for LaTeX."""
    return text.translate(LATEX).replace(" alpha=", r" $\alpha$=").replace(" beta=", r" $\beta$=")


def latex(table: MainTable) -> str:
    """A booktabs tabular; the clear best of a column in bold, intervals in small type. Needs \\usepackage{booktabs}."""

    def number(value: Interval | None, bold: bool) -> str:
        if value is None:
            return "--"
        shown = escape(decimal(value.value))
        shown = rf"\textbf{{{shown}}}" if bold else shown
        if value.low is None or value.high is None:
            return shown
        return rf"{shown} {{\scriptsize [{escape(decimal(value.low))}, {escape(decimal(value.high))}]}}"

    groups = [(name, len(list(members))) for name, members in groupby(table.columns, key=lambda column: column.group)]
    starts = [2 + sum(size for _, size in groups[:i]) for i in range(len(groups))]
    rules = " ".join(rf"\cmidrule(lr){{{a}-{a + n - 1}}}" for a, (_, n) in zip(starts, groups, strict=True))
    titles = [escape(f"{column.title} {column.arrow}".strip()) for column in table.columns]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["", *(rf"\multicolumn{{{size}}}{{c}}{{{escape(name)}}}" for name, size in groups)]) + r" \\",
        rules,
        " & ".join(["", *titles]) + r" \\",
        r"\midrule",
        *(
            " & ".join([escape(row.label), *(number(v, bold) for v, bold in table.row(i))]) + r" \\"
            for i, row in enumerate(table.cells)
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def tidy_csv(cells: Sequence[Cell], table: Scores) -> str:
    """Every metric of every row, one per line, unrounded: the mean over seeds, its interval, and each seed's value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "benchmark", "metric", "value", "low", "high", "seeds", "questions", "k", "per_seed"])
    for index, cell in enumerate(cells):
        for (benchmark, metric), values in table.items():
            value = values[index]
            if value is None:
                continue
            found = cell.of(benchmark)
            questions, k = (
                "/".join(sorted({str(getattr(b, name)) for b in found if getattr(b, name) is not None}))
                for name in ("n", "k")
            )
            parts = [i.value for i in cell.seeds(benchmark, metric)]
            interval = ["" if bound is None else bound for bound in (value.low, value.high)]
            row = [cell.label, benchmark, metric, value.value, *interval, len(parts), questions, k]
            writer.writerow([*row, " ".join(map(repr, parts))])
    return text.getvalue()


def print_table(
    runs: Sequence[Run], console: Console | None = None, shown: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Print the main table (shown: as for main_columns) to a terminal, and a line for each run that is missing from it.

    Rows and columns are swapped where there are fewer rows than columns; columns that don't fit follow beneath.
    """
    console = console or Console()
    cells = make_cells(runs)
    found = scores(cells, level(runs))
    table = main_table(cells, found, shown)
    names = [Text(cell.label) for cell in cells]
    headings = [Text(column.heading) for column in table.columns]
    body = [
        [Text(seeds_text(cell)), *(_entry(*entry) for entry in table.row(index))] for index, cell in enumerate(cells)
    ]
    headings = [Text("seeds"), *headings]
    if len(cells) < len(headings):
        body, names, headings = [list(column) for column in zip(*body, strict=True)], headings, names
    width = len("0.000\u20130.000")
    abreast = max(1, (console.width - 16) // (width + 1))  # 16 for the names
    for start in range(0, len(headings), abreast):
        part = slice(start, start + abreast)
        grid = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
        grid.add_column("", overflow="fold")
        for heading in headings[part]:
            grid.add_column(heading, justify="right", overflow="fold", min_width=width)
        for name, row in zip(names, body, strict=True):
            grid.add_row(name, *row[part])
        console.print(grid)
    for note in notes(cells, found, table.columns):
        console.print(Text(note, "bold red" if note.startswith("FEW") else ""))
    for run in runs:
        if not run.counts:
            console.print(Text(f"not in the table: {run.place} ({run.absence})"))


def _entry(value: Interval | None, best: bool) -> Text:
    entry = Text("-" if value is None else decimal(value.value), style="bold green" if best else "", no_wrap=True)
    if value is not None and value.low is not None and value.high is not None:
        entry.append(f"\n{decimal(value.low)}\u2013{decimal(value.high)}", style="dim not bold")
    return entry
