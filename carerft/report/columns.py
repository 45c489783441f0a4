"""The main table: which numbers it shows, under which names, and the warnings that belong beneath it.

A benchmark that isn't listed here is shown under its own name, in the part of the table that suits its metrics.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from carerft.metrics.intervals import clear_best
from carerft.metrics.names import BY_LIKELIHOOD, ENOUGH_VERDICTS, FIRST, FLOORS, METRICS
from carerft.metrics.statistics import Interval
from carerft.report.rows import Quantity, Row, describe, quantities
from carerft.text import decimal, line

BENCHMARKS = {
    "world_reasoning": ("Reasoning", "accuracy"),
    "math": ("MATH", "accuracy"),
    "math500": ("MATH-500", "accuracy"),
    "gsm8k": ("GSM8K", "accuracy"),
    "arithmetic_20": ("Arithmetic to 20", "accuracy"),
    "arithmetic_99": ("Arithmetic to 99", "accuracy"),
    "world_transfer": ("Transfer", "accuracy"),
    "world_honesty": ("Honesty", "honesty"),
    "selfaware": ("SelfAware", "honesty"),
    "world_truth": ("Truthfulness", "truth"),
    "truthfulqa": ("TruthfulQA", "truth"),
    "truthfulqa_binary": ("TruthfulQA, two options", "truth"),
    "truthfulqa_options": ("TruthfulQA, (A) or (B)", "truth"),
    "combined": ("All together", "combined"),
}
"""Title, and part of the table; in the order of tables and figures."""
SHOWN = {
    "accuracy": ("accuracy",),
    "honesty": ("accuracy", "refusal_f1"),
    "truth": ("accuracy", "truthful", "mc2"),
    "combined": (),
}
"""The metrics that the main table shows of a benchmark, by its part of the table. `columns` may name others, which then
stand beside its accuracy."""
ECE = "ece_answered"
"""The one of the main table: where refusing is possible, a refusal's votes are no confidence in an answer."""
REFUSAL_FLOORS = {"refusal_f1_always": "always", "refusal_f1_random": "at random half the time"}


@dataclass(frozen=True)
class Column:
    """A metric of a benchmark, under `group`'s heading."""

    benchmark: str
    metric: str
    group: str
    title: str

    @property
    def quantity(self) -> Quantity:
        return self.benchmark, self.metric

    @property
    def direction(self) -> int:
        """+1 if higher is better, -1 if lower is, 0 if neither."""
        return describe(self.metric).direction

    @property
    def heading(self) -> str:
        """The whole heading on one line, for tables with a single header row."""
        return " ".join(f"{self.group}: {self.title} {arrow(self.metric)}".split())

    @property
    def caption(self) -> str:
        """The benchmark and the metric, wherever the column stands alone."""
        return f"{benchmark_title(self.benchmark)}: {describe(self.metric).title}"


@dataclass(frozen=True)
class MainTable:
    """What rows have in each of the columns, and which of them is best."""

    columns: list[Column]
    rows: Sequence[Row]

    @cached_property
    def best(self) -> list[int | None]:
        """By column, the index of the row that is best beyond its interval, or None. No row is best in a calibration
        column whose rows differ in k, or where one of them rests on few verdicts."""
        best = []
        for column in self.columns:
            comparable = column.metric not in FLOORS or samples_text(self.rows, [column.benchmark]).isdigit()
            comparable &= not few_verdicts(self.rows, [column])
            values = [row.scores.get(column.quantity) for row in self.rows]
            best.append(clear_best(values, column.direction) if comparable else None)
        return best

    @property
    def groups(self) -> list[tuple[str, list[Column]]]:
        """Neighbouring columns under one heading, with it."""
        return [(name, list(columns)) for name, columns in groupby(self.columns, key=lambda column: column.group)]

    def row(self, index: int) -> list[tuple[Interval | None, bool]]:
        """One row's values, each with whether it is clearly the best of its column."""
        scores = self.rows[index].scores
        return [
            (scores.get(column.quantity), best == index) for column, best in zip(self.columns, self.best, strict=True)
        ]


def arrow(metric: str) -> str:
    """Which direction is better: "↑", "↓", or "" where neither is."""
    return {1: "↑", -1: "↓", 0: ""}[describe(metric).direction]


def benchmark_title(name: str) -> str:
    return BENCHMARKS[name][0] if name in BENCHMARKS else line(name, 40).replace("_", " ")


def ordered(names: Iterable[str], known: Mapping[str, object]) -> list[str]:
    """Known names in their order, then others by name."""
    order = list(known)
    return sorted(names, key=lambda name: (order.index(name) if name in known else len(order), name))


def metrics_by_benchmark(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The metrics that any of the rows has of each benchmark, both in the order of tables."""
    found: dict[str, list[str]] = {}
    for benchmark, metric in quantities(rows):
        found.setdefault(benchmark, []).append(metric)
    return {name: ordered(found[name], METRICS) for name in ordered(found, BENCHMARKS)}


def main_table(rows: Sequence[Row], shown: Mapping[str, Sequence[str]] | None = None) -> MainTable:
    """The main table. shown: by benchmark, the metrics to show in place of SHOWN's."""
    return MainTable(main_columns(rows, shown or {}), rows)


def terminal_table(rows: Sequence[Row], shown: Mapping[str, Sequence[str]], everything: bool) -> MainTable:
    """Of the main table the metrics that a terminal shows unasked and those of `shown`; or every metric there is."""
    if everything:
        columns = [
            Column(name, metric, benchmark_title(name), describe(metric).title)
            for name, metrics in metrics_by_benchmark(rows).items()
            for metric in metrics
        ]
    else:
        columns = main_columns(rows, shown)
        columns = [c for c in columns if c.metric in FIRST or c.metric in shown.get(c.benchmark, ())]
    return MainTable(columns, rows)


def main_columns(rows: Sequence[Row], shown: Mapping[str, Sequence[str]]) -> list[Column]:
    """Accuracy, honesty, truthfulness, one ECE (its k in the heading) and entropy, of the benchmarks that have them."""
    parts = _parts(rows)
    names = [name for part in parts.values() for name in part]
    columns = [Column(name, "accuracy", "Accuracy (mean@k)", benchmark_title(name)) for name in names]
    for part, members in parts.items():
        for name in members:
            others = [metric for metric in shown.get(name, SHOWN[part]) if metric != "accuracy"]
            columns += [Column(name, metric, benchmark_title(name), describe(metric).title) for metric in others]
    calibrated = [name for part in ("accuracy", "honesty", "truth") for name in parts[part][:1]] + parts["combined"]
    ece = f"{describe(ECE).title} (k={samples_text(rows, calibrated)})"
    columns += [Column(name, ECE, ece, benchmark_title(name)) for name in calibrated]
    columns += [Column(n, "entropy", "Entropy", "nats/token") for n in (parts["accuracy"] or parts["truth"])[:1]]
    known = quantities(rows)
    return [column for column in columns if column.quantity in known]


def _parts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Benchmarks by what their metrics measure: accuracy, honesty (some questions have no answer) or truth."""
    parts: dict[str, list[str]] = {"accuracy": [], "honesty": [], "truth": [], "combined": []}
    for name, metrics in metrics_by_benchmark(rows).items():
        truth = {"truthful", *BY_LIKELIHOOD}.intersection(metrics)
        part = "honesty" if "refusal_f1" in metrics else "truth" if truth else "accuracy"
        parts[BENCHMARKS[name][1] if name in BENCHMARKS else part].append(name)
    return parts


def tradeoff_columns(table: MainTable) -> list[Column]:
    """The first columns of accuracy, honesty and truthfulness, and the last ECE: what is drawn against accuracy."""
    first: dict[str, Column] = {}
    for column in table.columns:
        first.setdefault("truth" if column.metric in ("truthful", *BY_LIKELIHOOD) else column.metric, column)
    calibration = [column for column in table.columns if column.metric in FLOORS]
    wanted = [first.get("accuracy"), first.get("refusal_f1"), first.get("truth"), *calibration[-1:]]
    return [column for column in wanted if column is not None]


def key_figures(table: MainTable) -> list[tuple[Column, str, str, str]]:
    """Numbers to take in at a glance, one each of accuracy, honesty, truthfulness and calibration: the column; over the
    trained rows "0.696 to 0.708" (without one, over all rows); the same of their base models, or ""; and the row that
    is clearly the best, or ""."""
    figures = []
    for column in tradeoff_columns(table):
        known = [(row.family == "base", row.scores[column.quantity].value) for row in table.rows
                 if column.quantity in row.scores]  # fmt: skip
        trained, base = ([value for is_base, value in known if is_base == wanted] for wanted in (False, True))
        best = table.best[table.columns.index(column)]
        label = "" if best is None else table.rows[best].label
        figures.append((column, span(trained or base), span(base) if trained and base else "", label))
    return figures


def span(values: Sequence[float]) -> str:
    """ "0.030 to 0.050", or one number where they agree."""
    ends = dict.fromkeys((decimal(min(values)), decimal(max(values))))
    return " to ".join(ends)


def glossary(columns: Sequence[Column]) -> dict[str, str]:
    """What each metric of these columns means, by its title."""
    return {METRICS[c.metric].title: METRICS[c.metric].meaning for c in columns if c.metric in METRICS}


def samples_text(rows: Sequence[Row], benchmarks: Sequence[str]) -> str:
    """k, the samples per question, over all rows: "8", "8 to 16" where they differ, or "?" where none is recorded."""
    found = {result.k for row in rows for name in benchmarks for result in row.results(name) if result.k is not None}
    ks = sorted(found - {0} or found)  # 0: of choices alone
    return "?" if not ks else str(ks[0]) if len(ks) == 1 else f"{ks[0]} to {ks[-1]}"


def floors(rows: Sequence[Row], columns: Sequence[Column]) -> list[tuple[str, str, str]]:
    """(the metric's title, the benchmark's, the same of perfect calibration as "0.03 to 0.05") of each calibration
    column with simulated floors."""
    texts = []
    for column in columns:
        floor = column.benchmark, FLOORS.get(column.metric, "")
        values = [row.scores[floor].value for row in rows if floor in row.scores]
        if values:
            texts.append((describe(column.metric).title, benchmark_title(column.benchmark), span(values)))
    return texts


def refusal_floors(rows: Sequence[Row]) -> list[tuple[str, str, float]]:
    """(benchmark's title, "always" or "at random half the time", the refusal F1 of refusing so)."""
    found = []
    for name, metric in quantities(rows):
        if metric in REFUSAL_FLOORS:
            score = next(row.scores[name, metric] for row in rows if (name, metric) in row.scores)
            found.append((benchmark_title(name), REFUSAL_FLOORS[metric], score.value))
    return found


def notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """What to read with a table of these columns: the ECE of perfect calibration, and warnings of few verdicts."""
    sentence = "{}, on {}: a perfectly calibrated sampler would show about {} at this k."
    return [sentence.format(*floor) for floor in floors(rows, columns)] + few_verdicts(rows, columns)


def few_verdicts(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """A warning for each row and benchmark of whose answers less than ENOUGH_VERDICTS were judged."""
    titles: dict[str, list[str]] = {}
    for column in columns:
        if describe(column.metric).from_verdicts:
            titles.setdefault(column.benchmark, []).append(describe(column.metric).title)
    return [
        f"FEW VERDICTS: {row.label}, {benchmark_title(benchmark)}: {', '.join(metrics)} rest on the "
        f"{1 - missing.value:.0%} of the answers that could be judged, which are no fair sample."
        for benchmark, metrics in titles.items()
        for row in rows
        if (missing := row.scores.get((benchmark, "no_verdict"))) and 1 - missing.value < ENOUGH_VERDICTS
    ]
