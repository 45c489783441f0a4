"""Nothing is lost: real processes killed at several moments, continued by the same command, end bit-identical.

The plan has four optimizer steps per rollout batch and a checkpoint every two, so that kills fall before the first
checkpoint, in the middle of a rollout batch, and while a checkpoint is being written.
"""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import tiny_model
from helpers.runs import (
    ENVIRONMENT,
    PLAN,
    STEPS,
    finish,
    lines,
    logged,
    start,
    train,
    train_on_a_full_disk,
    wait_for,
    weights,
)
from transformers import PreTrainedModel

from carerft.errors import RunDirectoryError
from carerft.training import checkpoint
from carerft.training.checkpoint import Checkpoints
from carerft.training.checkpoint_tensors import CheckpointTensors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    train(directory)
    assert [line["step"] for line in lines(directory)] == list(range(1, STEPS + 1))
    assert sum(abs(line["learner/grad_norm"]) > 0 for line in lines(directory)) >= STEPS // 2  # it does learn
    return directory


def test_killed_at_several_moments_ends_bit_identical(uninterrupted: Path, tmp_path: Path):
    directory = tmp_path / "run"
    checkpoints = directory / "checkpoints"
    moments = [
        lambda: logged(directory) >= 1,  # before the first checkpoint
        lambda: logged(directory) >= 3,  # a step after one, in the middle of a rollout batch
        lambda: any(checkpoints.glob(".step_6*")) or (checkpoints / "step_6").exists(),  # while one is written
    ]
    for moment in moments:
        process = start(directory)
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        finish(process)
        assert json.loads((directory / "manifest.json").read_text())["status"] == "running"
    train(directory)
    assert weights(directory) == weights(uninterrupted)
    assert lines(directory) == lines(uninterrupted)
    assert json.loads((directory / "manifest.json").read_text())["status"] == "done"
    again = train(directory)
    assert "done already" in again


def test_ctrl_c_saves_and_says_how_to_continue(uninterrupted: Path, tmp_path: Path):
    directory = tmp_path / "run"
    process = start(directory)
    wait_for(lambda: logged(directory) >= 3, process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert process.returncode == 130 and "the same command continues" in output
    assert json.loads((directory / "manifest.json").read_text())["status"] == "interrupted"
    stopped = logged(directory)
    assert checkpoint.steps_of(directory / "checkpoints")[-1] == stopped  # saved at that very step
    train(directory)
    assert weights(directory) == weights(uninterrupted) and lines(directory) == lines(uninterrupted)


def test_a_batch_of_dynamic_sampling_with_its_correction_continues_bit_identical(tmp_path: Path):
    """Killed in the middle of a batch of several rounds, while penalty and overlong rewards are on their way too."""
    dapo = [
        "algorithm=dapo", "rollout.importance_correction=token", "algorithm.overlong_buffer=0.8",
        "regularizer.beta_schedule=linear", "regularizer.beta_end=0.4",
        "regularizer.alpha_schedule=cosine", "regularizer.alpha_end=0.2",
    ]  # fmt: skip
    whole, directory = tmp_path / "whole", tmp_path / "run"
    train(whole, *dapo)
    assert all(line["rollout/rounds"] > 1 and line["reward/overlong_penalty"] > 0 for line in lines(whole))
    process = start(directory, *dapo)
    wait_for(lambda: logged(directory) >= 3, process)  # the third of four steps; two are saved, with the batch
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert checkpoint.steps_of(directory / "checkpoints")[-1] < STEPS
    train(directory, *dapo)
    assert weights(directory) == weights(whole) and lines(directory) == lines(whole)


def test_a_directory_of_another_configuration_is_refused(uninterrupted: Path):
    before = {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file() and p.suffix != ".log"}
    process = start(uninterrupted, "learner.learning_rate=0.5", "seed=3")
    output = finish(process)
    assert process.returncode == 2
    assert "learner.learning_rate: 0.0003 -> 0.5" in output and "seed: 0 -> 3" in output
    after = {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file() and p.suffix != ".log"}
    assert before == after


def test_a_full_disk_and_a_damaged_file_each_leave_the_last_good_checkpoint(uninterrupted: Path, tmp_path: Path):
    """The limit on a file's size stops a checkpoint's writing as a full disk does."""
    directory = tmp_path / "run"
    checkpoints = directory / "checkpoints"
    process = start(directory)
    wait_for(lambda: (checkpoints / "step_4").exists(), process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    before, good = checkpoint.steps_of(checkpoints)
    stopped = train_on_a_full_disk(directory)
    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    said = " ".join(stopped.stderr.split())
    assert f"step {good} is intact" in said and "free the disk" in said and "Traceback" not in said
    assert checkpoint.steps_of(checkpoints) == [before, good]
    state = checkpoints / f"step_{good}" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    output = " ".join(train(directory).split())
    assert f"step_{good} is damaged" in output and f"after {before} steps" in output
    assert weights(directory) == weights(uninterrupted) and lines(directory) == lines(uninterrupted)


def test_an_unwritable_place_is_said_before_anything_is_loaded(tmp_path: Path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "carerft", "train", *PLAN, f"hydra.run.dir={tmp_path}/file/run"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and f"{tmp_path}/file" in done.stderr and "Traceback" not in done.stderr


def test_two_processes_cannot_share_a_directory(tmp_path: Path):
    from carerft.runs.directory import open_run

    with (
        open_run(tmp_path, "train", {"name": "a", "seed": 0}),
        pytest.raises(RunDirectoryError, match="another process"),
        open_run(tmp_path, "train", {"name": "a", "seed": 0}),
    ):
        pass


def test_a_checkpoint_that_replaces_another_is_never_the_loss_of_both(tmp_path: Path):
    policy, other = tiny_model(seed=0), tiny_model(seed=1)

    def checkpoints(model: PreTrainedModel) -> Checkpoints:
        return Checkpoints(tmp_path, CheckpointTensors(model, torch.optim.AdamW(model.parameters()), False))

    checkpoints(other).save(3, {"which": "first"}, keep=1)
    checkpoints(policy).save(3, {"which": "second"}, keep=1)
    assert checkpoints(other).load_latest()["which"] == "second"
    # as a kill between moving the old one away and putting the new one in its place leaves it
    (tmp_path / "step_3").rename(tmp_path / ".replaced_step_3")
    assert checkpoints(other).load_latest()["which"] == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))


def test_files_are_hashed_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each byte counts, and what earlier versions wrote, one hash of a whole file, is still read."""
    monkeypatch.setattr(checkpoint, "BLOCK", 2**20 + 7)
    model = torch.nn.Linear(1000, 600)
    checkpoints = Checkpoints(tmp_path, CheckpointTensors(model, torch.optim.AdamW(model.parameters()), False))
    checkpoints.save(1, {}, keep=1)
    path = tmp_path / "step_1"
    sums, file = json.loads((path / "checksums.json").read_text()), path / "tensors" / "__0_0.distcp"
    whole = file.read_bytes()
    parts = [hashlib.sha256(whole[start : start + 2**20 + 7]).hexdigest() for start in (0, 2**20 + 7, 2**21 + 14)]
    assert sums["tensors/__0_0.distcp"] == parts and checkpoint.damage(path) is None
    for written in (sums, {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in sums}):
        (path / "checksums.json").write_text(json.dumps(written))
        assert checkpoint.damage(path) is None
        for place in (0, 2**20 + 7, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert checkpoint.damage(path) == "the checksum of tensors/__0_0.distcp differs"
        file.write_bytes(whole)
    for written in ("[]", "[1]", '{"state.pt": 7}', "3", "{"):
        (path / "checksums.json").write_text(written)
        assert checkpoint.damage(path)


def test_a_checkpoint_continues_where_fewer_gpus_are_visible(monkeypatch: pytest.MonkeyPatch):
    """Of the GPUs only this process's own counts, in earlier checkpoints the first of all."""
    ours, other, found = torch.ones(16).byte(), torch.zeros(16).byte(), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": ours)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": found.append(state))
    states = checkpoint.random_states()
    assert states["cuda"] is ours
    checkpoint.set_random_states(states)
    checkpoint.set_random_states(states | {"cuda": [ours, other]})
    assert len(found) == 2 and all(state is ours for state in found)
