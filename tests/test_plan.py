"""`carerft plan`: hardware, corrections by finished runs, the search for settings that fit, and what is printed."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.configurations import composed
from helpers.configurations import settings as composed_settings
from helpers.gpus import show_gpus

from carerft import cli
from carerft.config.settings import TrainSettings
from carerft.errors import ConfigError
from carerft.planning.assumptions import Device, hardware, load
from carerft.planning.job import Job, job
from carerft.planning.memory import memory
from carerft.planning.search import search
from carerft.planning.seconds import correction, newest, seconds
from carerft.planning.shapes import shape_of
from carerft.sweeps.cells import cells
from carerft.sweeps.folders import experiment

STATED = load()


def test_hardware_is_a_number_and_a_kind():
    eight = hardware("8xh100", STATED)
    assert (eight.count, eight.kind, eight.here) == (8, "h100", False)
    assert eight.device.peak["bfloat16"] == 989 and eight.device.memory_gib == pytest.approx(79.6)
    assert hardware("h100", load(["hardware.h100.price_per_hour=1.5"])).device.price_per_hour == 1.5
    assert hardware("this", STATED).here
    older = hardware("a100_40gb", STATED).device
    assert (older.engine_tokens, older.engine_sequences) == (8192, 256) and older.peak == eight.device.peak | {
        "bfloat16": 312, "float32": 19.5
    }  # fmt: skip
    with pytest.raises(ConfigError, match="there is no such device") as error:
        hardware("8xh10", STATED)
    assert "did you mean h100?" in error.value.remedy
    for wrong in (
        "hardware.h100.prize=1",
        "texts.math.completion=long",
        "texts.maht.completion=1",
        "texts.math.questions=0",
        "hardware=3",
    ):
        with pytest.raises(ConfigError, match=wrong.replace(".", r"\.")):
            load([wrong])


@pytest.mark.parametrize(
    ("name", "mebibytes", "kind"),
    [
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100_40gb"),
        ("NVIDIA A100-PCIE-40GB", 40960, "a100_40gb"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100"),
        ("NVIDIA L40S", 46068, "l40s"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA H100 PCIe", 81559, "h100_pcie"),
        ("NVIDIA H100 NVL", 95830, "h100_nvl"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA B200", 183359, "b200"),
        ("Tesla V100-SXM2-32GB", 32768, "v100"),
        ("Tesla V100-SXM2-16GB", 16160, "v100_16gb"),
        ("Tesla T4", 15360, "t4"),
    ],
)
def test_this_machine_is_what_nvidia_smi_prints(
    name: str, mebibytes: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    show_gpus(monkeypatch, tmp_path, (name, mebibytes), (name, mebibytes))
    found = hardware("this", STATED)
    assert (found.count, found.kind, found.here) == (2, kind, True)


def test_a_card_that_no_row_describes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    show_gpus(monkeypatch, tmp_path, ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376))
    with pytest.raises(ConfigError, match=r"no row for NVIDIA GeForce RTX 4090 Laptop GPU with 16\.0 GiB") as error:
        hardware("this", STATED)
    assert "hardware.h100.memory_gib=" in error.value.remedy
    show_gpus(monkeypatch, tmp_path, ("NVIDIA H100 80GB HBM3", 40000))  # a part of one
    with pytest.raises(ConfigError, match=r"no row for NVIDIA H100 80GB HBM3 with 39\.1 GiB"):
        hardware("this", STATED)
    show_gpus(monkeypatch, tmp_path, ("NVIDIA H200", 143771), ("NVIDIA L40S", 46068))
    with pytest.raises(ConfigError, match="the GPUs differ"):
        hardware("this", STATED)


def run_of(name: str, *overrides: str) -> TrainSettings:
    """A training of an experiment, planned where vLLM isn't installed."""
    overrides = ("seed=0", "algorithm=grpo", "regularizer=srkl", *overrides)
    settings = cells(experiment(name), overrides, here=False)[-1].settings
    assert isinstance(settings, TrainSettings)
    return settings


def test_finished_runs_correct_each_stage(tmp_path: Path):
    """A run of two steps from one batch took 3 s to sample and 3 s for each step, and 20 s in all."""
    overrides = ["experiment=table1", "steps=2"]
    directory = tmp_path / "seed=0"
    recorded = {"cores": os.cpu_count(), "threads": 1, "gpus": []}
    manifest = {"status": "done", "seconds": 20.0, "ended": "2026-01-01", "config": composed(*overrides)}
    manifest["hardware"] = recorded
    directory.mkdir()
    (directory / "manifest.json").write_text(json.dumps(manifest))
    lines = [{"time/learn_s": 3.0, "time/rollout_s": 2.5, "time/grade_s": 0.5}, {"time/learn_s": 3.0}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    here, shape = hardware("this", STATED), shape_of("world", {})
    assert newest([directory], here, "world") == [directory]
    assert newest([directory], here, "another/model") == newest([directory], hardware("h100", STATED), "world") == []
    factors = correction([directory], shape, here, STATED)
    one = seconds(job(run_of("table1", "steps=2"), STATED), shape, here.device, STATED).corrected(factors)
    assert (one.sampling, one.learning, one.rest, one.total) == pytest.approx((3.0, 3.0, 11.0, 20.0))
    longer = seconds(job(run_of("table1", "steps=4"), STATED), shape, here.device, STATED).corrected(factors)
    assert longer.training == pytest.approx(2 * 9.0)
    assert correction([], shape, here, STATED) == {}


def test_the_search_finds_the_fewest_settings_that_fit_and_of_these_the_cheapest():
    """12 bytes for each of 3.09e9 weights, 2 or 4 of a reference, and an engine: 71.7 GiB by default."""
    shape, h100 = shape_of("Qwen/Qwen2.5-3B", STATED.models), hardware("h100", STATED).device

    def found(wanted: Job, used: Device = h100, devices: int = 1) -> dict[str, dict[str, Any]]:
        def fits(job: Job) -> bool:
            return job.devices <= devices and memory(job, shape, used).fits

        solutions = search([wanted], fits, lambda job: seconds(job, shape, used, STATED).total * job.devices)
        assert not fits(wanted) and all(fits(wanted.with_settings(changes)) for changes, _ in solutions.values())
        return {effect: changes for effect, (changes, _) in solutions.items()}

    usual = job(run_of("table1", "model=qwen2.5-3b"), STATED)
    assert memory(usual, shape, h100).fits
    large = usual.with_settings({"rollout.gpu_memory_utilization": 0.5})
    same = found(large)["the same result"]
    assert list(same) == ["rollout.gpu_memory_utilization"] and same["rollout.gpu_memory_utilization"] <= 0.35
    wasteful = usual.with_settings({"learner.gradient_checkpointing": False})
    assert found(wasteful)["the same result"] == {"learner.tokens_per_microbatch": 2048}  # computes no layer again
    halved = dataclasses.replace(h100, memory_gib=52)
    assert found(usual, halved)["other rounding"]["learner.optimizer"] == "adamw_8bit"
    assert found(usual, halved, devices=2)["the same result"] == {"learner.processes": 2}
    assert found(usual, halved)["another method"] == {"model.adapter": "lora"}
    assert found(usual, dataclasses.replace(h100, memory_gib=8)) == {}


def test_seven_billion_weights_in_float32_on_eight_small_gpus():
    """Each of the five settings is needed: with four, nothing but an adapter fits."""
    wanted = job(composed_settings("model=qwen2.5-7b", "task=math"), STATED)
    shape, used = shape_of("Qwen/Qwen2.5-7B", STATED.models), hardware("8xa100_40gb", STATED).device

    def fits(job: Job) -> bool:
        return job.devices <= 8 and memory(job, shape, used).fits

    changes, _ = search([wanted], fits, lambda job: seconds(job, shape, used, STATED).total)["other rounding"]
    assert changes == {
        "rollout": "vllm", "rollout.gpu_memory_utilization": changes["rollout.gpu_memory_utilization"],
        "learner.processes": 8, "learner.precision": "bfloat16", "learner.gradient_checkpointing": True,
    }  # fmt: skip
    for key in ("learner.processes", "learner.precision", "learner.gradient_checkpointing"):
        assert not fits(wanted.with_settings({k: v for k, v in changes.items() if k != key}))


def test_the_shape_of_a_model_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config.json").write_text(json.dumps(STATED.models["Qwen/Qwen2.5-3B"]))
    with pytest.raises(ConfigError, match="Some/Model is unknown") as raised:
        shape_of("Some/Model", {})
    assert "hf download Some/Model config.json" in raised.value.remedy
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert shape_of("Some/Model", {}) == shape_of("Qwen/Qwen2.5-3B", STATED.models)


FEW = ["seed=0", "algorithm=grpo", "regularizer=none,srkl"]
APART = ["rollout.placement=dedicated", "learner.device=cuda:1"]
WORLD = ["hardware=2xcpu", "task=world"]
ONE = ["model=qwen2.5-7b", "task=gsm8k", "rollout=vllm", "learner.precision=bfloat16"]


@pytest.mark.parametrize(
    ("arguments", "status", "shown"),
    [
        (["table1", "model=qwen2.5-7b", "hardware=8xh100", *FEW], 1, "does not fit: a device lacks 66.4 GiB"),
        (["table1", "model=qwen2.5-7b", "hardware=8xh100", *FEW], 1, "US dollars a run: learner.processes=4"),
        (["figure2", "model=qwen2.5-3b", "hardware=h200", "price=2", "seed=0"], 0, "it fits"),
        (["figure2", "hardware=2xcpu", "seed=0"], 0, "all runs, 2 at the same time"),
        ([*ONE, "hardware=8xh100", "learner.processes=8", "learner.gradient_checkpointing=true"], 0, "it fits"),
        # Without a penalty learner.monitor_reference=false would be enough, but it must help with one as well.
        (["table2", "model=qwen2.5-7b", "hardware=2xh100", "learner.processes=2", *FEW], 1, ": learner.reference_offl"),
        ([*ONE, "hardware=h100"], 1, "model.adapter=lora"),
        (["hardware=2xcpu"], 0, "carerft train: tiny on 2 x cpu"),
        (["table2", "model=qwen2.5-3b", "hardware=h100", *FEW, *APART], 2, "a run needs 2 devices and hardware has 1"),
        (["table2", "model=qwen2.5-3b", "hardware=2xh100", *FEW, *APART], 0, "it fits"),
        (["table2", "model=qwen2.5-3b", "hardware=2xh100", *FEW, APART[0]], 2, "learner.device=cuda:1"),
        (["table1", "model=qwen2.5-3b", *FEW, "learner.epochs=0"], 2, "learner.epochs=0"),
        (["table1", "hardware=8xh1000"], 2, "did you mean h100?"),
        (["table1", "price=much"], 2, "much"),
        (["table1", "price=-1"], 2, "must be at least 0"),
        (["table1", "table2"], 2, "2 experiments were named"),
        (["tabel1"], 2, "did you mean table1?"),
        (
            [
                "model=qwen2.5-0.5b",
                "task=gsm8k",
                "hardware=t4",
                "model.adapter=lora",
                "learner.tokens_per_microbatch=2048",
            ],
            0,
            "weights, float32",
        ),
        (
            ["model=qwen2.5-3b", "hardware=h100"],
            2,
            "model=qwen2.5-3b without a task: the default is the built-in world",
        ),
        ([*ONE, "hardware=t4"], 2, "learner.precision=bfloat16: the GPU has none (t4"),
        ([*WORLD, "benchmark=world_truth", "benchmark.world_truth.max_tokens=0"], 0, "it fits"),
        ([*WORLD, "benchmark=world_honesty", "benchmark.world_honesty.max_tokens=0"], 2, "honesty-test-0-0 has none"),
        ([*ONE, "hardware=h200", "benchmark=gsm8k", "benchmark.gsm8k.max_tokens=0"], 2, "problem gsm8k has none"),
        ([*WORLD, "benchmark=truthfulqa", "benchmark.truthfulqa.max_tokens=0"], 0, "it fits"),
    ],
)
def test_the_command(
    arguments: list[str],
    status: int,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert cli.main(["plan", *arguments]) == status
    output = capsys.readouterr()
    text = " ".join((output.err if status == 2 else output.out).split())
    assert shown in text
    if status < 2:
        assert "US dollars" in text and "is an assumption" in text
        assert ("never measured" in text) == ("hardware=2xcpu" not in arguments)
    assert list(tmp_path.iterdir()) == []


OWN = ["task=questions", "task.path=mine.jsonl", "task.grader=number"]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (
            ["plan", "figure2", "model=./a model", "hardware=h100", "seed=0"],
            ["a model on 1 x h100", "│ algorithm.polarity=positive "],
        ),
        (
            ["sweep", "figure2", "model=Qwen/Qwen2.5-1.5B", "--dry-run"],
            ["│ base model seed=0 ", "│ algorithm.polarity=negative seed=2"],
        ),
        (["plan", "model=./a model", "hardware=h100", *OWN], ["mine.jsonl: 3 questions, prompts of 2 tokens"]),
    ],
)
def test_commands_take_what_train_takes(arguments: list[str], shown: list[str], tmp_path: Path, monkeypatch, capsys):
    """Labels are the swept keys alone; a task of one's own is planned from its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    (tmp_path / "a model").mkdir()
    (tmp_path / "a model/config.json").write_text(json.dumps(STATED.models["Qwen/Qwen2.5-1.5B"]))
    (tmp_path / "mine.jsonl").write_text('{"question": "12345678", "answer": 1}\n' * 3)
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for words in shown:
        assert words in text
