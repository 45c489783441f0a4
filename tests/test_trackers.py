"""What is logged can be read back: metrics.jsonl after a kill, and real offline W&B runs, two in one process."""

import json
import subprocess
import sys
from pathlib import Path

from carerft.trackers import MetricsFile, Trackers, WandbTracker


def read_back(directory: Path) -> list[dict]:
    """Every record of the one offline run below a directory, as W&B's own tool prints them."""
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def history(records: list[dict]) -> list[tuple[float, float]]:
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [(row["step"], row["reward/mean"]) for row in rows]


def test_two_wandb_runs_in_one_process_stay_apart_and_can_be_read_back(tmp_path: Path):
    for name, reward in (("a", 0.25), ("b", 0.75)):
        directory = tmp_path / name
        directory.mkdir()
        run = {
            "id": f"id-{name}",
            "name": name,
            "group": "demo",
            "job_type": "train",
            "tags": [name],
            "config": {"x": 1},
        }
        tracker = WandbTracker(directory, "carerft", None, "offline", run)
        for step in (1, 2, 3):
            tracker.log({"step": step, "reward/mean": reward * step})
        tracker.finish({"world_honesty/refusal_f1": 0.5})
    for name, reward in (("a", 0.25), ("b", 0.75)):
        records = read_back(tmp_path / name)
        assert history(records) == [(1, reward), (2, 2 * reward), (3, 3 * reward)]
        (run,) = [record["run"] for record in records if record["type"] == "run"]
        assert (run["run_id"], run["run_group"], run["job_type"], run["tags"]) == (
            f"id-{name}",
            "demo",
            "train",
            [name],
        )
        summaries = [record["summary"]["update"] for record in records if record["type"] == "summary"]
        assert any(update.get("world_honesty/refusal_f1") == 0.5 for update in summaries)


def test_metrics_file_drops_what_came_after_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for step in (1, 2, 3):
        first.log({"step": step, "loss/total": 0.1 * step})
    first.finish({})
    whole = path.read_text()
    path.write_text(whole + '{"step": 4, "loss/to')  # a kill in the middle of a line
    second = MetricsFile(path, 2)
    second.log({"step": 3, "loss/total": 0.1 * 3})
    second.finish({})
    assert path.read_text() == whole


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path):
    tracker = MetricsFile(tmp_path / "metrics.jsonl", 0)
    tracker.log({"step": 1, "loss/total": float("nan"), "policy/ratio_max": float("inf")})
    tracker.finish({})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss/total": None,
        "policy/ratio_max": None,
    }


def test_every_tracker_is_finished_though_one_fails():
    finished = []

    class Failing:
        def log(self, metrics):
            pass

        def finish(self, summary):
            raise OSError("no space left on device")

    class Good(Failing):
        def finish(self, summary):
            finished.append(summary)

    Trackers([Failing(), Good()]).finish({"a": 1})
    assert finished == [{"a": 1}]
