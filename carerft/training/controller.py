"""Several processes that learn as one: the first runs the program, the others do with it what takes all of them.

What takes all of them (a step, sampling, a checkpoint) are actions, which every process has by the same names. The
first asks for one, all perform it side by side, and their answers come back to it. So do errors that a user can mend,
whichever process met them; by any other a process ends, and torchrun then ends the rest.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from carerft.errors import CareError, ConfigError
from carerft.rollout import Rollouts, RolloutWorker, Sampling
from carerft.rollout.dedicated import DedicatedWorker
from carerft.rollout.requests import check_context
from carerft.rollout.sync_check import teacher_forced, vocabulary_of
from carerft.training.learner import Learner

Action = Callable[..., Any]
BEGIN = "begin"


@contextmanager
def joined(device: torch.device, timeout_s: float) -> Iterator[DeviceMesh]:
    """The processes that torchrun has started, each with a device of its own, for the length of a `with` block.

    device: of this machine's first; the others have those behind it. timeout_s: how long one waits for another before
    it fails. Raises ConfigError where there are too few devices.
    """
    cuda = device.type == "cuda"
    if cuda:
        own, count = (device.index or 0) + int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= count:
            raise ConfigError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes of the learner from learner.device={device} on, and this "
                f"machine has {count} GPUs",
                "write a smaller learner.processes, or fewer rollout.engines",
            )
        torch.cuda.set_device(own)
        torch.cuda.init()  # the mesh would choose another device, if none were in use
    patience = timedelta(seconds=timeout_s)
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        # torchrun keeps its store when it starts the processes again: they would look for the dead ones' addresses.
        store = dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    # What is no tensor of the device's goes from CPU to CPU.
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    try:
        yield init_device_mesh(device.type, (dist.get_world_size(),))
    finally:
        dist.destroy_process_group()


def actions(worker: RolloutWorker | None, learner: Learner) -> dict[str, Action]:
    """What the processes do together, each with a learner of its own, and a worker where not only the first has one."""
    known = {name: getattr(learner, name) for name in LedLearner.TOGETHER}
    known["teacher_forced"] = partial(teacher_forced, learner.policy, dtype=learner.settings.precision)
    if worker is not None:
        known["sample"] = lambda prompts, *how: worker.sample(prompts, *how) if prompts else None
        known["log_likelihood"] = lambda prompts, *rest: worker.log_likelihood(prompts, *rest) if prompts else []
        known["sync"] = lambda: worker.sync(learner.policy)
        known["sleep"] = worker.sleep
    return known


@dataclass
class Leader:
    """The first process: asks for actions."""

    mesh: DeviceMesh
    actions: dict[str, Action] = field(default_factory=dict)
    lost: bool = False  # whether an action was left in the middle: nobody knows then what the others wait for

    def begin(self) -> None:
        """Let the others make what `lead` takes, while this one makes its own."""
        dist.broadcast_object_list([BEGIN])

    def lead(self, worker: RolloutWorker, learner: Learner) -> tuple[RolloutWorker, "LedLearner"]:
        """The worker and the learner of all processes, from this one's."""
        self.actions = actions(worker, learner)
        led = DedicatedToAll(self, worker) if isinstance(worker, DedicatedWorker) else LedWorker(self)
        return led, LedLearner(self, learner)

    def together(self, action: str, *arguments: Any) -> Any:
        """Perform an action with the same arguments in each process: the first one's answer. Raises as `ask`."""
        return self.ask(action, [arguments] * self.mesh.size())[0]

    def ask(self, action: str, arguments: Sequence[tuple] | None = None) -> list[Any]:
        """Perform an action, in each process with its own arguments; each one's answer. Raises a CareError of any."""
        arguments = arguments or [()] * self.mesh.size()
        self.lost = True
        dist.broadcast_object_list([(action, arguments)])
        answers = _perform(self.mesh, self.actions[action], arguments[0])
        self.lost = False
        for answer in answers:
            if isinstance(answer, CareError):
                raise answer
        return answers


@contextmanager
def led(device: torch.device, timeout_s: float) -> Iterator[Leader]:
    """The leader, in the first of the processes that torchrun has started, for the length of a `with` block. At its end
    the others end as well. Arguments: of `joined`."""
    with joined(device, timeout_s) as mesh:
        leader = Leader(mesh)
        try:
            yield leader
        finally:
            if not leader.lost:
                dist.broadcast_object_list([None])


def begins() -> bool:
    """In each of the other processes: whether there is anything to do."""
    for number in (signal.SIGINT, signal.SIGTERM):  # what becomes of them is the first process's to decide
        signal.signal(number, signal.SIG_IGN)
    return _told() is not None


def follow(mesh: DeviceMesh, known: dict[str, Action]) -> None:
    """Do what the first process asks for, until it ends. known: `actions` of this process."""
    while (asked := _told()) is not None:
        action, arguments = asked
        _perform(mesh, known[action], arguments[mesh.get_rank()])


def _told() -> Any:
    told = [None]
    dist.broadcast_object_list(told)
    return told[0]


def _perform(mesh: DeviceMesh, function: Action, arguments: tuple) -> list[Any]:
    """Every process's answer, in the first process; each one's is what the function returns, or a CareError."""
    first = mesh.get_rank() == 0
    try:
        answer = function(*arguments)
    except CareError as error:
        answer = error
    answers: list[Any] = [None] * mesh.size()
    dist.gather_object(None if first else answer, answers if first else None)
    return [answer, *answers[1:]]


class LedLearner:
    """The learner of all processes. What is not done together is asked of the first one's."""

    TOGETHER = ("step", "log_probs", "weights", "adapter", "save", "load", "load_state")

    def __init__(self, leader: Leader, own: Learner):
        self._leader, self._own = leader, own

    def __getattr__(self, name: str) -> Any:
        if name not in self.TOGETHER:
            return getattr(self._own, name)
        return partial(self._leader.together, name)


class DedicatedToAll:
    """The first process's engines, which sample from the weights that all processes share. Implements `RolloutWorker`.

    Sampling is the first's alone, and may go on in a thread while the processes learn together.
    """

    def __init__(self, leader: Leader, engines: DedicatedWorker):
        self._leader, self._engines = leader, engines
        self.sample, self.log_likelihood = engines.sample, engines.log_likelihood
        self.sleep, self.close = engines.sleep, engines.close

    def sync(self, policy: torch.nn.Module) -> None:
        """As the engines'. The weights come together in the first process, on the CPU."""
        self._engines.load(self._leader.together("weights", self._engines.precision).items())
        self._engines.prove(partial(self._leader.together, "teacher_forced"), vocabulary_of(policy))


class LedWorker:
    """The rollout workers of all processes, which share each request's prompts. Implements `RolloutWorker`."""

    def __init__(self, leader: Leader):
        self._leader = leader

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        """As each worker's: a prompt has the samples that it would have in one process. Raises what that does."""
        shares = self._shares(prompts)
        asked = [([prompts[i] for i in share], n, sampling, seed) for share in shares]
        parts = [part for part in self._leader.ask("sample", asked) if part is not None]
        return Rollouts.concatenate(parts).prompts(torch.tensor([i for share in shares for i in share]).argsort())

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        """As each worker's."""
        shares = self._shares(prompts)
        asked = [([prompts[i] for i in share], [continuations[i] for i in share]) for share in shares]
        parts = self._leader.ask("log_likelihood", asked)
        found = dict(zip((i for share in shares for i in share), (x for part in parts for x in part), strict=True))
        return [found[i] for i in range(len(prompts))]

    def sync(self, policy: torch.nn.Module) -> None:
        """Sample from the policy's weights as they are now, from now on. policy: of which each process has its own."""
        self._leader.ask("sync")

    def sleep(self) -> None:
        self._leader.ask("sleep")

    def close(self) -> None:
        """Each process ends its own."""

    def _shares(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Which prompts each process takes. Equal ones go to the same: it tells their samples apart."""
        check_context(prompts, [0] * len(prompts), sys.maxsize)
        places: dict[tuple[int, ...], int] = {}
        shares: list[list[int]] = [[] for _ in range(self._leader.mesh.size())]
        for i, prompt in enumerate(prompts):
            shares[places.setdefault(tuple(prompt), len(places)) % len(shares)].append(i)
        return shares
