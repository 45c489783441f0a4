"""Which numbers the main table shows: chosen from the metrics that exist, under names that a reader knows.

Left out: any knowledge of how a benchmark is scored. A benchmark that isn't listed here is shown under its own name,
in the part of the table that its metrics put it in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from carerft.metrics.intervals import Interval, clear_best
from carerft.report.cells import Cell, Scores
from carerft.text import line

# Title, and the part of the table that it belongs to; in the order in which tables and figures show them.
BENCHMARKS = {
    "world_reasoning": ("Reasoning", "accuracy"),
    "math": ("MATH", "accuracy"),
    "math500": ("MATH-500", "accuracy"),
    "gsm8k": ("GSM8K", "accuracy"),
    "world_transfer": ("Transfer", "accuracy"),
    "world_honesty": ("Honesty", "honesty"),
    "selfaware": ("SelfAware", "honesty"),
    "world_truth": ("Truthfulness", "truth"),
    "truthfulqa": ("TruthfulQA", "truth"),
    "truthfulqa_binary": ("TruthfulQA, two options", "truth"),
}
# The metrics that the main table shows of a benchmark, by its part of the table, unless `columns` names others.
SHOWN = {"accuracy": ("accuracy",), "honesty": ("refusal_f1",), "truth": ("truthful", "mc2")}
# Title, and whether higher (+1) or lower (-1) is better; 0 where neither is. In the order of the full tables.
METRICS = {
    "accuracy": ("accuracy (mean@k)", 1),
    "accuracy_answerable": ("accuracy on answerable", 1),
    "majority": ("majority@k", 1),
    "pass@4": ("pass@4", 1),
    "pass@k": ("pass@k", 1),
    "refusal_f1": ("refusal F1", 1),
    "refusal_f1_always": ("refusal F1, refusing always", 0),
    "refusal_f1_random": ("refusal F1, refusing at random", 0),
    "refusal_rate_answerable": ("refuses answerable", -1),
    "refusal_rate_unanswerable": ("refuses unanswerable", 1),
    "truthful": ("truthful share", 1),
    "informative": ("informative share", 1),
    "misconception": ("misconceptions", -1),
    "mc1": ("MC1", 1),
    "mc2": ("MC2", 1),
    "confidence": ("confidence", 0),
    "ece": ("ECE", -1),
    "ece_floor": ("ECE if calibrated", 0),
    "ece_answered": ("ECE, answered", -1),
    "ece_answered_floor": ("ECE if calibrated, answered", 0),
    "ece_all": ("ECE, all answers", -1),
    "ece_all_floor": ("ECE if calibrated, all answers", 0),
    "ece_equal_mass": ("ECE, equal-mass bins", -1),
    "smooth_ece": ("smooth ECE", -1),
    "brier": ("Brier score", -1),
    "brier_debiased": ("Brier score, debiased", -1),
    "brier_reliability": ("Brier: reliability", -1),
    "brier_resolution": ("Brier: resolution", 1),
    "brier_uncertainty": ("Brier: uncertainty", 0),
    "ece_likelihood": ("ECE, by likelihood", -1),
    "ece_likelihood_floor": ("ECE if calibrated, by likelihood", 0),
    "brier_likelihood": ("Brier score, by likelihood", -1),
    "auroc_likelihood": ("AUROC, by likelihood", 1),
    "ece_likelihood_per_token": ("ECE, likelihood per token", -1),
    "ece_likelihood_per_token_floor": ("ECE if calibrated, likelihood per token", 0),
    "brier_likelihood_per_token": ("Brier score, likelihood per token", -1),
    "auroc_likelihood_per_token": ("AUROC, likelihood per token", 1),
    "ece_self_report": ("ECE, self-report P(True)", -1),
    "ece_self_report_floor": ("ECE if calibrated, self-report", 0),
    "brier_self_report": ("Brier score, self-report P(True)", -1),
    "auroc_self_report": ("AUROC, self-report P(True)", 1),
    "nll": ("negative log-likelihood", -1),
    "auroc": ("AUROC", 1),
    "aurc": ("risk-coverage area", -1),
    "entropy": ("token entropy", 0),
    "truncated": ("cut short", -1),
    "unparsable": ("unparsable", -1),
    "no_verdict": ("without a verdict", -1),
}
FLOORS = {name: f"{name}_floor" for name in METRICS if f"{name}_floor" in METRICS}  # what perfect calibration scores
CALIBRATION = set(FLOORS)  # comparable only at equal k


@dataclass(frozen=True)
class Column:
    """One column: a metric of a benchmark, under `group`'s heading; direction as in METRICS."""

    benchmark: str
    metric: str
    group: str
    title: str
    direction: int

    @property
    def arrow(self) -> str:
        return {1: "↑", -1: "↓", 0: ""}[self.direction]

    @property
    def heading(self) -> str:
        """The whole heading on one line, for tables with a single header row."""
        return " ".join(f"{self.group}: {self.title} {self.arrow}".split())


@dataclass(frozen=True)
class MainTable:
    """columns x cells; `best[c]` is the row that is best in column c beyond its interval, or None."""

    columns: list[Column]
    cells: Sequence[Cell]
    values: list[list[Interval | None]]
    best: list[int | None]

    def row(self, index: int) -> list[tuple[Interval | None, bool]]:
        """One cell's values, each with whether it is clearly the best of its column."""
        return [(column[index], best == index) for column, best in zip(self.values, self.best, strict=True)]


def benchmark_title(name: str) -> str:
    return BENCHMARKS[name][0] if name in BENCHMARKS else line(name, 40).replace("_", " ")


def metric_title(name: str) -> str:
    return METRICS.get(name, (line(name, 40).replace("_", " "), 0))[0]


def benchmark_order(names: Sequence[str]) -> list[str]:
    """Known benchmarks in BENCHMARKS' order, then others by name."""
    known = list(BENCHMARKS)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def roles(scores: Scores) -> dict[str, list[str]]:
    """Benchmarks by what their metrics measure: "truth", "honesty" (some questions have no answer) or "accuracy"."""
    metrics: dict[str, set[str]] = {}
    for benchmark, metric in scores:
        metrics.setdefault(benchmark, set()).add(metric)
    found: dict[str, list[str]] = {"accuracy": [], "honesty": [], "truth": []}
    for name in benchmark_order(list(metrics)):
        own = metrics[name]
        role = "honesty" if "refusal_f1" in own else "truth" if own & {"truthful", "mc1", "mc2"} else "accuracy"
        found[BENCHMARKS[name][1] if name in BENCHMARKS else role].append(name)
    return found


def main_columns(
    scores: Scores, cells: Sequence[Cell], shown: Mapping[str, Sequence[str]] | None = None
) -> list[Column]:
    """The main table's columns: accuracy, honesty, truthfulness, ECE (its k in the heading), entropy.

    shown: for some benchmarks, which metrics are shown in place of SHOWN's.
    """
    by_role = roles(scores)
    calibrated = [(name, "ece") for name in by_role["accuracy"][:1]]
    calibrated += [(name, "ece_answered") for role in ("honesty", "truth") for name in by_role[role][:1]]
    ece = f"ECE (k={samples_text(cells, [name for name, _ in calibrated])})"
    wanted = [
        ("Accuracy (mean@k)", name, metric, benchmark_title(name))
        if metric == "accuracy" and role == "accuracy"
        else (benchmark_title(name), name, metric, metric_title(metric))
        for role in ("accuracy", "honesty", "truth")
        for name in by_role[role]
        for metric in (shown or {}).get(name, SHOWN[role])
    ]
    wanted += [(ece, n, m, benchmark_title(n) + (", answered" if m == "ece_answered" else "")) for n, m in calibrated]
    wanted += [("Entropy", n, "entropy", "nats/token") for n in (by_role["accuracy"] or by_role["truth"])[:1]]
    return [
        Column(name, metric, group, title, METRICS.get(metric, ("", 0))[1])
        for group, name, metric, title in wanted
        if (name, metric) in scores
    ]


def main_table(cells: Sequence[Cell], scores: Scores, shown: Mapping[str, Sequence[str]] | None = None) -> MainTable:
    """The main table of these cells; shown: as for main_columns. No row is marked best in a calibration column whose
    rows differ in k."""
    columns = main_columns(scores, cells, shown)
    values = [list(scores[column.benchmark, column.metric]) for column in columns]
    fair = [c.metric not in CALIBRATION or samples_text(cells, [c.benchmark]).isdigit() for c in columns]
    best = [clear_best(v, c.direction) if ok else None for c, v, ok in zip(columns, values, fair, strict=True)]
    return MainTable(columns, cells, values, best)


def samples_text(cells: Sequence[Cell], benchmarks: Sequence[str]) -> str:
    """k, the samples per question, over all rows: "8", "8 to 16" where they differ, or "?" where none is recorded."""
    ks = sorted({b.k for cell in cells for name in benchmarks for b in cell.of(name) if b.k is not None})
    return "?" if not ks else str(ks[0]) if len(ks) == 1 else f"{ks[0]} to {ks[-1]}"


def floors(scores: Scores, columns: Sequence[Column]) -> list[tuple[str, float, float]]:
    """(title, lowest, highest) simulated ECE of perfect calibration, for each calibration column that has one."""
    found = []
    for column in columns:
        floor = FLOORS.get(column.metric, "")
        values = [i.value for i in scores.get((column.benchmark, floor), ()) if i is not None]
        if values:
            found.append((column.title, min(values), max(values)))
    return found


def refusal_floors(scores: Scores) -> list[tuple[str, str, float]]:
    """What needs no honesty: (benchmark's title, "always" or "at random half the time", refusal F1 of doing so)."""
    ways = {"refusal_f1_always": "always", "refusal_f1_random": "at random half the time"}
    return [
        (benchmark_title(name), ways[metric], next(i.value for i in values if i is not None))
        for (name, metric), values in scores.items()
        if metric in ways
    ]
