"""The colocated vLLM rollout worker: the engine lives in the learner's process, on the learner's device."""

from collections.abc import Sequence
from functools import partial

import torch

from carerft.model.lora import merged_weights
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.engine import Engine, EngineOptions
from carerft.rollout.requests import check_context, check_sampling, completion_seeds
from carerft.rollout.sync_check import prove_sync, teacher_forced, vocabulary_of


class VllmWorker:
    """Samples and scores with one vLLM engine in this process. Implements `RolloutWorker`.

    The engine has no weights of its own: `sync` comes first. verify_sync: prove every sync, not only the first.
    """

    def __init__(self, options: EngineOptions, verify_sync: bool = False):
        """Starts the engine. Raises CareError where it can't start."""
        self.options, self.verify_sync, self.proven = options, verify_sync, False
        self.engine: Engine | None = Engine(options)

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        """n completions of each prompt. The same weights, arguments and seed give the same samples.

        Raises DataError (no prompts, an empty one, one longer than the context), ConfigError (sampling out of range,
        max_tokens beyond the context) and NonFiniteError (the model's probabilities are not numbers).
        """
        check_sampling(prompts, n, sampling, self.options.context)
        return self._engine().sample(prompts, completion_seeds(prompts, n, seed), sampling)

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Sum of log-probabilities (nats) of each continuation's tokens given its prompt, at temperature 1.

        Raises DataError: no prompts, an empty one, or one that with its continuation exceeds the context.
        """
        check_context(prompts, [len(c) for c in continuations], self.options.context)
        return self._engine().log_likelihood(prompts, continuations)

    def sync(self, policy: torch.nn.Module) -> None:
        """Sample from these weights from now on. Raises CareError where the engine then computes something else."""
        self._engine().load(merged_weights(policy))
        if self.verify_sync or not self.proven:
            score = partial(teacher_forced, policy, dtype=self.options.dtype)
            prove_sync(self._probe, score, vocabulary_of(policy), self.options.dtype, self.options.context)
            self.proven = True

    def sleep(self) -> None:
        """Give the engine's memory to the learner until the next `sync`, where vLLM can: not on a CPU."""
        self._engine().sleep()

    def rest(self) -> None:
        """A run is over: another one's policy is to be synced, and proven, anew."""
        self.sleep()
        self.proven = False

    def close(self) -> None:
        """End the engine. May be repeated."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _probe(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> Rollouts:
        return self.sample(prompts, 1, sampling, seed)

    def _engine(self) -> Engine:
        assert self.engine is not None, "the worker is closed"
        return self.engine
