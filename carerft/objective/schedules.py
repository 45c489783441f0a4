"""Schedules: numbers that change over a run."""

import math

SCHEDULES = ("constant", "linear", "cosine")


def scheduled(schedule: str, start: float, end: float | None, progress: float) -> float:
    """The number at `progress` (0 at the first step, 1 at the last).

    schedule: "constant" (start; also if end is None), or from start to end by "linear" or "cosine" (half a period: slow
    at both ends).
    """
    if schedule == "constant" or end is None:
        return start
    share = progress if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
    return start + (end - start) * share
