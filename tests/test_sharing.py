"""Runs of a sweep beside each other: they are shared, skipped, continued, and survive what others do."""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from carerft import cli
from carerft.config.identity import config_hash
from carerft.runs.directory import SWEEP, open_run
from carerft.sweeps.sharing import RunIndex, link_finished_run, reason_to_skip

SMALL = [
    "steps=2", "samples=2", "rollout.prompts_per_batch=4", "algorithm.group_size=4", "tracker=none",
    "evaluation.limit=4", "evaluation.bootstrap=20",
]  # fmt: skip


def test_a_run_that_another_experiment_has_done_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    common = ["model=tiny", "seed=0", "regularizer=none", *SMALL]
    assert cli.main(["train", "-m", "experiment=entropy", *common]) == 0
    (original,) = (tmp_path / "outputs" / "entropy").glob("*/seed=0")
    before = (original / "manifest.json").read_bytes()
    assert cli.main(["train", "-m", "experiment=table1", "algorithm=grpo", *common]) == 0
    (shared,) = (tmp_path / "outputs" / "table1").glob("*/seed=0")
    assert shared.is_symlink() and shared.resolve() == original.resolve()
    assert (original / "manifest.json").read_bytes() == before
    assert cli.main(["train", "-m", "experiment=table1", "algorithm=dapo", *common]) == 0  # another cell is a run
    assert sum(place.is_symlink() for place in (tmp_path / "outputs" / "table1").glob("*/seed=0")) == 1


def test_only_a_finished_run_of_the_same_configuration_is_shared(tmp_path: Path):
    config = {"name": "a", "seed": 0, "steps": 3}
    for place, status, steps in (("a/x/seed=0", "failed", 3), ("b/x/seed=0", "done", 4)):
        with open_run(tmp_path / place, "train", {**config, "steps": steps}) as run:
            run.update(status=status)
    new = tmp_path / "c" / "x" / "seed=0"
    assert link_finished_run(new, "train", config, tmp_path) is None and not new.exists()
    with open_run(tmp_path / "a/x/seed=0", "train", config) as run:
        run.update(status="done")
    assert link_finished_run(new, "evaluate", config, tmp_path) is None
    assert link_finished_run(new, "train", config, tmp_path) == tmp_path / "a/x/seed=0"
    assert json.loads((new / "manifest.json").read_text())["config"] == config
    kept = tmp_path / "d" / "x" / "seed=0"  # a run that has begun is never replaced by a link
    kept.mkdir(parents=True)
    (kept / "metrics.jsonl").write_text("{}\n")
    assert link_finished_run(kept, "train", config, tmp_path) is None


def test_an_index_of_runs_knows_what_reading_all_of_them_would(tmp_path: Path):
    index, config = RunIndex(tmp_path), {"name": "a", "seed": 0, "steps": 3}

    def check(*expected: str) -> None:
        """After a time in which the directories do not change."""
        for each in [tmp_path, *tmp_path.glob("*"), *tmp_path.glob("*/*")]:
            if not each.is_symlink():
                os.utime(each, ns=(0, each.stat().st_mtime_ns - 10**10))
        for _ in range(2):
            assert [str(run.relative_to(tmp_path)) for run, _ in index.runs(config_hash(config))] == list(expected)

    def make(place: str, status: str = "done", **changes: int) -> Path:
        with open_run(tmp_path / place, "train", {**config, **changes}) as run:
            run.update(status=status)
        return run.path

    check()
    first = make("b/x/seed=0", "running")
    make("b/x/seed=1", steps=4)
    check("b/x/seed=0")
    make("b/x/seed=0")  # it has ended
    assert [manifest["status"] for _, manifest in index.runs(config_hash(config))] == ["done"]
    place = tmp_path / "a/x/seed=0"  # it is there before its manifest, as Hydra makes it
    place.mkdir(parents=True)
    check("b/x/seed=0")
    make("a/x/seed=0")
    (tmp_path / "a/x/seed=2").symlink_to(first)
    check("a/x/seed=0", "b/x/seed=0")
    place.rename(tmp_path / "kept")
    check("b/x/seed=0")
    make("a/x/seed=0", steps=4)
    check("b/x/seed=0")
    (tmp_path / "kept").rename(tmp_path / "a/x/seed=3")
    check("a/x/seed=3", "b/x/seed=0")
    for number, text in enumerate(["{", "[]", "null", '{"status": "done"}', '{"status": "done", "config": null}']):
        (tmp_path / f"c/x/seed={number}").mkdir(parents=True)  # of another program, or broken
        (tmp_path / f"c/x/seed={number}/manifest.json").write_text(text)
    check("a/x/seed=3", "b/x/seed=0")
    moved = (tmp_path / "a/x/seed=3").rename(tmp_path / "moved")
    check("b/x/seed=0")
    (moved / "manifest.json").unlink()  # the directory comes back as another run
    with open_run(moved, "train", {**config, "steps": 5}) as run:
        run.update(status="done")
    moved.rename(tmp_path / "a/x/seed=3")
    check("b/x/seed=0")
    assert [str(run) for run, _ in index.runs(config_hash({**config, "steps": 5}))] == [str(tmp_path / "a/x/seed=3")]


def test_many_that_share_a_run_at_once_leave_it_whole(tmp_path: Path):
    """Several begin in the same directory at the same moment, as workers of a sweep do; the original loses nothing."""
    config = {"name": "a", "seed": 0}
    original = tmp_path / "a" / "x" / "seed=0"
    with open_run(original, "train", config) as run:
        run.update(status="done")
    kept = {name: name.encode() for name in ("evaluation.json", "metrics.jsonl", "train.log")}
    for name, content in kept.items():
        (original / name).write_bytes(content)

    def begin(place: Path, together: threading.Barrier, outcomes: list) -> None:
        together.wait()
        place.mkdir(parents=True, exist_ok=True)  # as Hydra does before it calls us
        with suppress(FileNotFoundError):  # another has just made it a link
            (place / "train.log").touch()
        try:
            outcomes.append(link_finished_run(place, "train", config, tmp_path))
        except Exception as error:
            outcomes.append(error)

    for attempt in range(40):
        place, together, outcomes = tmp_path / "b" / f"x{attempt}" / "seed=0", threading.Barrier(4), []
        threads = [threading.Thread(target=begin, args=(place, together, outcomes)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(outcomes) <= {None, original}, outcomes
        assert {name: (original / name).read_bytes() for name in kept} | {"train.log": b""} == kept | {"train.log": b""}
        assert json.loads((original / "manifest.json").read_text())["status"] == "done"


def test_processes_of_a_sweep_leave_alone_what_another_has_or_has_failed_at(tmp_path, monkeypatch):
    config = {"name": "a", "seed": 0}
    monkeypatch.setenv(SWEEP, "this")
    assert reason_to_skip(tmp_path) is None
    with open_run(tmp_path, "train", config) as run:
        run.update(status="running", sweep="this")
        assert reason_to_skip(tmp_path) == "another process is running it"
    assert reason_to_skip(tmp_path) == "the process that ran it died"
    with open_run(tmp_path, "train", config) as run, pytest.raises(ValueError), run.recording():
        raise ValueError("no")
    assert reason_to_skip(tmp_path) == "it failed in this sweep"
    monkeypatch.setenv(SWEEP, "the next")
    assert reason_to_skip(tmp_path) is None
    monkeypatch.delenv(SWEEP)
    assert reason_to_skip(tmp_path) is None


HOSTILE = """
import os
from carerft.tasks.world import WorldTask

class Dies(WorldTask):
    def problems(self):
        os._exit(9)

class Raises(WorldTask):
    def problems(self):
        raise RuntimeError("a fault of this task")
"""


def test_a_cell_that_fails_or_dies_ends_no_other(tmp_path: Path):
    """One cell takes its process with it, one raises, one is fine; then the fault is mended and the rest is done."""
    (tmp_path / "hostile.py").write_text(HOSTILE)
    kinds = "task._target_=hostile.Dies,hostile.Raises,carerft.tasks.world.WorldTask"
    command = [sys.executable, "-m", "carerft", "sweep", "figure2", "algorithm.polarity=positive", "seed=0", "jobs=1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    def sweep(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, kinds, *SMALL, *more], capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment
        )

    planned = sweep("--dry-run")
    assert planned.returncode == 0 and "0 of 4 runs are done, 4 are left" in planned.stdout
    done = sweep()
    said = " ".join(done.stderr.split())
    assert done.returncode == 1 and "2 of 4 runs are done" in said
    assert "a fault of this task" in said and "its process died" in said
    (finished,) = (tmp_path / "outputs" / "figure2").glob("*WorldTask*/seed=0/manifest.json")
    before = finished.read_bytes()
    mended = HOSTILE.replace("os._exit(9)", "return super().problems()").replace(
        'raise RuntimeError("a fault of this task")', "return super().problems()"
    )
    (tmp_path / "hostile.py").write_text(mended)
    again = sweep()
    assert again.returncode == 0 and "4 of 4 runs are done" in again.stderr
    assert finished.read_bytes() == before  # done is done
