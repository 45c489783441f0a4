"""Several processes that learn as one.

The first process, the leader, runs the program. What needs all processes (a step, sampling, a checkpoint) is an action,
which every process has under the same name. The leader broadcasts an action's name and arguments, all processes perform
it, and the leader gathers their results. A CareError in any process is raised in the leader; any other exception ends
its process, whereupon torchrun ends the rest.

Within an action no process waits longer than `learner.timeout_s` for another. Between actions the others wait for as
long as the leader takes alone: to grade, or to measure with engines of its own.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from carerft.errors import CareError, ConfigError
from carerft.rollout import RolloutWorker
from carerft.rollout.dedicated import DedicatedWorker
from carerft.rollout.requests import SharingWorker
from carerft.rollout.sync_check import teacher_forced
from carerft.training.learner import Learner

Action = Callable[..., Any]
START = "start"
START_PATIENCE_S = 3600.0  # the first process may download a model, or compile an engine, while the others wait
REQUEST_PATIENCE = timedelta(days=30)  # a leader that has died is noticed at once: its connections close


@dataclass(frozen=True)
class Processes:
    """The processes that learn together, as each of them sees them.

    mesh: one device each. requests: the group in which the leader says what comes next.
    """

    mesh: DeviceMesh
    requests: dist.ProcessGroup

    def send(self, request: Any) -> None:
        """Say it to all other processes. Of the leader."""
        dist.broadcast_object_list([request], group=self.requests)

    def received(self) -> Any:
        """What the leader says next. Of the others."""
        message = [None]
        dist.broadcast_object_list(message, group=self.requests)
        return message[0]


@contextmanager
def process_group(device: torch.device, timeout_s: float) -> Iterator[Processes]:
    """The processes that torchrun started, for the length of a `with` block.

    device: that of this machine's first process; the others have the devices after it. timeout_s: how long a process
    waits for another before it fails; until `lead` or `follow` it is START_PATIENCE_S, if that is longer.
    Raises ConfigError if there are fewer devices than processes.
    """
    cuda = device.type == "cuda"
    if cuda:
        index, count = (device.index or 0) + int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if index >= count:
            raise ConfigError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes of the learner from learner.device={device} on, but this "
                f"machine has {count} GPUs",
                "write a smaller learner.processes, or fewer rollout.engines",
            )
        torch.cuda.set_device(index)
        torch.cuda.init()  # else the mesh would set another device
    timeout = timedelta(seconds=max(timeout_s, START_PATIENCE_S))
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        # torchrun keeps its store when it restarts the processes: without a prefix they would look up dead addresses.
        store = dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"  # objects are exchanged from CPU to CPU
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        yield Processes(mesh, cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=REQUEST_PATIENCE)))
    finally:
        dist.destroy_process_group()


def actions(worker: RolloutWorker | None, learner: Learner) -> dict[str, Action]:
    """The actions of this process. worker: None in all but the first process if the engines are dedicated."""
    named = {name: getattr(learner, name) for name in DistributedLearner.ACTIONS}
    named["teacher_forced"] = partial(teacher_forced, learner.policy)
    if worker is not None:
        named |= {name: getattr(worker, name) for name in ("sample", "log_likelihood", "sleep")}
        named["sync"] = partial(worker.sync, learner.policy)
    return named


@dataclass
class Leader:
    """The first process, which starts actions in all."""

    processes: Processes
    actions: dict[str, Action] = field(default_factory=dict)
    lost: bool = False  # the start, or an action, did not end: nobody knows what the other processes are waiting for

    @property
    def mesh(self) -> DeviceMesh:
        return self.processes.mesh

    def start(self) -> None:
        """Let the other processes build what `lead` takes, while this one builds its own."""
        self.processes.send(START)
        self.lost = True

    def lead(self, worker: RolloutWorker, learner: Learner) -> tuple[RolloutWorker, Learner]:
        """The worker and the learner of all processes. worker, learner: this process's."""
        self.actions = actions(worker, learner)
        _end_of_start(learner)
        self.lost = False
        dedicated = isinstance(worker, DedicatedWorker)
        together = DedicatedToAll(self, worker) if dedicated else DistributedWorker(self, worker.context)
        return together, cast(Learner, DistributedLearner(self, learner))  # it has every attribute of a learner

    def perform(self, action: str, *arguments: Any) -> Any:
        """Perform an action with equal arguments in each process. Returns this process's result; raises as `share`."""
        return self.share(action, [arguments] * self.mesh.size())[0]

    def share(self, action: str, arguments: Sequence[tuple]) -> list[Any]:
        """Perform an action in the first len(arguments) processes, each with its own arguments. Returns their results;
        raises the first CareError of any."""
        self.lost = True
        self.processes.send((action, arguments))
        results = _perform(self.mesh, self.actions[action], arguments)[: len(arguments)]
        self.lost = False
        for result in results:
            if isinstance(result, CareError):
                raise result
        return results


@contextmanager
def leading(device: torch.device, timeout_s: float) -> Iterator[Leader]:
    """The leader, in the first process, for the length of a `with` block; at its end the other processes end too.
    Arguments: as `process_group`'s."""
    with process_group(device, timeout_s) as processes:
        leader = Leader(processes)
        try:
            yield leader
        finally:
            if not leader.lost:
                processes.send(None)


def started(processes: Processes) -> bool:
    """In the other processes: wait for the leader's `start`. False: there is nothing to do."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the leader decides what a signal means
        signal.signal(number, signal.SIG_IGN)
    return processes.received() is not None


def follow(processes: Processes, worker: RolloutWorker | None, learner: Learner) -> None:
    """Perform the leader's actions until it ends. worker, learner: this process's."""
    named = actions(worker, learner)
    _end_of_start(learner)
    while (request := processes.received()) is not None:
        action, arguments = request
        _perform(processes.mesh, named[action], arguments)


def _end_of_start(learner: Learner) -> None:
    """From here on, no process waits longer than `learner.timeout_s` for another within an action."""
    _set_pg_timeout(timedelta(seconds=learner.settings.timeout_s))


def _perform(mesh: DeviceMesh, function: Action, arguments: Sequence[tuple]) -> list[Any]:
    """Call the function with this process's arguments, if any. The leader gets every process's result or CareError."""
    rank, result = mesh.get_rank(), None
    try:
        if rank < len(arguments):
            result = function(*arguments[rank])
    except CareError as error:
        result = error
    results: list[Any] = [None] * mesh.size()
    dist.gather_object(result if rank else None, None if rank else results)
    return [result, *results[1:]]


class DistributedLearner:
    """The learner of all processes: its actions are performed in each, everything else is the first one's."""

    ACTIONS = ("step", "log_probs", "weights", "adapter", "save", "load", "load_state")

    def __init__(self, leader: Leader, first: Learner):
        self._leader, self._first = leader, first

    def __getattr__(self, name: str) -> Any:
        if name not in self.ACTIONS:
            return getattr(self._first, name)
        return partial(self._leader.perform, name)


class DedicatedToAll:
    """The first process's engines, with the weights that all processes share. Implements `RolloutWorker`.

    Sampling takes the first process alone, and may go on in a thread while all processes learn.
    """

    def __init__(self, leader: Leader, engines: DedicatedWorker):
        self._leader, self._engines = leader, engines
        self.context, self.runner = engines.context, engines.runner
        self.sample, self.log_likelihood = engines.sample, engines.log_likelihood
        self.sleep, self.reset, self.close = engines.sleep, engines.reset, engines.close

    def sync(self, policy: torch.nn.Module) -> None:
        """As the engines' own, with weights that are gathered in the first process's CPU memory."""
        self._engines.load(self._leader.perform("weights", self._engines.precision).items())
        self._engines.verify(policy, lambda _, *arguments: self._leader.perform("teacher_forced", *arguments))


class DistributedWorker(SharingWorker):
    """The rollout workers of all processes. Each process resets and closes its own."""

    def __init__(self, leader: Leader, context: int):
        super().__init__(leader.share, leader.mesh.size(), context)
        self._leader = leader

    def sync(self, policy: torch.nn.Module) -> None:
        """Sample from the policy's current weights from now on. policy: ignored; each process syncs its own."""
        self._leader.perform("sync")

    def sleep(self) -> None:
        self._leader.perform("sleep")
