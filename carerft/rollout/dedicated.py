"""The dedicated vLLM rollout worker: engines in processes of their own, which share the prompts of each request.

Ray starts the processes, carries requests and answers, and stores the weights once for all of them. An engine that dies
or hangs is replaced by one with the same weights, which samples the lost prompts again; seeds belong to prompts, so
the samples are those of an undisturbed run.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from carerft.errors import CareError, EngineError
from carerft.model.lora import merged_weights, rounded
from carerft.rollout.engine import Engine, EngineOptions
from carerft.rollout.local_ray import gpu_shortage, start_ray
from carerft.rollout.requests import SharingWorker
from carerft.rollout.sync_check import check_sync, teacher_forced

log = logging.getLogger(__name__)

START_S = 1800.0  # a large model takes minutes to start, and a start that hangs is rare


class EngineProcess(Engine):
    """The Ray actor that is an engine. `start` starts it, because Ray hides the errors of a constructor."""

    def __init__(self) -> None:
        pass

    def identity(self) -> tuple[str, int]:
        """The ids of the node and of the process that this runs in."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def start(self, options: EngineOptions) -> str:
        """Returns the engine's `runner`."""
        logging.getLogger("ray").setLevel(logging.ERROR)
        super().__init__(options)
        return self.runner

    def load_arrays(self, weights: dict[str, np.ndarray]) -> None:
        self.load((name, from_array(array)) for name, array in weights.items())


def as_array(weight: Tensor, precision: torch.dtype) -> np.ndarray:
    """A weight in the engines' precision as an array, of which all engines of a machine read one copy in Ray's store.

    numpy has no bfloat16: the bits of such a weight are taken for int16.
    """
    cpu = rounded(weight.detach(), precision).cpu()
    return (cpu.view(torch.int16) if cpu.dtype == torch.bfloat16 else cpu).numpy()


def from_array(array: np.ndarray) -> Tensor:
    """The weight, copied: memory in Ray's store is read-only, which PyTorch does not support."""
    weight = torch.tensor(array)
    return weight.view(torch.bfloat16) if weight.dtype == torch.int16 else weight


class RunningEngine(NamedTuple):
    """Ray's handle of an `EngineProcess`, and the node and process that it runs in."""

    handle: Any
    node: str
    pid: int


class DedicatedWorker(SharingWorker):
    """Samples and scores with one or more vLLM engines, each in its own process, on any number of which it gives the
    same samples.

    timeout_s: an engine that takes longer for a request counts as hung. max_restarts: engines replaced during one
    request, at most; if more are lost, sampling, scoring and syncing raise EngineError. verify_sync: check every sync,
    not only the first of a run.
    """

    def __init__(
        self, options: EngineOptions, engines: int, timeout_s: float, max_restarts: int, verify_sync: bool = False
    ):
        """Starts the engines, all at the same time. Raises CareError if they cannot start."""
        super().__init__(self._call, engines, options.max_model_len)
        self.options, self.timeout_s, self.max_restarts = options, timeout_s, max_restarts
        self.verify_sync, self.verified = verify_sync, False
        self.precision: torch.dtype = getattr(torch, options.dtype)  # of the engines' weights
        self._gpus_per_engine = options.tensor_parallel_size if torch.cuda.is_available() else 0
        self.weights: Any = None  # Ray's reference of the current weights, with which a lost engine is replaced
        self._transfer: Any = None  # the `carerft.rollout.transfer.Transfer` by which weights come, if they do
        self.engines: list[RunningEngine | None] = [None] * engines
        self._ray_in_use, self._closed = threading.RLock(), False
        self._must_end_ray = start_ray(engines)
        try:
            if shortage := gpu_shortage(engines * self._gpus_per_engine):
                log.warning("%s: waiting for them, %d minutes at most", shortage, START_S // 60)
            self._start(range(engines))
        except BaseException:
            self.close()
            raise

    def sync(self, policy: torch.nn.Module) -> None:
        if self.options.weight_transfer_config:
            from carerft.rollout.transfer import Transfer

            devices = self.options.tensor_parallel_size
            self._transfer = self._transfer or Transfer(self._call, self.workers, devices, self.precision)
            self._transfer.send(policy)
        else:
            self.load(merged_weights(policy))
        self.verify(policy)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """The first half of `sync`: give these weights, named as in a checkpoint, to all engines."""
        import ray

        self.weights = None  # the store frees the old ones before it takes the new ones
        self.weights = ray.put({name: as_array(weight, self.precision) for name, weight in weights})
        self._call("load_arrays", [(self.weights,)] * self.workers)

    def verify(self, policy: torch.nn.Module, score: Callable[..., Tensor] = teacher_forced) -> None:
        """The second half of `sync`: `check_sync` of each engine, if this sync is to be checked."""
        if self.verified and not self.verify_sync:
            return
        for index in range(self.workers):
            check_sync(lambda *request, i=index: self._call("sample", [request], i)[0], policy, self.options, score)
        self.verified = True

    def reset(self) -> None:
        self.weights, self.verified = None, False

    def close(self) -> None:
        """Ends the engines, and Ray if it was started here. May be repeated.

        A request that another thread waits for (sampling ahead) ends with an EngineError.
        """
        import ray

        self._closed = True
        self._kill(range(self.workers))
        if self._ray_in_use.acquire(timeout=60):  # a thread that uses Ray after its end would start it again
            self._ray_in_use.release()
        self._kill(range(self.workers))  # those that the thread was starting
        self.weights = None
        if self._transfer is not None:
            self._transfer.close()
        if self._must_end_ray:
            ray.shutdown()
            self._must_end_ray = False

    def _call(self, method: str, arguments: Sequence[tuple], first: int = 0) -> list[Any]:
        """Calls a method of engines and returns their answers. arguments[i]: of engine first + i.

        Engines that die or do not answer in time are replaced, and called again.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        answers: dict[int, Any] = {}  # by engine
        unanswered = dict(enumerate(arguments, first))
        restarts = 0
        with self._ray_in_use:
            while unanswered:
                calls: dict[Any, int] = {}  # Ray's reference of an answer -> engine
                for index, engine_arguments in unanswered.items():
                    engine = self.engines[index]
                    assert engine is not None, "the worker is closed"
                    calls[getattr(engine.handle, method).remote(*engine_arguments)] = index
                ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=self.timeout_s)
                lost = {calls[call]: f"gave no answer within rollout.timeout_s={self.timeout_s:g}" for call in late}
                for call in ready:
                    try:
                        answers[calls[call]] = ray.get(call)
                    except RayTaskError as error:
                        raise error.cause from error
                    except RayError as error:
                        lost[calls[call]] = f"died ({type(error).__name__})"
                self._check_open()
                if lost:
                    restarts += len(lost)
                    losses = "; ".join(f"engine {index} {why} during {method!r}" for index, why in lost.items())
                    if restarts > self.max_restarts:
                        raise EngineError(
                            f"{losses}, and rollout.max_restarts={self.max_restarts} allows no further restart",
                            "run the same command to continue from the last checkpoint: with a longer "
                            "rollout.timeout_s if the engine was only slow, with a smaller "
                            "rollout.gpu_memory_utilization or rollout.kv_cache_gib if it ran out of memory",
                        )
                    log.warning("%s: replacing it and calling again", losses)
                    try:
                        self._start(list(lost))
                    except CareError as error:
                        raise EngineError(
                            f"{losses}, and its replacement failed: {error.what}",
                            f"{error.remedy}; the same command goes on from the last checkpoint",
                        ) from error
                    self._check_open()
                unanswered = {index: unanswered[index] for index in lost}
        return [answers[index] for index in sorted(answers)]

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the rollout worker was closed while it sampled")

    def _start(self, indices: Sequence[int]) -> None:
        """Starts or replaces engines, with the current weights."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        self._kill(indices)
        actor = ray.remote(num_cpus=0, num_gpus=self._gpus_per_engine, max_restarts=0)(EngineProcess)
        handles: list[Any] = [actor.remote() for _ in indices]
        try:
            for index, handle in zip(indices, handles, strict=True):
                self.engines[index] = RunningEngine(handle, *ray.get(handle.identity.remote(), timeout=START_S))
            started = [handle.start.remote(self.options) for handle in handles]
            loaded = [handle.load_arrays.remote(self.weights) for handle in handles if self.weights is not None]
            self.runner = ray.get([*started, *loaded], timeout=START_S)[0]
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            why = type(error).__name__
            if any(self.engines[index] is None for index in indices):
                with suppress(Exception):  # Ray itself may have ended
                    why = gpu_shortage(len(indices) * self._gpus_per_engine) or why
            raise CareError(
                f"a vLLM engine process did not start ({why})",
                "lower rollout.engines or rollout.tensor_parallel_size, or look for the cause in the system's log (out "
                "of memory?)",
            ) from error

    def _kill(self, indices: Iterable[int]) -> None:
        """Ends engines' processes at once, even those that are stopped or hang."""
        import ray

        for index in indices:
            engine, self.engines[index] = self.engines[index], None
            if engine is None or not ray.is_initialized():
                continue
            with suppress(Exception):
                ray.kill(engine.handle)
            if engine.node == ray.get_runtime_context().get_node_id():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(engine.pid, signal.SIGKILL)
