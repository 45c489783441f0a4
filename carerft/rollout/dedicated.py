"""The dedicated vLLM rollout worker: engines in processes of their own, which share each request's prompts.

Ray starts the processes, carries requests and results, and holds the weights once for all of them. An engine that dies
or hangs is replaced by one with the same weights, which samples the lost prompts again; seeds belong to prompts, so
the samples are those of an undisturbed run.
"""

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carerft.errors import CareError, EngineError
from carerft.model.lora import merged_weights, rounded
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.engine import Engine, EngineOptions
from carerft.rollout.local_ray import lacking_gpus, start_ray
from carerft.rollout.requests import check_context, check_sampling, completion_seeds
from carerft.rollout.sync_check import prove_sync, teacher_forced, vocabulary_of

log = logging.getLogger(__name__)

CLOSED = "the rollout worker was closed while it sampled"
START_S = 1800.0  # a large model takes minutes to start, and a start that hangs is rare


class EngineProcess:
    """What runs in a process of its own. Started by `start`, so that its errors come back as what they are."""

    def identity(self) -> tuple[str, int]:
        """The node and the process that this runs in."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def start(self, options: EngineOptions) -> None:
        logging.getLogger("ray").setLevel(logging.ERROR)
        self.engine = Engine(options)

    def load(self, weights: dict[str, np.ndarray]) -> None:
        self.engine.load((name, from_array(array)) for name, array in weights.items())

    def transfer(self, *arguments: Any) -> None:
        self.engine.transfer(*arguments)

    def sample(self, *arguments: Any) -> Rollouts:
        return self.engine.sample(*arguments)

    def log_likelihood(self, *arguments: Any) -> list[float]:
        return self.engine.log_likelihood(*arguments)


def as_array(weight: Tensor, precision: torch.dtype) -> np.ndarray:
    """A weight as it travels: an array, of which all engines of a machine read one copy in Ray's store. Half precision
    is rounded to before, not after; numpy has no bfloat16, so its bits are taken for integers."""
    held = rounded(weight.detach(), precision).cpu()
    return (held.view(torch.int16) if held.dtype == torch.bfloat16 else held).numpy()


def from_array(array: np.ndarray) -> Tensor:
    """The weight, in memory of its own: what lies in Ray's store is read-only, which PyTorch has no notion of."""
    held = torch.tensor(array)
    return held.view(torch.bfloat16) if held.dtype == torch.int16 else held


@dataclass
class _Engine:
    """A running engine: Ray's handle of it, and where it runs."""

    handle: Any
    node: str
    pid: int


class DedicatedWorker:
    """Samples and scores with several vLLM engines, each in its own process. Implements `RolloutWorker`.

    engines: how many. timeout_s: seconds after which an engine that hasn't answered a request counts as hung.
    max_restarts: engines replaced during one request, at most. verify_sync: prove every sync, not only the first.
    """

    def __init__(
        self,
        options: EngineOptions,
        engines: int,
        timeout_s: float,
        max_restarts: int,
        verify_sync: bool = False,
    ):
        """Starts the engines, side by side. Raises CareError where they can't start."""
        self.options, self.timeout_s, self.max_restarts = options, timeout_s, max_restarts
        self.verify_sync, self.proven, self.weights = verify_sync, False, None
        self._transfer: Any = None  # of carerft.rollout.transfer, where that is how weights come
        self.engines: list[_Engine | None] = [None] * engines
        self._asking, self._closed = threading.RLock(), False
        self._own_ray = start_ray(engines)
        try:
            if lacking := lacking_gpus(engines * self._gpus()):
                log.warning("%s: waiting for them, %d minutes at most", lacking, START_S // 60)
            self._start(range(engines))
        except BaseException:
            self.close()
            raise

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        """n completions of each prompt. The same weights, arguments and seed give the same samples, on any number of
        engines.

        Raises DataError (no prompts, an empty one, one longer than the context), ConfigError (sampling out of range,
        max_tokens beyond the context), NonFiniteError (the model's probabilities are not numbers) and EngineError
        (more engines lost than may be replaced).
        """
        check_sampling(prompts, n, sampling, self.options.context)
        seeds = completion_seeds(prompts, n, seed)
        shares = self._shares(len(prompts))
        parts = self._ask(
            "sample", [([list(prompts[i]) for i in share], [seeds[i] for i in share], sampling) for share in shares]
        )
        order = torch.tensor([i for share in shares for i in share]).argsort()
        return Rollouts.concatenate(parts).prompts(order)

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Sum of log-probabilities (nats) of each continuation's tokens given its prompt, at temperature 1.

        Raises DataError (no prompts, an empty one, or one that with its continuation exceeds the context) and
        EngineError (more engines lost than may be replaced).
        """
        check_context(prompts, [len(c) for c in continuations], self.options.context)
        shares = self._shares(len(prompts))
        parts = self._ask(
            "log_likelihood", [([list(prompts[i]) for i in s], [list(continuations[i]) for i in s]) for s in shares]
        )
        totals = [0.0] * len(prompts)
        for share, part in zip(shares, parts, strict=True):
            for i, total in zip(share, part, strict=True):
                totals[i] = total
        return totals

    def sync(self, policy: torch.nn.Module) -> None:
        """Sample from these weights from now on. Raises CareError where an engine then computes something else."""
        if self.options.weight_transfer:
            from carerft.rollout.transfer import Transfer

            self._transfer = self._transfer or Transfer(self._ask, len(self.engines), self.options.tensor_parallel_size)
            self._transfer.send(policy)
        else:
            self.load(merged_weights(policy))
        self.prove(partial(teacher_forced, policy, dtype=self.options.dtype), vocabulary_of(policy))

    @property
    def precision(self) -> torch.dtype:
        """The engines'."""
        return getattr(torch, self.options.dtype)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """The first half of `sync`: give all engines these weights, named as in a checkpoint."""
        import ray

        self.weights = ray.put({name: as_array(weight, self.precision) for name, weight in weights})
        self._ask("load", [(self.weights,)] * len(self.engines))

    def prove(self, score: Callable[[Tensor, Tensor], Tensor], vocabulary: int) -> None:
        """The second half: `prove_sync` of each engine, where that is due."""
        if self.proven and not self.verify_sync:
            return
        for index in range(len(self.engines)):

            def probe(prompts: list[list[int]], sampling: Sampling, seed: int, index: int = index) -> Rollouts:
                return self._ask("sample", [(prompts, completion_seeds(prompts, 1, seed), sampling)], [index])[0]

            prove_sync(probe, score, vocabulary, self.options.dtype, self.options.context)
        self.proven = True

    def sleep(self) -> None:
        """The engines have memory of their own: there is none to give to the learner."""

    def rest(self) -> None:
        """A run is over: another one's policy is to be synced, and proven, anew."""
        self.weights, self.proven = None, False

    def close(self) -> None:
        """End the engines, and Ray if it was started here. May be repeated.

        A request that another thread waits for (sampling ahead) ends with an EngineError.
        """
        import ray

        self._closed = True
        for index in range(len(self.engines)):
            self._kill(index)
        if self._asking.acquire(timeout=60):  # until no thread uses Ray, which would start it anew
            self._asking.release()
        for index in range(len(self.engines)):  # what that thread was starting
            self._kill(index)
        self.weights = None
        if self._transfer is not None:
            self._transfer.close()
        if self._own_ray:
            gc.collect()  # of handles in cycles, too: see `_start`
            ray.shutdown()
            self._own_ray = False

    def _shares(self, count: int) -> list[range]:
        """Which prompts each engine takes: dealt out like cards. Engines for which none is left take no part."""
        return [range(i, count, len(self.engines)) for i in range(min(count, len(self.engines)))]

    def _ask(self, method: str, arguments: Sequence[tuple], indices: Sequence[int] | None = None) -> list[Any]:
        """Each engine's answer to a method, in order; arguments[i] are those of engine indices[i], or i.

        Engines that die or don't answer in time are replaced, and asked again.
        """
        with self._asking:
            return self._answers(method, arguments, indices)

    def _answers(self, method: str, arguments: Sequence[tuple], indices: Sequence[int] | None) -> list[Any]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        indices = range(len(arguments)) if indices is None else indices
        answers: dict[int, Any] = {}
        waiting: dict[Any, int] = {}  # Ray's reference of an answer -> place in arguments
        restarts = 0

        def ask(places: Sequence[int]) -> float:
            for place in places:
                engine = self.engines[indices[place]]
                assert engine is not None, "the worker is closed"
                waiting[getattr(engine.handle, method).remote(*arguments[place])] = place
            return time.monotonic() + self.timeout_s

        deadline = ask(range(len(arguments)))
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            lost: dict[int, str] = {}
            if not ready:
                why = f"gave no answer within rollout.timeout_s={self.timeout_s:g}"
                lost = dict.fromkeys(waiting.values(), why)
                waiting.clear()
            for reference in ready:
                place = waiting.pop(reference)
                try:
                    answers[place] = ray.get(reference)
                except RayTaskError as error:
                    raise error.cause from error
                except RayError as error:
                    lost[place] = f"died ({type(error).__name__})"
            if self._closed:
                raise EngineError(CLOSED)
            if lost:
                restarts += len(lost)
                what = "; ".join(f"engine {indices[place]} {why} during {method!r}" for place, why in lost.items())
                if restarts > self.max_restarts:
                    raise EngineError(
                        f"{what}, and rollout.max_restarts={self.max_restarts} allows no further restart",
                        "the same command goes on from the last checkpoint: with a longer rollout.timeout_s if the "
                        "engine was only slow, with a smaller rollout.gpu_memory_utilization or rollout.kv_cache_gib "
                        "if the system ended it for want of memory",
                    )
                log.warning("%s: replacing it and asking again", what)
                self._start([indices[place] for place in lost])
                if self._closed:
                    raise EngineError(CLOSED)
                deadline = ask(list(lost))
        return [answers[place] for place in range(len(arguments))]

    def _start(self, indices: Sequence[int]) -> None:
        """Start or replace engines, with the current weights."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        for index in indices:
            self._kill(index)
        kind = ray.remote(num_cpus=0, num_gpus=self._gpus(), max_restarts=0)(EngineProcess)
        handles, placed = [kind.remote() for _ in indices], False
        try:
            for index, handle in zip(indices, handles, strict=True):
                self.engines[index] = _Engine(handle, *ray.get(handle.identity.remote(), timeout=START_S))
            placed = True
            ready = [handle.start.remote(self.options) for handle in handles]
            if self.weights is not None:
                ready += [handle.load.remote(self.weights) for handle in handles]
            ray.get(ready, timeout=START_S)
        except RayTaskError as error:
            raise error.cause from error
        except (GetTimeoutError, RayError) as error:
            why = type(error).__name__
            if not placed:
                with suppress(Exception):  # of a Ray that is gone itself
                    why = lacking_gpus(len(indices) * self._gpus()) or why
            raise CareError(
                f"a vLLM engine process did not start ({why})",
                "lower rollout.engines or rollout.tensor_parallel_size, or look for the cause in the system's log (out "
                "of memory?)",
            ) from error
        finally:
            # An exception keeps this frame. Handles that outlive their Ray would, when they are collected, end engines
            # of the next one in this process, whose ids are the same.
            handles.clear()
            handle = None

    def _gpus(self) -> int:
        """Of one engine."""
        return self.options.tensor_parallel_size if torch.cuda.is_available() else 0

    def _kill(self, index: int) -> None:
        """End an engine's process at once, also one that is stopped or hangs."""
        import ray

        engine, self.engines[index] = self.engines[index], None
        if engine is None or not ray.is_initialized():
            return
        with suppress(Exception):
            ray.kill(engine.handle)
        if engine.node == ray.get_runtime_context().get_node_id():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(engine.pid, signal.SIGKILL)
