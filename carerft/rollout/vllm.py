"""The colocated vLLM rollout worker: the engine is in the learner's process, on the learner's device."""

from collections.abc import Sequence
from functools import partial

import torch

from carerft.model.lora import merged_weights
from carerft.rollout import Rollouts, RolloutWorker, Sampling
from carerft.rollout.engine import Engine, EngineOptions
from carerft.rollout.requests import check_context, check_sampling, completion_seeds
from carerft.rollout.sync_check import check_sync, teacher_forced, vocabulary_of


class VllmWorker(RolloutWorker):
    """Samples and scores with one vLLM engine in this process. The engine has no weights before the first `sync`.

    verify_sync: check every sync, not only the first of a run.
    """

    def __init__(self, options: EngineOptions, verify_sync: bool = False):
        """Starts the engine. Raises CareError if it cannot start."""
        self.options, self.verify_sync, self.verified = options, verify_sync, False
        self.engine: Engine | None = Engine(options)

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        check_sampling(prompts, n, sampling, self.options.max_model_len)
        return self._engine().sample(prompts, completion_seeds(prompts, n, seed), sampling)

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        check_context(prompts, [len(c) for c in continuations], self.options.max_model_len)
        return self._engine().log_likelihood(prompts, continuations)

    def sync(self, policy: torch.nn.Module) -> None:
        self._engine().load(merged_weights(policy))
        if self.verify_sync or not self.verified:
            score, options = partial(teacher_forced, policy, dtype=self.options.dtype), self.options
            check_sync(self._probe, score, vocabulary_of(policy), options.dtype, options.max_model_len)
            self.verified = True

    def sleep(self) -> None:
        """Gives the engine's memory to the learner until the next `sync`, where vLLM can: not on a CPU."""
        self._engine().sleep()

    def reset(self) -> None:
        self.sleep()
        self.verified = False

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _probe(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> Rollouts:
        return self.sample(prompts, 1, sampling, seed)

    def _engine(self) -> Engine:
        assert self.engine is not None, "the worker is closed"
        return self.engine
