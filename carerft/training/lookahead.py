"""Lookahead: while the learner works on one batch, the next is sampled with the weights from before the learner began.

Batches are therefore one batch off-policy; `rollout.importance_correction` corrects for it.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

from carerft.errors import CareError
from carerft.training.collector import Batch, Collector
from carerft.training.learner import Learner


class Lookahead:
    """A rollout source that samples in a thread. The collector's worker must have its own copy of the weights, because
    the learner changes the policy's meanwhile."""

    def __init__(self, collector: Collector):
        self.collector = collector
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lookahead")
        self._pending: Future[Batch] | None = None

    def next(self, learner: Learner, last: bool) -> Batch:
        """The batch that the last call began to sample, or a new one. Begins the next, unless this is the last.

        Raises what `Collector.next` raises.
        """
        sync_s, start = 0.0, time.perf_counter()
        if self._pending is None:
            sync_s = self.collector.sync(learner)
            batch = self.collector.sample()
        else:
            pending, self._pending = self._pending, None
            batch = pending.result()
        batch.metrics["time/wait_s"] = time.perf_counter() - start - sync_s
        batch.metrics["rollout/staleness"] = float(learner.steps_done - self.collector.synced_at)
        if not last:
            sync_s += self.collector.sync(learner)
            self._pending = self._thread.submit(self.collector.sample)
        batch.metrics["time/sync_s"] = sync_s
        self.collector.correct(batch, learner)
        return batch

    def wait(self) -> None:
        """Until nothing is sampled: the worker is then free for something else, and its weights may change."""
        if self._pending is not None:
            wait([self._pending])

    def state(self) -> dict[str, Any]:
        """What a resumed run needs. Waits for the pending batch and includes it, because its weights will be gone."""
        pending = None
        if self._pending is not None:
            with suppress(CareError):  # `next` raises it; a resumed run samples the batch anew
                pending = self._pending.result().state()
        return {"drawn": self.collector.state(), "pending": pending, "sampled_at": self.collector.synced_at}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.collector.load_state(state["drawn"])
        self.collector.synced_at = state["sampled_at"]
        if state["pending"] is not None:
            self._pending = Future()
            self._pending.set_result(Batch.from_state(state["pending"]))
