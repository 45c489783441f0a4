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
        self.engine = Engine(options)

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        check_sampling(prompts, n, sampling, self.options.max_model_len)
        return self.engine.sample(prompts, completion_seeds(prompts, n, seed), sampling)

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        check_context(prompts, [len(c) for c in continuations], self.options.max_model_len)
        return self.engine.log_likelihood(prompts, continuations)

    def sync(self, policy: torch.nn.Module) -> None:
        self.engine.load(merged_weights(policy))
        if self.verify_sync or not self.verified:
            score = partial(teacher_forced, policy, dtype=self.options.dtype)
            check_sync(self.sample, score, vocabulary_of(policy), self.options)
            self.verified = True

    def sleep(self) -> None:
        """Gives the engine's memory to the learner until the next `sync`, where vLLM can: not on a CPU."""
        self.engine.sleep()

    def reset(self) -> None:
        self.sleep()
        self.verified = False

    def close(self) -> None:
        self.engine.close()
