"""Checkpoints that are written while the run goes on: whole or not at all, one at a time, and of the right moment."""

import errno
import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from helpers.models import random_rollouts, tiny_model
from helpers.processes import call
from helpers.runs import finish, lines, logged, start, train, train_on_a_full_disk, wait_for, weights
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from carerft.config.settings import LearnerSettings
from carerft.errors import RunDirectoryError
from carerft.model.sharding import full_tensor
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import SkewReverseKL
from carerft.training import checkpoint
from carerft.training.checkpoint import Checkpoints
from carerft.training.checkpoint_tensors import CheckpointTensors
from carerft.training.learner import Learner

ASYNCHRONOUS = "learner.async_checkpoints=true"


def large() -> nn.Sequential:
    """64 MiB: its writing has hardly begun when `save` returns."""
    return nn.Sequential(nn.Linear(4096, 4096, bias=False))


def tensors(model: nn.Module) -> CheckpointTensors:
    return CheckpointTensors(model, torch.optim.AdamW(model.parameters()), distributed=False)


def test_it_is_of_the_moment_at_which_it_was_begun(tmp_path: Path):
    model, found = large(), large()
    before, state = model[0].weight.detach().clone(), {"step": 1, "of": [1]}
    checkpoints = Checkpoints(tmp_path, tensors(model), asynchronous=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    checkpoints.save(1, state, keep=1)
    with torch.no_grad():
        model[0].weight.zero_()
    state["of"].append(2)
    torch.rand(7)
    checkpoints.wait()
    assert Checkpoints(tmp_path, tensors(found)).load_latest() == {"step": 1, "of": [1]}
    assert torch.equal(found[0].weight, before)
    assert torch.equal(torch.rand(3), expected)  # and the generators go on from there


def test_the_next_one_waits_for_it_and_then_the_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, there = tensors(large()), []
    checkpoints, write = Checkpoints(tmp_path, store, asynchronous=True), store.save

    def watched(path: Path, asynchronous: bool) -> None:
        there.append([found.name for found in path.parent.parent.glob("step_*")])
        write(path, asynchronous)

    monkeypatch.setattr(store, "save", watched)
    for step in (1, 2, 3):
        checkpoints.save(step, {}, keep=1)
    checkpoints.wait()
    assert there == [[], ["step_1"], ["step_2"]]
    assert [found.name for found in tmp_path.iterdir()] == ["step_3"]


def test_while_it_is_written_it_is_not_there_and_its_failure_is_said_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A pipe stands where the tensors' file goes: opening it waits for a reader, and no file can be made of it."""
    store = tensors(large())
    checkpoints, write = Checkpoints(tmp_path, store, asynchronous=True), store.save

    def into_a_pipe(path: Path, asynchronous: bool) -> None:
        path.mkdir()
        os.mkfifo(path / "__0_0.distcp")
        write(path, asynchronous)

    checkpoints.save(1, {"step": 1}, keep=1)
    with monkeypatch.context() as patched:
        patched.setattr(store, "save", into_a_pipe)
        checkpoints.save(2, {"step": 2}, keep=1)
    assert [found.name for found in tmp_path.glob("step_*")] == ["step_1"]  # for as long as nobody reads
    assert len(list(tmp_path.glob(".step_2.*"))) == 1
    with open(next(tmp_path.glob(".step_2.*")) / "tensors" / "__0_0.distcp", "rb"):
        pass
    with pytest.raises(RunDirectoryError, match="cannot write the checkpoint of step 2") as error:
        checkpoints.save(3, {"step": 3}, keep=1)
    assert "the one of step 1 is intact" in error.value.remedy
    assert [found.name for found in tmp_path.iterdir()] == ["step_1"]
    checkpoints.wait()  # it is said once
    assert Checkpoints(tmp_path, tensors(large())).load_latest() == {"step": 1}


def save_beside_an_engine_s_process_group(rank: int, directory: str) -> None:
    model, found = large(), large()
    dist.init_process_group("cuda:fake", store=FakeStore(), rank=rank, world_size=1)
    checkpoints = Checkpoints(Path(directory), tensors(model), asynchronous=True)
    checkpoints.save(1, {"step": 1}, keep=1)
    checkpoints.wait()
    assert Checkpoints(Path(directory), tensors(found)).load_latest() == {"step": 1}
    assert torch.equal(found[0].weight, model[0].weight)


def test_an_engine_s_process_group_does_not_matter(tmp_path: Path):
    """On a GPU, vLLM in the learner's process makes a default group with no backend for a CPU's tensors. Here a process
    of its own does: in pytest's an engine of another test may have made one."""
    call(save_beside_an_engine_s_process_group, str(tmp_path), count=1)


def test_only_a_full_disk_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = tensors(nn.Sequential(nn.Linear(2, 2)))
    failures = {
        "free the disk": OSError(errno.ENOSPC, "No space left on device"),
        "the same command continues": OSError(errno.EACCES, "Permission denied"),
    }
    for remedy, failure in failures.items():
        monkeypatch.setattr(torch, "save", Mock(side_effect=failure))
        with pytest.raises(RunDirectoryError, match=str(failure.strerror)) as error:
            Checkpoints(tmp_path, store).save(1, {}, keep=1)
        assert error.value.remedy.startswith(remedy)
    monkeypatch.setattr(torch, "save", Mock(side_effect=AssertionError("a defect")))
    with pytest.raises(AssertionError, match="a defect"):
        Checkpoints(tmp_path, store).save(1, {}, keep=1)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow  # tests/test_torchrun.py stops and continues runs that write aside
def test_a_run_that_is_killed_and_continued_ends_as_one_without_it(tmp_path: Path):
    """With moments in 8 bits. The last run is stopped by Ctrl-C, which waits for the checkpoint."""
    pytest.importorskip("torchao")
    chosen = ["learner.optimizer=adamw_8bit"]
    alone, directory = tmp_path / "alone", tmp_path / "run"
    train(alone, *chosen)
    checkpoints = directory / "checkpoints"
    process = start(directory, ASYNCHRONOUS, *chosen)
    wait_for(lambda: any(checkpoints.glob(".step_4*")) or (checkpoints / "step_4").exists(), process)
    process.send_signal(signal.SIGKILL)  # while it is written
    finish(process)
    steps = checkpoint.steps_of(checkpoints)
    assert steps and all(checkpoint.damage(checkpoints / f"step_{step}") is None for step in steps)
    process = start(directory, ASYNCHRONOUS, *chosen)
    before = logged(directory)
    wait_for(lambda: logged(directory) > before, process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert process.returncode == 130, output
    assert checkpoint.steps_of(checkpoints)[-1] == logged(directory) and not any(checkpoints.glob(".*"))
    train(directory, ASYNCHRONOUS, *chosen)
    assert weights(directory) == weights(alone) and lines(directory) == lines(alone)
    assert json.loads((directory / "manifest.json").read_text())["status"] == "done"


def test_a_full_disk_ends_the_run_at_the_next_checkpoint(tmp_path: Path):
    """The limit on a file's size stops the writing as a full disk does. There is a checkpoint every two steps."""
    stopped = train_on_a_full_disk(tmp_path / "run", ASYNCHRONOUS)
    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    said = " ".join(stopped.stderr.split())
    assert "cannot write the checkpoint of step 2" in said and "free the disk" in said
    assert "Traceback" not in stopped.stderr
    assert not any((tmp_path / "run" / "checkpoints").iterdir())
    assert logged(tmp_path / "run") == 4


STEPS = 3


def learner(mesh: DeviceMesh | None = None) -> Learner:
    algorithm = Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "sample")
    return Learner(tiny_model(), algorithm, SkewReverseKL(beta=0.2, alpha=0.5), LearnerSettings(1e-2), STEPS, mesh)


def learn(own: Learner) -> None:
    own.step(random_rollouts(4, 4, seed=own.steps_done), torch.linspace(-1.5, 1.5, 16))


def process(rank: int, directory: str) -> None:
    """Each step gathers weights and adds up gradients while the checkpoint before it is being written."""
    torch.set_num_threads(1)
    store, patience = f"file://{directory}/store", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    own, moments = learner(init_device_mesh("cpu", (2,))), []
    for step in range(STEPS):
        learn(own)
        moments.append({name: full_tensor(p.detach()).clone() for name, p in own.policy.named_parameters()})
        own.save(Path(directory) / str(step), True)
    own.finish_saving()
    if rank == 0:
        torch.save(moments, f"{directory}/moments.pt")
    (Path(directory) / f"refused_{rank}").write_text(refused(own, Path(directory) / "nowhere"))
    dist.destroy_process_group()


def refused(own: Learner, place: Path) -> str:
    """What a process says where the first can't write."""
    place.write_text("a file where a directory would be")
    dist.barrier()
    try:
        own.save(place / "tensors", True)
        own.finish_saving()
    except RunDirectoryError as error:
        return error.what
    return "nothing"


def test_two_processes_write_while_they_learn_on(tmp_path: Path):
    call(process, str(tmp_path), count=2)
    moments, found = torch.load(tmp_path / "moments.pt"), learner()
    assert len(moments) == STEPS
    for step, expected in enumerate(moments):
        found.load(tmp_path / str(step))
        for name, parameter in found.policy.named_parameters():
            assert torch.equal(parameter, expected[name]), (step, name)
    assert all("nowhere" in (tmp_path / f"refused_{rank}").read_text() for rank in range(2))
