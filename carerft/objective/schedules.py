"""How a number moves over a run."""

import math

SCHEDULES = ("constant", "linear", "cosine")


def scheduled(schedule: str, start: float, end: float | None, progress: float) -> float:
    """The number at `progress` (0 at the first step, 1 at the last) on its way from start to end.

    schedule: "constant" (stays at start), "linear", or "cosine" (half a wave: slow at both ends).
    """
    if schedule == "constant" or end is None:
        return start
    share = progress if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
    return start + (end - start) * share
