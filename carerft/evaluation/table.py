"""evaluation.json as a table for a terminal: a row per metric, a column per benchmark, and what each row means.

Numbers that rest on few verdicts carry a mark, and a line under the table says how few: they describe the judged
answers alone, which are no fair sample of all.
"""

import os
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from carerft.metrics.names import ENOUGH_VERDICTS, FIRST, FLOORS, METRICS

MARK = "†"
ALL = "CARERFT_ALL_METRICS"
"""Environment variable of the option --all, which also the processes have that a command starts."""


def table(evaluation: Mapping[str, Any]) -> Group:
    """The table of the first five metrics, or with --all of every one; under it what they and its marks mean.

    A cell is empty where the benchmark does not have the metric, and "undefined" where this evaluation gives no value.
    """
    benchmarks = evaluation["benchmarks"]
    level = evaluation["bootstrap"]["level"]
    result = Table(title=Text(f"{evaluation['model']}: value, and its {level:.0%} interval over problems"))
    result.add_column("")
    for name, entry in benchmarks.items():
        samples = f", k = {entry['k']}" if entry["k"] else ""
        result.add_column(Text(f"{name}\nn = {entry['n']}{samples}"), justify="right")
    everything, shown = bool(os.environ.get(ALL)), []
    warnings = {name: few_verdicts(entry) for name, entry in benchmarks.items()}
    for _, group in groupby(METRICS.items(), key=lambda item: item[1].group):
        for key, metric in group:
            entries = {name: entry["metrics"].get(key) for name, entry in benchmarks.items()}
            if (metric.in_terminal if everything else key in FIRST) and any(entries.values()):
                shown.append(f"{metric.title}: {metric.meaning}.")
                title = "  if calibrated" if key in FLOORS.values() else metric.title
                marked = [name for name, warning in warnings.items() if warning and metric.from_verdicts]
                result.add_row(title, *(_cell(entry, name in marked) for name, entry in entries.items()))
        if everything:
            result.add_section()
    bins = sorted({len(entry["reliability"]["count"]) for entry in benchmarks.values() if entry["k"]})
    lines = [*shown, "" if everything else "The same command with --all shows every metric."]
    over = " or ".join(map(str, bins))
    lines += [f"Every ECE is over {over} bins of confidence; compare only at equal k."] if bins else []
    lines += [f"{MARK} {name}: {warning}" for name, warning in warnings.items() if warning]
    return Group(result, *(Text(line, "bold" if line.startswith(MARK) else "") for line in lines if line))


def few_verdicts(entry: Mapping[str, Any]) -> str:
    """A warning if few of a benchmark's answers were judged, else "". entry: the benchmark's in evaluation.json."""
    if not entry["k"]:
        return ""
    n, judged = entry["n"], round(sum(entry["reliability"]["count"]))
    share = 1 - entry["metrics"]["no_verdict"]["value"]
    if share >= ENOUGH_VERDICTS and judged >= ENOUGH_VERDICTS * n:
        return ""
    return (
        f"only {share:.0%} of the answers could be judged, and {judged} of {n} questions have a majority answer with a "
        "verdict: the marked numbers speak of these alone, which are no fair sample."
    )


def _cell(entry: Mapping[str, float | None] | None, marked: bool) -> Text:
    if not entry:
        return Text("")
    if entry["value"] is None:
        return Text("undefined", "dim")
    value, low, high = ("?" if entry[end] is None else f"{entry[end]:.3f}" for end in ("value", "low", "high"))
    return Text.assemble(value, (MARK, "bold red") if marked else "", (f" [{low}, {high}]", "dim"))
