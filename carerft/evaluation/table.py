"""What evaluation.json says, as a table for a terminal: a row per metric, a column per benchmark.

Numbers that rest on few verdicts carry a mark at their value, and a line under the table that says how few: they speak
of the answers that could be judged, which are no fair sample of all.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

SECTIONS = (
    {"accuracy": "accuracy (mean@k)", "majority": "majority@k", "pass@4": "pass@4", "pass@k": "pass@k"},
    {"ece": "ECE, majority vote", "ece_floor": "  if calibrated",
     "ece_answered": "ECE, where it answers", "ece_answered_floor": "  if calibrated",
     "ece_all": "ECE, all answers", "ece_all_floor": "  if calibrated",
     "smooth_ece": "smooth ECE", "brier": "Brier score", "auroc": "AUROC", "aurc": "risk-coverage area"},
    {"ece_likelihood": "ECE, by likelihood", "ece_likelihood_floor": "  if calibrated",
     "brier_likelihood": "  Brier score", "auroc_likelihood": "  AUROC",
     "ece_likelihood_per_token": "ECE, likelihood per token", "ece_likelihood_per_token_floor": "  if calibrated",
     "brier_likelihood_per_token": "  Brier score", "auroc_likelihood_per_token": "  AUROC",
     "ece_self_report": "ECE, self-report P(True)", "ece_self_report_floor": "  if calibrated",
     "brier_self_report": "  Brier score", "auroc_self_report": "  AUROC"},
    {"accuracy_answerable": "accuracy, answerable",
     "refusal_f1": "refusal F1", "refusal_f1_always": "  refusing always", "refusal_f1_random": "  refusing at random",
     "refusal_rate_answerable": "refused, answerable", "refusal_rate_unanswerable": "refused, unanswerable",
     "truthful": "truthful", "informative": "informative", "misconception": "misconceptions",
     "mc1": "MC1", "mc2": "MC2"},
    {"entropy": "entropy (nats per token)", "truncated": "cut by the length limit", "unparsable": "unparsable",
     "no_verdict": "no verdict"},
)  # fmt: skip
WITHOUT_VERDICTS = {
    *("refusal_f1", "refusal_f1_always", "refusal_f1_random", "refusal_rate_answerable", "refusal_rate_unanswerable"),
    *("informative", "misconception", "mc1", "mc2", "entropy", "truncated", "unparsable", "no_verdict", "confidence"),
}
"""Metrics for which it does not matter whether an answer could be judged; all others rest on verdicts."""
ENOUGH = 0.9
"""The share of answers with a verdict below which what rests on them is marked."""
MARK = "†"


def table(evaluation: Mapping[str, Any]) -> Group:
    """The table, and under it what its marks mean.

    Empty cells: the benchmark does not have the metric. "undefined": it has, but this evaluation gives it no value.
    """
    benchmarks = evaluation["benchmarks"]
    level = evaluation["bootstrap"]["level"]
    result = Table(title=Text(f"{evaluation['model']}: value, and its {level:.0%} interval over problems"))
    result.add_column("")
    for name, entry in benchmarks.items():
        result.add_column(Text(f"{name}\nn = {entry['n']}, k = {entry['k']}"), justify="right")
    notes = {name: few_verdicts(entry) for name, entry in benchmarks.items()}
    for section in SECTIONS:
        for metric, label in section.items():
            cells = {name: entry["metrics"].get(metric) for name, entry in benchmarks.items()}
            if any(cells.values()):
                marked = metric not in WITHOUT_VERDICTS
                result.add_row(label, *(_cell(cell, marked and bool(notes[name])) for name, cell in cells.items()))
        result.add_section()
    bins = sorted({len(entry["reliability"]["count"]) for entry in benchmarks.values()})
    lines = [f"ECE over {' or '.join(map(str, bins))} equal-width bins; compare only at equal k."] if bins else []
    lines += [f"{MARK} {name}: {note}" for name, note in notes.items() if note]
    return Group(result, *(Text(line, "bold" if line.startswith(MARK) else "") for line in lines))


def few_verdicts(entry: Mapping[str, Any]) -> str:
    """What rests on how few verdicts, in a sentence, for a benchmark's entry of evaluation.json; empty if enough."""
    n, judged = entry["n"], round(sum(entry["reliability"]["count"]))
    share = 1 - (entry["metrics"].get("no_verdict") or {"value": 0})["value"]
    if share >= ENOUGH and judged >= ENOUGH * n:
        return ""
    return (
        f"only {share:.0%} of the answers could be judged, and {judged} of {n} questions have a majority answer with a "
        "verdict: the marked numbers speak of these alone, which are no fair sample."
    )


def _cell(metric: Mapping[str, float | None] | None, marked: bool) -> Text:
    if not metric:
        return Text("")
    if metric["value"] is None:
        return Text("undefined", "dim")
    value, low, high = (f"{metric[end]:.3f}" if metric[end] is not None else "?" for end in ("value", "low", "high"))
    return Text.assemble(value, (MARK, "bold red") if marked else "", (f" [{low}, {high}]", "dim"))
