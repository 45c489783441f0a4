"""Plans: what finished runs and rehearsals tell them, which settings help, and what the command line prints."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from carerft.planning.estimate import Machine, calibrated, computed
from carerft.planning.rehearsal import rehearse
from carerft.planning.remedies import changed, options, remedies

from carerft import cli
from carerft.errors import ConfigError
from carerft.planning.assumptions import assumptions, hardware
from carerft.planning.job import job
from carerft.planning.measured import finished, read, with_lengths
from carerft.planning.memory import memory
from carerft.planning.shapes import shape_of
from carerft.sweeps.cells import cells
from carerft.sweeps.folders import experiment

STATED = assumptions([])


@pytest.fixture
def trained() -> dict[str, Any]:
    found = cells(experiment("table1"), ["model=tiny", "seed=0", "algorithm=dapo", "regularizer=srkl"])
    return found[-1].config


def write_run(directory: Path, config: dict[str, Any], stage_s: float, total: float) -> None:
    """A finished run of two steps from one batch, which spent stage_s on sampling, and on each step."""
    (directory / "evaluation").mkdir(parents=True)
    here = {"cores": os.cpu_count(), "threads": 1, "gpus": []}
    manifest = {"status": "done", "seconds": total, "ended": "2026-01-01", "config": config, "hardware": here}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    line = {"rollout/length_mean": 14.0, "reward/equal_groups": 0.75, "rollout/rounds": 5.0, "time/learn_s": stage_s}
    first = {**line, "time/rollout_s": stage_s - 0.5, "time/grade_s": 0.5, "time/sync_s": 0.0}
    (directory / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (first, line)))
    records = [{"tokens": 4 + i % 2} for i in range(2 * config["samples"])]
    (directory / "evaluation" / "world_truth.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_finished_run_says_how_long_its_stages_and_texts_are(trained: dict[str, Any], tmp_path: Path):
    write_run(tmp_path / "a" / "seed=0", trained, stage_s=3.0, total=20.0)
    (place,) = finished([tmp_path / "a" / "seed=0"], hardware("this", STATED), "world")
    assert finished([place], hardware("this", STATED), "another/model") == []
    assert finished([place], hardware("h100", STATED), "world") == []
    found = read(place)
    assert (found.sampling, found.learning, found.rest, found.total) == (3.0, 6.0, 11.0, 20.0)
    assert (found.completion, found.groups, found.rounds) == (14.0, 4.0, 5.0)  # one group in four was kept
    assert (found.answers, found.questions) == ({"world_truth": 4.5}, {"world_truth": 2})
    texts = with_lengths(STATED, [found])
    assert texts["texts"]["world"]["completion"] == 14.0
    assert texts["texts"]["world_truth"]["questions"] == 2
    assert texts["dynamic"] == {"groups": 4.0, "rounds": 5.0}
    assert STATED["texts"]["world"]["completion"] == 12  # the assumptions themselves stay


def test_a_calibrated_estimate_of_the_measured_run_is_what_it_took(trained: dict[str, Any], tmp_path: Path):
    write_run(tmp_path, changed(trained, {"steps": 2}), stage_s=3.0, total=20.0)
    one, here = read(tmp_path), Machine(hardware("this", STATED), side=1, cores=1)
    estimator = calibrated(shape_of("world", {}), here, STATED, [one])
    found = estimator.seconds(one.config)
    assert (found.sampling, found.learning, found.rest) == pytest.approx((3.0, 3.0, 11.0))
    assert found.total == pytest.approx(20.0)
    # Twice the steps take twice the training.
    assert estimator.seconds(changed(one.config, {"steps": 4})).training == pytest.approx(2 * 9.0)


def test_a_rehearsal_measures_every_stage(trained: dict[str, Any]):
    config = changed(trained, {"samples": 2, "evaluation.limit": 4, "rollout.prompts_per_batch": 4})
    threads = torch.get_num_threads()
    found = rehearse(config, cores=1, start=5.0)
    assert min(found.sampling, found.learning) > 0 and found.rest > 5.0
    assert set(found.answers) == set(config["benchmark"]) and set(found.questions.values()) == {4}
    assert torch.get_num_threads() == threads
    assert not found.config["algorithm"]["dynamic_sampling"]


def large(*overrides: str) -> dict[str, Any]:
    """A training of table 1 on GPUs, planned where vLLM isn't installed."""
    given = ["seed=0", "algorithm=grpo", "regularizer=srkl", *overrides]
    return cells(experiment("table1"), given, here=False)[-1].config


def test_what_is_needed_elsewhere_need_not_be_installed_here():
    assert large("model=qwen2.5-3b")["rollout"]["name"] == "vllm"
    with pytest.raises(ConfigError, match=r"learner\.epochs=0"):
        large("model=qwen2.5-3b", "learner.epochs=0")


def test_remedies_are_settings_that_do_fit():
    usual, devices = large("model=qwen2.5-3b"), hardware("h100", STATED)
    shape = shape_of("Qwen/Qwen2.5-3B", STATED["models"])

    def fits(changed_config: dict[str, Any]) -> bool:
        return all(found.fits for found in memory(job(changed_config, STATED), shape, devices))

    assert fits(usual)  # 12 bytes for each of 3.09e9 weights, 2 or 4 of a reference, an engine: 71.7 GiB
    config = changed(usual, {"rollout.gpu_memory_utilization": 0.5})
    assert not fits(config)
    found = remedies(config, list(options(job(config, STATED), devices)), fits)
    assert found == [{"rollout.gpu_memory_utilization": 0.35}, {"learner.optimizer": "adamw_8bit"}]
    assert all(fits(changed(config, option)) for option in found)
    wasteful = changed(usual, {"learner.gradient_checkpointing": False})
    helpful = remedies(wasteful, list(options(job(wasteful, STATED), devices)), fits)
    assert {"learner.gradient_checkpointing": True} in helpful
    none = hardware("h100", assumptions(["hardware.h100.memory_gib=16"]))

    def never(changed_config: dict[str, Any]) -> bool:
        return all(found.fits for found in memory(job(changed_config, STATED), shape, none))

    assert remedies(config, list(options(job(config, STATED), none)), never) == []


def test_an_evaluation_is_offered_what_it_has():
    """Its whole weights on one device: 28.4 GiB of 7.6e9, and 1,024 texts of 1,124 tokens and more beside them."""
    given = ["model=qwen2.5-7b", "seed=0", "algorithm=grpo", "regularizer=srkl", "rollout=transformers"]
    base = cells(experiment("table2"), [*given, "rollout.batch_size=1024"], here=False)[0]
    assert base.command == "evaluate" and "learner" not in base.config
    devices, shape = hardware("8xh100", STATED), shape_of("Qwen/Qwen2.5-7B", STATED["models"])

    def fits(changed_config: dict[str, Any]) -> bool:
        return all(found.fits for found in memory(job(changed_config, STATED), shape, devices))

    assert not fits(base.config)
    found = remedies(base.config, list(options(job(base.config, STATED), devices)), fits)
    assert found == [{"rollout.batch_size": 512}]


def test_more_of_the_hardware_takes_less_time():
    shape = shape_of("Qwen/Qwen2.5-3B", STATED["models"])
    h100, a100 = (computed(large("model=qwen2.5-3b"), shape, hardware(k, STATED), 1, STATED) for k in ("h100", "a100"))
    assert h100.sampling < a100.sampling and h100.learning < a100.learning


FEW = ["seed=0", "algorithm=grpo", "regularizer=none,srkl"]
APART = ["rollout.placement=dedicated", "learner.device=cuda:1"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["table1", "model=qwen2.5-7b", "hardware=8xh100", *FEW], 1, "does not fit: the learner's device lacks"),
        (["figure2", "model=qwen2.5-3b", "hardware=h200", "price=2", "seed=0"], 0, "it fits"),
        (["figure2", "hardware=2xcpu", "seed=0"], 0, "all 3 runs, 2 side by side"),
        (["table2", "model=qwen2.5-3b", "hardware=h100", *FEW, *APART], 2, "a run needs 2 devices and hardware has 1"),
        (["table2", "model=qwen2.5-3b", "hardware=2xh100", *FEW, *APART], 0, "it fits"),
        (["table2", "model=qwen2.5-3b", "hardware=2xh100", *FEW, APART[0]], 2, "learner.device=cuda:1"),
        (["table1", "hardware=8xh1000"], 2, "did you mean h100?"),
        (["table1", "price=much"], 2, "price=much: must be a number"),
        (["tabel1"], 2, "did you mean table1?"),
    ],
)
def test_the_verb(
    arguments: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert cli.main(["plan", *arguments]) == status
    output = capsys.readouterr()
    shown = " ".join((output.err if status == 2 else output.out).split())
    assert said in shown
    if status < 2:
        assert "US dollars" in shown and "is an assumption" in shown
        assert ("never measured" in shown) == ("hardware=2xcpu" not in arguments)
    assert list(tmp_path.iterdir()) == []
