"""Runs in two real processes, started by torchrun: the numbers of one, through kills, stops and changes of how many."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from helpers.processes import running
from helpers.runs import (
    ASIDE,
    ENVIRONMENT,
    STEPS,
    TWO,
    assert_gone,
    check_equal,
    finish,
    logged,
    start,
    train,
    wait_for,
)

from carerft import cli
from carerft.config.settings import LearnerSettings
from carerft.runs.directory import open_run
from carerft.training import checkpoint, controller
from carerft.training.error_file import CompleteErrorFile
from carerft.world.bases import SHIPPED

# An epsilon beside which rounding is small: Adam otherwise makes a full step out of a gradient that is nothing else.
MEASURED = ["learner.adam_eps=1e-3", "benchmark=world", "evaluation.limit=6", "samples=2"]


def process_of(directory: Path, rank: int) -> int:
    """The process that learns with this rank in a run's directory."""
    (found,) = running(str(directory), RANK=str(rank))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("alone") / "run"
    train(directory, *MEASURED)
    return directory


def test_two_then_one_then_two_processes_end_where_one_does(alone: Path, tmp_path: Path):
    """The two write their checkpoints while they learn on."""
    directory = tmp_path / "run"
    process = start(directory, TWO, ASIDE, *MEASURED)
    wait_for(lambda: logged(directory) >= 3, process)
    assert running(str(directory), RANK="0", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3600")  # a step may take minutes
    process.send_signal(signal.SIGINT)  # Ctrl-C
    output = finish(process)
    assert process.returncode == 130 and "the same command continues" in output
    assert json.loads((directory / "manifest.json").read_text())["status"] == "interrupted"
    stopped = logged(directory)
    assert 3 <= stopped < STEPS and checkpoint.steps_of(directory / "checkpoints")[-1] == stopped

    process = start(directory, *MEASURED)
    wait_for(lambda: logged(directory) > stopped, process)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert stopped < logged(directory) < STEPS

    # One dies, and torchrun starts both again.
    process = start(directory, TWO, ASIDE, "learner.max_restarts=1", *MEASURED)
    before = logged(directory)
    wait_for(lambda: logged(directory) > before, process)
    os.kill(process_of(directory, 1), signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 0, output
    assert json.loads((directory / "manifest.json").read_text())["status"] == "done"
    check_equal(directory, alone)
    for name in ("world_reasoning", "world_truth"):
        ours, theirs = (
            [json.loads(line) for line in (place / "evaluation" / f"{name}.jsonl").read_text().splitlines()]
            for place in (directory, alone)
        )
        assert [line["text"] for line in ours] == [line["text"] for line in theirs]


def test_a_process_whose_end_was_not_yet_seen_can_be_signalled():
    """torchrun does so, between its look at a process and the signal to it."""
    process = subprocess.Popen([sys.executable, "-m", "helpers.call", "os", "getpid", "[]"], start_new_session=True)
    assert_gone([process.pid])
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 0


def test_a_process_that_dies_ends_the_run_and_is_named(tmp_path: Path):
    """Long before learner.timeout_s, which is ten minutes. The processes also read a directory of the user's own."""
    directory = tmp_path / "run"
    (tmp_path / "own/algorithm").mkdir(parents=True)
    (tmp_path / "own/algorithm/mine.yaml").write_text("defaults: [grpo, _self_]\nname: mine\n")
    process = start(directory, TWO, "steps=1000", f"--config-dir={tmp_path / 'own'}", "algorithm=mine")
    wait_for(lambda: logged(directory) >= 1, process)
    victim = process_of(directory, 1)
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"(SIGKILL) received by PID {victim}" in output and "local_rank: 1" in output
    assert "the same command goes on from the last checkpoint" in output


def test_processes_wait_longer_for_each_other_until_they_have_begun(monkeypatch: pytest.MonkeyPatch):
    """The first one may load a model, or compile an engine, for longer than a step takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "TORCHELASTIC_RESTART_COUNT": 0}
    for name, value in (place | {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}).items():
        monkeypatch.setenv(name, str(value))
    with controller.leading(torch.device("cpu"), timeout_s=5) as leader:
        requests = leader.processes.requests._get_backend(torch.device("cpu"))
        group = dist.group.WORLD._get_backend(torch.device("cpu"))
        assert group.options._timeout.total_seconds() == controller.START_PATIENCE_S
        leader.lead(Mock(context=9), Mock(policy=None, settings=LearnerSettings(1e-3, timeout_s=5)))
        assert group.options._timeout.total_seconds() == 5
        assert requests.options._timeout == controller.REQUEST_PATIENCE  # the leader may measure alone


@pytest.mark.parametrize(
    "wrong", [["learner.processes=0"], ["learner.reference_offload=true"], [TWO, "learner.device=cuda:1"]]
)
def test_what_processes_cannot_do_is_refused(wrong: list[str], tmp_path: Path, capsys):
    assert cli.main(["train", "model=tiny", "tracker=none", *wrong, f'hydra.run.dir="{tmp_path}"']) == 2
    assert wrong[-1] in capsys.readouterr().err and not (tmp_path / "manifest.json").exists()


def test_what_a_user_can_mend_is_said_once_and_ends_all(tmp_path: Path):
    """Under torchrun itself, and by the first process: the others have nothing to say."""
    with open_run(tmp_path, "train", {"name": "another", "seed": 0}) as other:
        other.update()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "carerft.commands.train"]
    chosen = ["model=tiny", "tracker=none", f'hydra.run.dir="{tmp_path}"']
    done = subprocess.run(
        [sys.executable, *command, *chosen], capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, timeout=240
    )
    assert done.returncode != 0
    assert done.stderr.count("error: ") == done.stderr.count("holds a run of another configuration") == 1


def test_what_the_first_process_alone_reads_ends_all_when_it_is_wrong(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def score(:")
    process = start(tmp_path / "run", TWO, f"reward={tmp_path / 'mine.py'}:score")
    output = finish(process)
    assert process.returncode == 2 and output.count("error: reward.functions=") == 1
    assert "gloo" not in output and "(exitcode: 2) local_rank: 0" in output
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["status"] == "failed" and "SyntaxError" in manifest["error"]


def test_an_error_of_the_first_process_that_the_others_do_not_see_ends_them_too(tmp_path: Path):
    """They wait for it in the midst of building a model, and not for what comes next."""
    shutil.copytree(SHIPPED, tmp_path / "original")
    (tmp_path / "original/model.safetensors").write_bytes(b"cut")
    process = start(tmp_path / "run", TWO, f"reference={tmp_path / 'original'}")
    output = finish(process)
    assert process.returncode == 2 and "error: cannot load the model" in output
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "failed"


def test_torchrun_never_sees_half_of_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place))
    write = json.dump

    def watched(*arguments, **options):
        write(*arguments, **options)
        assert not place.exists()

    monkeypatch.setattr(json, "dump", watched)
    CompleteErrorFile().record_exception(ValueError("no"))
    assert "ValueError: no" in json.loads(place.read_text())["message"]["message"]
    assert list(tmp_path.iterdir()) == [place]
