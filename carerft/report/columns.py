"""The main table: which numbers it shows, under which names, and the warnings that belong beneath it.

A benchmark that isn't listed here is shown under its own name, in the part of the table that suits its metrics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from carerft.metrics.intervals import clear_best
from carerft.metrics.names import ENOUGH_VERDICTS, FLOORS, METRICS
from carerft.metrics.statistics import Interval
from carerft.report.rows import Row, Scores
from carerft.text import decimal, line

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
"""Title, and part of the table; in the order of tables and figures."""
SHOWN = {"accuracy": ("accuracy",), "honesty": ("refusal_f1",), "truth": ("truthful", "mc2")}
"""The metrics that the main table shows of a benchmark, by its part of the table, unless `columns` names others."""
REFUSAL_FLOORS = {"refusal_f1_always": "always", "refusal_f1_random": "at random half the time"}


@dataclass(frozen=True)
class Column:
    """A metric of a benchmark, under `group`'s heading."""

    benchmark: str
    metric: str
    group: str
    title: str

    @property
    def direction(self) -> int:
        """+1 if higher is better, -1 if lower is, 0 if neither."""
        return METRICS[self.metric].direction if self.metric in METRICS else 0

    @property
    def arrow(self) -> str:
        return arrow(self.metric)

    @property
    def heading(self) -> str:
        """The whole heading on one line, for tables with a single header row."""
        return " ".join(f"{self.group}: {self.title} {self.arrow}".split())


@dataclass(frozen=True)
class MainTable:
    """values: by column, then row. best: by column, the row that is best beyond its interval, or None."""

    columns: list[Column]
    rows: Sequence[Row]
    values: list[list[Interval | None]]
    best: list[int | None]

    def row(self, index: int) -> list[tuple[Interval | None, bool]]:
        """One row's values, each with whether it is clearly the best of its column."""
        return [(column[index], best == index) for column, best in zip(self.values, self.best, strict=True)]


def arrow(metric: str) -> str:
    """Which direction is better: "↑", "↓", or "" where neither is."""
    return {1: "↑", -1: "↓", 0: ""}[METRICS[metric].direction] if metric in METRICS else ""


def benchmark_title(name: str) -> str:
    return BENCHMARKS[name][0] if name in BENCHMARKS else line(name, 40).replace("_", " ")


def metric_title(name: str) -> str:
    return METRICS[name].title if name in METRICS else line(name, 40).replace("_", " ")


def ordered(names: Sequence[str], known: Mapping[str, object]) -> list[str]:
    """Known names in their order, then others by name."""
    order = list(known)
    return sorted(names, key=lambda name: (order.index(name) if name in known else len(order), name))


def main_table(rows: Sequence[Row], scores: Scores, shown: Mapping[str, Sequence[str]] | None = None) -> MainTable:
    """The main table. shown: by benchmark, the metrics to show in place of SHOWN's.

    No row is marked best in a calibration column whose rows differ in k.
    """
    columns = main_columns(scores, rows, shown or {})
    values = [list(scores[column.benchmark, column.metric]) for column in columns]
    fair = [c.metric not in FLOORS or samples_text(rows, [c.benchmark]).isdigit() for c in columns]
    best = [clear_best(v, c.direction) if ok else None for c, v, ok in zip(columns, values, fair, strict=True)]
    return MainTable(columns, rows, values, best)


def main_columns(scores: Scores, rows: Sequence[Row], shown: Mapping[str, Sequence[str]]) -> list[Column]:
    """Accuracy, honesty, truthfulness, ECE (its k in the heading) and entropy, of the benchmarks that have them."""
    parts = _parts(scores)
    columns = []
    for part, names in parts.items():
        for name in names:
            for metric in shown.get(name, SHOWN[part]):
                plain = metric == "accuracy" and part == "accuracy"
                titles = ("Accuracy (mean@k)", benchmark_title(name))
                titles = titles if plain else (benchmark_title(name), metric_title(metric))
                columns.append(Column(name, metric, *titles))
    calibrated = [(name, "ece", "") for name in parts["accuracy"][:1]]
    calibrated += [(name, "ece_answered", ", answered") for part in ("honesty", "truth") for name in parts[part][:1]]
    ece = f"ECE (k={samples_text(rows, [name for name, _, _ in calibrated])})"
    columns += [Column(name, metric, ece, benchmark_title(name) + which) for name, metric, which in calibrated]
    columns += [Column(n, "entropy", "Entropy", "nats/token") for n in (parts["accuracy"] or parts["truth"])[:1]]
    return [column for column in columns if (column.benchmark, column.metric) in scores]


def _parts(scores: Scores) -> dict[str, list[str]]:
    """Benchmarks by what their metrics measure: accuracy, honesty (some questions have no answer) or truth."""
    parts: dict[str, list[str]] = {"accuracy": [], "honesty": [], "truth": []}
    for name in ordered(list({benchmark for benchmark, _ in scores}), BENCHMARKS):
        metrics = {metric for benchmark, metric in scores if benchmark == name}
        part = "honesty" if "refusal_f1" in metrics else "truth" if metrics & {"truthful", "mc1", "mc2"} else "accuracy"
        parts[BENCHMARKS[name][1] if name in BENCHMARKS else part].append(name)
    return parts


def tradeoff_columns(table: MainTable) -> list[Column]:
    """The first columns of accuracy, honesty and truthfulness, and the last ECE: what is drawn against accuracy."""
    first: dict[str, Column] = {}
    for column in table.columns:
        first.setdefault("truth" if column.metric in ("truthful", "mc1", "mc2") else column.metric, column)
    calibration = [column for column in table.columns if column.metric in FLOORS]
    wanted = [first.get("accuracy"), first.get("refusal_f1"), first.get("truth"), *calibration[-1:]]
    return [column for column in wanted if column is not None]


def samples_text(rows: Sequence[Row], benchmarks: Sequence[str]) -> str:
    """k, the samples per question, over all rows: "8", "8 to 16" where they differ, or "?" where none is recorded."""
    ks = sorted(
        {result.k for row in rows for name in benchmarks for result in row.results(name) if result.k is not None}
    )
    return "?" if not ks else str(ks[0]) if len(ks) == 1 else f"{ks[0]} to {ks[-1]}"


def floors(scores: Scores, columns: Sequence[Column]) -> list[tuple[str, str]]:
    """(title, ECE of perfect calibration as "0.03 to 0.05") of each calibration column with simulated floors."""
    texts = []
    for column in columns:
        floor = FLOORS.get(column.metric, "")
        values = [value.value for value in scores.get((column.benchmark, floor), ()) if value is not None]
        if values:
            low, high = min(values), max(values)
            span = decimal(low) if high - low < 0.0005 else f"{decimal(low)} to {decimal(high)}"
            texts.append((column.title, span))
    return texts


def refusal_floors(scores: Scores) -> list[tuple[str, str, float]]:
    """(benchmark's title, "always" or "at random half the time", the refusal F1 of refusing so)."""
    return [
        (benchmark_title(name), REFUSAL_FLOORS[metric], next(v.value for v in values if v is not None))
        for (name, metric), values in scores.items()
        if metric in REFUSAL_FLOORS
    ]


def notes(rows: Sequence[Row], scores: Scores, columns: Sequence[Column]) -> list[str]:
    """What to read with a table of these columns: the ECE of perfect calibration, and warnings of few verdicts."""
    sentence = "ECE, {}: a perfectly calibrated sampler would show about {} at this k."
    return [sentence.format(*floor) for floor in floors(scores, columns)] + few_verdicts(rows, scores, columns)


def few_verdicts(rows: Sequence[Row], scores: Scores, columns: Sequence[Column]) -> list[str]:
    """A warning for each row and benchmark of whose answers less than ENOUGH_VERDICTS were judged."""
    titles: dict[str, list[str]] = {}
    for column in columns:
        if column.metric not in METRICS or METRICS[column.metric].from_verdicts:
            titles.setdefault(column.benchmark, []).append(metric_title(column.metric))
    return [
        f"FEW VERDICTS: {row.label}, {benchmark_title(benchmark)}: {', '.join(metrics)} rest on the "
        f"{1 - missing.value:.0%} of the answers that could be judged, which are no fair sample."
        for benchmark, metrics in titles.items()
        for row, missing in zip(rows, scores.get((benchmark, "no_verdict"), [None] * len(rows)), strict=True)
        if missing is not None and 1 - missing.value < ENOUGH_VERDICTS
    ]
