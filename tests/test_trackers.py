"""Each tracker by itself: what is logged can be read back, what a model wrote does no harm, and errors are contained.

`test_tracked_runs.py` reads whole runs back from W&B.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import make_demo
from helpers.wandb_records import offline_run

from carerft.report.outcome import COLUMNS, LONG_TEXT, QUESTIONS, SAMPLES, SHORT_TEXT, EvaluationOutcome
from carerft.trackers import MetricsFile, Trackers
from carerft.trackers.weights_and_biases import WandbTracker


def test_metrics_file_drops_what_came_after_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for step in (1, 2, 3):
        first.log({"step": step, "loss/total": 0.1 * step})
    first.finish(failed=True)
    whole = path.read_text()
    path.write_text(whole + '{"step": 4, "loss/to')  # a kill in the middle of a line
    second = MetricsFile(path, 2)
    second.log({"step": 3, "loss/total": 0.1 * 3})
    second.finish(failed=False)
    assert path.read_text() == whole


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path):
    tracker = MetricsFile(tmp_path / "metrics.jsonl", 0)
    tracker.log({"step": 1, "loss/total": float("nan"), "policy/ratio_max": float("inf")})
    tracker.finish(failed=False)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss/total": None,
        "policy/ratio_max": None,
    }


class Recording:
    """A tracker that remembers its calls, and fails in those that it is told to."""

    def __init__(self, essential: bool = False, fails: str = ""):
        self.essential, self.fails, self.calls = essential, fails, []

    def _called(self, name, value):
        if name == self.fails:
            raise OSError("no space left on device")
        self.calls.append((name, value))

    def log(self, metrics):
        self._called("log", metrics["step"])

    def show(self, outcome):
        self._called("show", outcome)

    def finish(self, failed):
        self._called("finish", failed)


@pytest.mark.parametrize("fails", ["show", "finish"])
def test_what_one_tracker_cannot_show_the_others_do(fails: str, tmp_path: Path):
    broken, good = Recording(fails=fails), Recording()
    with Trackers([broken, good]) as trackers:
        trackers.log({"step": 1})
        trackers.show(EvaluationOutcome(tmp_path))
    assert good.calls == [("log", 1), ("show", EvaluationOutcome(tmp_path)), ("finish", False)]
    assert [call for call in good.calls if call[0] != fails] == broken.calls


def test_a_tracker_that_takes_no_metrics_is_left_out_unless_it_is_essential():
    lost, good = Recording(fails="log"), Recording()
    with Trackers([lost, good]) as trackers:
        trackers.log({"step": 1})
        lost.fails = ""
        trackers.log({"step": 2})
    assert good.calls == [("log", 1), ("log", 2), ("finish", False)] and lost.calls == []
    good = Recording()
    with pytest.raises(OSError, match="no space"), Trackers([Recording(essential=True, fails="log"), good]) as trackers:
        trackers.log({"step": 1})
    assert good.calls == [("finish", True)]


HOSTILE = "\x1b[2J\x00\u202e<script>alert(1)</script>\ud800 ![](http://x)" + "A" * 1_000_000


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A run directory in which the model wrote what no reader should have to see, 60 questions with 8 samples each."""
    directory = make_demo(tmp_path_factory.mktemp("demo"), seeds=(0,)) / "regularizer=srkl" / "seed=0"
    path = directory / "evaluation" / "world_truth.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:3]:
        row |= {"text": HOSTILE, "extracted": HOSTILE, "log_probability": None, "correct": "yes"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_the_answers_shown_are_few_and_short_and_have_nothing_hidden(hostile: Path):
    tables = EvaluationOutcome(hostile).tables()
    assert {name: len(table.rows) for name, table in tables.items()} == dict.fromkeys(tables, QUESTIONS * SAMPLES)
    first = dict(zip(COLUMNS, tables["samples/world_truth"].rows[0], strict=True))
    assert first["text"].startswith("⟨U+001B⟩[2J⟨U+0000⟩⟨U+202E⟩<script>alert(1)</script>⟨U+D800⟩ ![](http://x)AAA")
    assert first["text"].endswith(f" … ({len(HOSTILE) - LONG_TEXT:,} more characters)")
    assert first["extracted"].endswith(f" … ({len(HOSTILE) - SHORT_TEXT:,} more characters)")
    assert first["correct"] is None and first["log_probability"] is None


def test_numbers_are_those_of_the_evaluation(hostile: Path):
    entry = json.loads((hostile / "evaluation.json").read_text())["benchmarks"]["world_honesty"]
    numbers = EvaluationOutcome(hostile).numbers()
    f1 = entry["metrics"]["refusal_f1"]
    found = [numbers[f"world_honesty/refusal_f1{end}"] for end in ("", "_low", "_high")]
    assert found == [f1["value"], f1["low"], f1["high"]] and numbers["world_honesty/k"] == 8


def test_wandb_takes_hostile_answers_as_plain_data(hostile: Path, tmp_path: Path):
    run = {"id": "a", "name": "a", "group": "g", "job_type": "train", "tags": [], "config": {}}
    tracker = WandbTracker(tmp_path, "carerft", None, "offline", run, step=0)
    tracker.log({"step": 1, "loss/total": float("nan"), "policy/entropy": 0.5})
    tracker.show(EvaluationOutcome(hostile))
    tracker.finish(failed=False)
    tracked = offline_run(tmp_path)
    assert tracked.steps[0]["policy/entropy"] == 0.5  # and a number that isn't finite does no harm
    (file,) = tracked.directory.glob("files/media/table/samples/world_truth_*.table.json")
    assert json.loads(file.read_text())["data"] == EvaluationOutcome(hostile).tables()["samples/world_truth"].rows


def test_tensorboard_reads_back_what_was_logged(hostile: Path, tmp_path: Path):
    """Also of a run that was killed after step 3 and continued from its checkpoint of step 2."""
    pytest.importorskip("tensorboard", reason="pip install 'carerft[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from carerft.trackers.tensorboard import TensorboardTracker

    killed = TensorboardTracker(tmp_path, 0)
    for step in (1, 2, 3):
        killed.log({"step": step, "reward/mean": step / 4})
    killed.finish(failed=True)
    continued = TensorboardTracker(tmp_path, 2)
    for step in (3, 4):
        continued.log({"step": step, "reward/mean": step / 4})
    continued.show(EvaluationOutcome(hostile))
    continued.finish(failed=False)
    found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0, "images": 0}).Reload()
    assert [(e.step, e.value) for e in found.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    (f1,) = found.Scalars("world_honesty/refusal_f1_low")
    assert (f1.step, f1.value) == (4, np.float32(EvaluationOutcome(hostile).numbers()["world_honesty/refusal_f1_low"]))
    (image,) = found.Images("reliability/world_honesty")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    (text,) = found.Tensors("samples/world_truth/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert len(lines) == QUESTIONS * SAMPLES and all(line.startswith('    {"question"') for line in lines)
