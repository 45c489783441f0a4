"""What stands under every printed table: the ECE of a perfect sampler, and which numbers rest on few verdicts.

An accuracy or an ECE speaks of the answers that could be judged. Where these are few (free text on TruthfulQA) they are
no fair sample, and the number beside its neighbours would mislead.
"""

from collections.abc import Sequence

from carerft.metrics.names import ENOUGH_VERDICTS, METRICS
from carerft.report.cells import Cell, Scores
from carerft.report.columns import Column, benchmark_title, floors, metric_title
from carerft.text import decimal


def notes(cells: Sequence[Cell], scores: Scores, columns: Sequence[Column]) -> list[str]:
    """Sentences to read with a table of these columns. scores: of `carerft.report.cells.scores`."""
    found = []
    for title, low, high in floors(scores, columns):
        span = decimal(low) if high - low < 0.0005 else f"{decimal(low)} to {decimal(high)}"
        found.append(f"ECE, {title}: a perfectly calibrated sampler would show about {span} at this k.")
    return found + few_verdicts(cells, scores, columns)


def few_verdicts(cells: Sequence[Cell], scores: Scores, columns: Sequence[Column]) -> list[str]:
    """A warning for each row and benchmark whose numbers in these columns rest on less than ENOUGH_VERDICTS of the answers."""
    resting: dict[str, list[str]] = {}
    for column in columns:
        if column.metric not in METRICS or METRICS[column.metric].from_verdicts:
            resting.setdefault(column.benchmark, []).append(metric_title(column.metric))
    found = []
    for benchmark, titles in resting.items():
        for cell, missing in zip(cells, scores.get((benchmark, "no_verdict"), [None] * len(cells)), strict=True):
            if missing is not None and 1 - missing.value < ENOUGH_VERDICTS:
                found.append(
                    f"FEW VERDICTS: {cell.label}, {benchmark_title(benchmark)}: {', '.join(titles)} rest on the "
                    f"{1 - missing.value:.0%} of the answers that could be judged, which are no fair sample."
                )
    return found
