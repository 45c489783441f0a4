"""The colocated vLLM rollout worker: the engine is in the learner's process, on the learner's device."""

import torch

from carerft.model.lora import merged_weights
from carerft.rollout import RolloutWorker
from carerft.rollout.engine import Engine, EngineOptions
from carerft.rollout.sync_check import check_sync


class VllmWorker(Engine, RolloutWorker):
    """One vLLM engine in this process. It has no weights before the first `sync`.

    verify_sync: check every sync, not only the first of a run.
    """

    def __init__(self, options: EngineOptions, verify_sync: bool = False):
        """Starts the engine. Raises CareError if it cannot start."""
        super().__init__(options)
        self.verify_sync, self.verified = verify_sync, False

    def sync(self, policy: torch.nn.Module) -> None:
        self.load(merged_weights(policy))
        if self.verify_sync or not self.verified:
            check_sync(self.sample, policy, self.options)
            self.verified = True

    def reset(self) -> None:
        self.sleep()
        self.verified = False
