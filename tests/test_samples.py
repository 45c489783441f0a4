"""What a model writes while it learns: kept, shown in a terminal and by trackers, and never at the cost of the run."""

import errno
import json
from pathlib import Path

import pytest
import torch
from helpers.runs import read_lines, run

from carerft import cli
from carerft.training import trainer

WORDS = ["benchmark=none", "steps=4", "samples.every=2", "samples.prompts=2", "tracker=tensorboard"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("samples") / "run"
    assert run(directory, *WORDS) == 0
    return directory


def test_completions_of_some_prompts_are_kept_as_they_were_sampled(kept: Path):
    assert sorted(path.name for path in (kept / "samples").iterdir()) == ["step_1.jsonl", "step_3.jsonl"]
    records = read_lines(kept / "samples/step_1.jsonl")
    assert [record["sample"] for record in records] == [0, 1, 0, 1]
    assert len({record["problem_id"] for record in records}) == 2
    for record in records:
        text = "".join(record["tokens"]).removesuffix("<|endoftext|>")
        assert text == record["text"] and record["prompt"].startswith("Q: ")
        assert record["rewards"]["total"] == record["rewards"]["correctness"] == float(record["correct"])
        # Before the first step the policy is its own reference.
        assert record["log_probs"] == pytest.approx(record["reference_log_probs"], abs=2e-4)
    later = read_lines(kept / "samples/step_3.jsonl")
    moved = [torch.tensor(r["log_probs"]) - torch.tensor(r["reference_log_probs"]) for r in later]
    assert torch.cat(moved).abs().max() > 1e-3


def test_they_are_read_in_a_terminal(kept: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["show", str(kept), "worst", "step=1", "count=2"]) == 0
    said = capsys.readouterr().out
    assert "step 1: 2 of 4 completions" in said and "advantage" in said and 'answer "' in said
    assert cli.main(["show", str(kept), "truncated"]) == 0
    assert "step 3: 0 of 4 completions truncated" in capsys.readouterr().out
    for words, says in (
        ([str(kept), "step=2"], "there are those of 1, 3"),
        (["nowhere"], "'nowhere' is not one run's directory"),
        ([str(kept.parent)], "train with samples.every=10"),
        ([str(kept), "worst", "best"], "is not one run's directory"),
    ):
        assert cli.main(["show", *words]) == 2
        assert says in capsys.readouterr().err, words


def test_a_file_and_a_command_say_it_in_the_same_words(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nsamples: {every: 7, prompts: 3}\n")
    place = f"--config-dir={tmp_path}"
    for words in (["experiment=mine"], ["samples={every:7,prompts:3}"], ["samples.every=7", "samples.prompts=3"]):
        assert cli.main(["train", place, "model=tiny", *words, "--cfg=job"]) == 0
        assert "samples: 8\n" in (said := capsys.readouterr().out) and "every: 7\n  prompts: 3\n" in said, words


def test_what_a_model_wrote_never_moves_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "samples").mkdir()
    hostile = {
        "problem_id": "[red]x",
        "prompt": "\x1b[2J",
        "text": "\u202eevil [bold]",
        "rewards": None,
        "correct": None,
    }
    (tmp_path / "samples/step_1.jsonl").write_text(json.dumps(hostile) + "\nnot json\n")
    assert cli.main(["show", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said and "U+202E" in said and "[bold]" in said and "no verdict" in said


def test_a_full_disk_costs_the_samples_and_not_the_run(tmp_path: Path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "write_samples", full)
    assert run(tmp_path / "run", *WORDS, "steps=2") == 0
    said = (tmp_path / "run/train.log").read_text()
    assert "No space left on device" in said and (tmp_path / "run/model").exists()


def test_keeping_them_changes_nothing_of_the_run(kept: Path, tmp_path: Path):
    assert run(tmp_path / "run", "benchmark=none", "steps=4") == 0
    model = "model/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (kept / model).read_bytes()


def test_tensorboard_has_them_as_a_table(kept: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(kept / "tensorboard")).Reload()
    shown = events.Tensors("samples/text_summary")
    assert [event.step for event in shown] == [1, 3]
    assert "advantage" in shown[0].tensor_proto.string_val[0].decode()
