"""Sampling ahead: while the learner works on one batch, the sampler makes the next, with the weights that were current
when the learner began. One step off-policy, at most; `rollout.importance_correction` corrects for it.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from carerft.errors import CareError
from carerft.training.collector import Batch, Collector
from carerft.training.learner import Learner


class Lookahead:
    """Stands in for a Collector whose worker has weights of its own, so that the learner may change the policy's."""

    def __init__(self, collector: Collector):
        self.collector = collector
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lookahead")
        self._pending: Future[Batch] | None = None
        self._sampled_at = 0  # the learner's step when the pending batch's weights were taken

    def next(self, learner: Learner, last: bool) -> Batch:
        """The batch that was begun at the last call, or a fresh one; begins another unless this is the last.

        Raises what `Collector.next` raises.
        """
        synced, began = 0.0, time.perf_counter()
        if self._pending is None:
            synced, self._sampled_at = self.collector.sync(learner), learner.steps_done
            batch = self.collector.sample()
        else:
            pending, self._pending = self._pending, None
            batch = pending.result()
        batch.metrics["time/wait_s"] = time.perf_counter() - began - synced
        batch.metrics["rollout/staleness"] = float(learner.steps_done - self._sampled_at)
        if not last:
            synced += self.collector.sync(learner)
            self._sampled_at = learner.steps_done
            self._pending = self._thread.submit(self.collector.sample)
        batch.metrics["time/sync_s"] = synced
        self.collector.correct(batch, learner)
        return batch

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: the pending batch, too, which is waited for; its weights will be gone."""
        pending = None
        if self._pending is not None:
            try:
                pending = self._pending.result().state()
            except CareError:  # told when the batch is asked for; a resumed run samples it anew
                pending = None
        return {"drawn": self.collector.state(), "pending": pending, "sampled_at": self._sampled_at}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.collector.load_state(state["drawn"])
        self._sampled_at = state["sampled_at"]
        if state["pending"] is not None:
            self._pending = Future()
            self._pending.set_result(Batch.from_state(state["pending"]))
