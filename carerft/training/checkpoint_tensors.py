"""The tensors of a checkpoint: trained weights and the optimizer's state, in torch.distributed.checkpoint's format.

Each process writes its shards; any number of processes can read them.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from carerft.errors import RunDirectoryError

# With no_dist torch warns that it assumes a single process. The warning may come from a thread.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


class CheckpointTensors:
    """Saves and loads a policy's trained weights and its optimizer's state. Frozen weights, those beside an adapter,
    are left out: they are the base model's.

    distributed: all processes of torch.distributed make the same calls.
    """

    def __init__(self, policy: nn.Module, optimizer: torch.optim.Optimizer, distributed: bool):
        self._policy, self._optimizer, self._distributed = policy, optimizer, distributed
        self._group: Any = None  # a ProcessGroup; `new_group` declares more
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensors")
        self._pending: Future[Any] | None = None

    def save(self, path: Path, asynchronous: bool = False) -> None:
        """Write to this directory. asynchronous: in a thread, from a copy in CPU memory that is made before this
        returns.

        Raises RunDirectoryError, in all processes, if one cannot write; asynchronously, `finish_saving` raises it.
        """
        options: dict[str, Any] = {"checkpoint_id": path, "no_dist": not self._distributed}
        if not asynchronous:
            with _run_directory_error():
                dcp.save(self._tensors(), **options)
            return
        if self._pending:
            wait([self._pending])  # the first process has waited already; the others are about to finish
        if self._distributed and self._group is None:
            self._group = dist.new_group(backend="gloo")  # for the threads: training uses the default group meanwhile
        # Not dcp.async_save: even with no_dist it wants a default group, which an engine may have made, to have a CPU's
        # backend.
        copies: Any = DefaultStager(StagingOptions(False, False, False, False)).stage(self._tensors())
        self._pending = self._thread.submit(dcp.save, copies, process_group=self._group, **options)

    def finish_saving(self) -> None:
        """Wait until all processes have written what they write asynchronously. Raises RunDirectoryError."""
        if self._pending:
            with _run_directory_error():
                self._pending.result()

    def load(self, path: Path) -> None:
        """Read what any number of processes wrote. Weights are copied into their parameters' own memory, whose
        alignment affects rounding."""
        parameters, tensors = self._trained(), self._tensors()
        for key, stored in dcp.FileSystemReader(path).read_metadata().state_dict_metadata.items():
            if key not in tensors:  # the state of an optimizer that has not taken a step yet
                assert isinstance(stored, TensorStorageMetadata)
                _, slot, name = key.split(".", 2)
                parameter = parameters[name]
                same = stored.size == parameter.shape
                tensor = torch.zeros_like(parameter) if same else torch.zeros(stored.size, device=parameter.device)
                tensors[key] = self._optimizer.state[parameter][slot] = tensor
        dcp.load(tensors, checkpoint_id=path, no_dist=not self._distributed)

    def _tensors(self) -> dict[str, Tensor]:
        """The weights and the optimizer's state of each, as tensors that share their memory."""
        tensors: dict[str, Tensor] = {}
        state_of = getattr(self._optimizer, "parts", self._optimizer.state.get)  # AdamW8bit has a method for it
        for name, parameter in self._trained().items():
            tensors[f"weights.{name}"] = parameter.detach()
            for slot, tensor in (state_of(parameter) or {}).items():
                tensors[f"optimizer.{slot}.{name}"] = tensor
        return tensors

    def _trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, tied ones once."""
        return {name: parameter for name, parameter in self._policy.named_parameters() if parameter.requires_grad}


@contextmanager
def _run_directory_error() -> Iterator[None]:
    """Turn torch's report of the processes that failed to write into a RunDirectoryError."""
    try:
        yield
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        raise RunDirectoryError("; ".join(map(str, failures))) from failures[0]
