"""Whole runs as W&B has them, offline by default: real runs of real processes, read back with W&B's own tool.

One key is in the environment of every process here. It must appear in nothing that any of them writes or prints.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.synthetic_runs import make_demo
from helpers.wandb_records import offline_run, offline_runs

from carerft.commands.dashboard import CURVES
from carerft.report.outcome import COLUMNS
from carerft.trackers.weights_and_biases import report_description

KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_API_KEY": KEY}
SMALL = ["model=tiny", "samples=2", "evaluation.limit=6", "evaluation.bootstrap=20", "name=trial"]
TRAIN = [*SMALL, "rollout.prompts_per_batch=4", "algorithm.group_size=2", "learner.checkpoint_every=2"]


def start(verb: str, *overrides: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "carerft", verb, *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, cwd=cwd
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    assert KEY not in output
    return output


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(step: int, directory: Path, process: subprocess.Popen) -> None:
    """Until the checkpoint of this step is there; fails if the process ends before."""
    deadline = time.monotonic() + 240
    while not (directory / "checkpoints" / f"step_{step}").exists():
        assert process.poll() is None, "ended before it could be interrupted:\n" + process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tracked")
    finish(start("train", *TRAIN, "steps=3", "regularizer=rkl", "seed=5", "hydra.run.dir=run", cwd=place))
    return place / "run"


def test_a_run_is_found_by_experiment_cell_and_seed(trained: Path):
    run = offline_run(trained).run
    manifest = json.loads((trained / "manifest.json").read_text())
    assert run["run_id"].startswith(manifest["config_hash"] + "-20")
    assert (run["run_group"], run["job_type"], run["tags"]) == ("trial", "train", ["grpo", "rkl", "tiny"])
    assert run["display_name"] == "tiny, grpo, RKL beta=0.04, seed 5"
    (metric,) = offline_run(trained).of("metric")
    assert (metric["glob_name"], metric["step_metric"]) == ("*", "step")


def test_the_history_is_metrics_jsonl(trained: Path):
    assert len(metrics(trained)) == 3
    assert offline_run(trained).steps == metrics(trained)


def test_the_summary_has_every_number_of_the_evaluation_with_its_interval(trained: Path):
    evaluation = json.loads((trained / "evaluation.json").read_text())["benchmarks"]
    assert len(evaluation) == 4
    expected = {}
    for name, entry in evaluation.items():
        expected |= {f"{name}/n": entry["n"], f"{name}/k": entry["k"]}
        for metric, ends in entry["metrics"].items():
            expected |= {f"{name}/{metric}": ends["value"]} if ends["value"] is not None else {}
            for end in ("low", "high"):
                expected |= {f"{name}/{metric}_{end}": ends[end]} if None not in ends.values() else {}
    shown = {key: value for key, value in offline_run(trained).summary.items() if key.split("/")[0] in evaluation}
    assert shown == expected


def test_answers_and_reliability_diagrams_are_shown(trained: Path):
    files = offline_run(trained).directory / "files" / "media"
    for name in ("world_reasoning", "world_transfer", "world_honesty", "world_truth"):
        (table,) = files.glob(f"table/samples/{name}_*.table.json")
        content = json.loads(table.read_text())
        assert content["columns"] == list(COLUMNS) and len(content["data"]) == 6 * 2
        written = [json.loads(line) for line in (trained / "evaluation" / f"{name}.jsonl").read_text().splitlines()]
        assert [row[COLUMNS.index("text")] for row in content["data"]] == [sample["text"] for sample in written]
        (figure,) = files.glob(f"images/reliability/{name}_*.png")
        assert figure.read_bytes().startswith(b"\x89PNG")
    artifacts = [entry for record in offline_run(trained).of("artifact") for entry in record["manifest"]["contents"]]
    assert artifacts and all(Path(entry["local_path"]).is_relative_to(trained) for entry in artifacts)


def test_the_dashboard_shows_metrics_that_runs_have(trained: Path):
    assert {metric for section in CURVES.values() for metric in section} <= metrics(trained)[-1].keys()


def test_the_key_is_in_no_file(trained: Path):
    read = [path for path in trained.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in read)
    assert [path for path in read if KEY.encode() in path.read_bytes()] == []


def test_evaluate_is_tracked_as_training_is(trained: Path, tmp_path: Path):
    model = f"model={trained}/model"
    output = finish(start("evaluate", model, *SMALL[1:], "benchmark=world_truth", "hydra.run.dir=run", cwd=tmp_path))
    assert "world_truth" in output
    tracked = offline_run(tmp_path / "run")
    assert (tracked.run["run_group"], tracked.run["job_type"], tracked.run["tags"]) == ("trial", "evaluate", ["model"])
    value = json.loads((tmp_path / "run" / "evaluation.json").read_text())["benchmarks"]["world_truth"]["metrics"]
    assert tracked.summary["world_truth/mc2"] == value["mc2"]["value"]
    assert list(tracked.directory.glob("files/media/table/samples/world_truth_*.table.json"))
    assert list(tracked.directory.glob("files/media/images/reliability/world_truth_*.png"))


def test_a_report_is_a_run_of_its_own_where_it_is_asked_for(tmp_path: Path):
    make_demo(tmp_path / "demo", questions=4, seeds=(0,), steps=4)
    finish(start("report", "demo", "output=out", "tracker=wandb", cwd=tmp_path))
    tracked = offline_run(tmp_path / "out")
    assert (tracked.run["run_group"], tracked.run["job_type"]) == ("demo", "report")
    (file,) = tracked.directory.glob("files/media/table/report/table_*.table.json")
    content = json.loads(file.read_text())
    written = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    shown = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [row["row"] + row["metric"] for row in shown] == [row["row"] + row["metric"] for row in written]
    assert [row["value"] for row in shown] == [float(row["value"]) for row in written]
    figures = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert len(list(tracked.directory.glob("files/media/images/report/*.png"))) == len(figures) > 0
    again = report_description(tmp_path / "out", ["demo"])
    assert again["id"] == tracked.run["run_id"]  # the same report is the same run


def test_two_cells_of_one_process_stay_two_runs(tmp_path: Path):
    finish(start("train", "-m", *TRAIN, "steps=2", "benchmark=none", "regularizer=none,rkl", cwd=tmp_path))
    cells = sorted((tmp_path / "outputs" / "trial").glob("*/seed=0"))
    assert len(cells) == 2
    tracked = [offline_run(cell) for cell in cells]
    assert len({one.run["run_id"] for one in tracked}) == 2
    assert {one.run["run_group"] for one in tracked} == {"trial"}
    for cell, one in zip(cells, tracked, strict=True):
        assert one.steps == metrics(cell) and len(one.steps) == 2


@pytest.mark.slow
def test_a_continued_run_is_one_run_to_wandb(tmp_path: Path):
    """Stopped and started again, it leaves two offline directories of one id, which `wandb sync` joins in order."""
    command = [*TRAIN, "steps=12", "benchmark=none", "hydra.run.dir=run"]
    process = start("train", *command, cwd=tmp_path)
    wait_for_step(2, tmp_path / "run", process)
    process.send_signal(signal.SIGINT)
    finish(process, status=130)
    finish(start("train", *command, cwd=tmp_path))
    before, after = offline_runs(tmp_path / "run")
    assert before.run["run_id"] == after.run["run_id"]
    assert [one.of("exit")[0]["exit_code"] for one in (before, after)] == [1, 0]
    assert before.steps and after.steps
    assert before.steps + after.steps == metrics(tmp_path / "run")


def test_a_run_outlives_its_tracker(tmp_path: Path):
    """W&B's own process is killed in the middle of a run, which goes on and says so once."""
    process = start("train", *TRAIN, "steps=8", "benchmark=none", "hydra.run.dir=run", cwd=tmp_path)
    wait_for_step(2, tmp_path / "run", process)
    services = [child for child in psutil.Process(process.pid).children(recursive=True) if "wandb" in child.name()]
    assert services
    for service in services:
        service.kill()
    output = finish(process)
    assert output.count("WandbTracker failed: it gets no more metrics") == 1
    assert [row["step"] for row in metrics(tmp_path / "run")] == list(range(1, 9))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "done"
