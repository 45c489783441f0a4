"""Measuring while training: the same files, the same final numbers, a killed run, and the best policy kept."""

import json
from pathlib import Path

import pytest
from helpers.configurations import composed
from helpers.runs import read_lines, run

from carerft import cli
from carerft.assembly import Subject
from carerft.config.checks import check_evaluate, check_train
from carerft.config.composition import evaluate_settings, train_settings
from carerft.config.identity import config_hash
from carerft.errors import ConfigError
from carerft.metrics.steps import STEPS
from carerft.report.columns import Column
from carerft.report.figures import curves
from carerft.report.learned import learned
from carerft.report.rows import make_rows
from carerft.runs.reading import best_step, load_runs, validations
from carerft.text import decimal

WORDS = ["benchmark=[world_reasoning,world_honesty]", "steps=3"]
EVERY = ["evaluation.every=2", "evaluation.during.limit=4", "keep_best=world_honesty.accuracy"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("plain") / "run"
    assert run(directory, *WORDS) == 0
    return directory


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("measured") / "run"
    assert run(directory, *WORDS, *EVERY) == 0
    return directory


def without_times(directory: Path) -> list[dict]:
    lines = read_lines(directory / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in lines]


def final(directory: Path) -> list[bytes]:
    names = "model/model.safetensors", "evaluation/world_honesty.jsonl", "evaluation/world_reasoning.jsonl"
    return [(directory / name).read_bytes() for name in names]


def test_measuring_changes_nothing_of_the_run(plain: Path, measured: Path):
    assert final(plain) == final(measured)
    scores = [json.loads((d / "evaluation.json").read_text())["benchmarks"] for d in (plain, measured)]
    assert scores[0] == scores[1]
    lines = [
        [{k: v for k, v in line.items() if "validation" not in k} for line in without_times(d)]
        for d in (plain, measured)
    ]
    assert lines[0] == lines[1]


def test_each_measurement_has_the_same_files_and_is_in_the_metrics(measured: Path):
    assert list(validations(measured)) == [0, 2]
    for step, path in validations(measured).items():
        entry = json.loads(path.read_text())["benchmarks"]["world_honesty"]
        assert entry["n"] == 4 and len(read_lines(path.parent / "world_honesty.jsonl")) == 4 * entry["k"], step
    first, second, third = read_lines(measured / "metrics.jsonl")
    shown = json.loads(validations(measured)[2].read_text())["benchmarks"]["world_honesty"]["metrics"]["accuracy"]
    assert second["validation/world_honesty/accuracy"] == shown["value"] and second["time/evaluate_s"] > 0
    (told,) = (text for text in (measured / "train.log").read_text().splitlines() if "measured at step 2: " in text)
    assert f"world_honesty/accuracy {decimal(shown['value'])}" in told and "pass@k" not in told
    assert not any("validation" in key for key in (*first, *third))
    known = {key for key in STEPS if "NAME" not in key and "METRIC" not in key}
    assert all(key in known or key.startswith("validation/") for line in (first, second) for key in line)


def test_the_best_policy_is_kept(measured: Path):
    values = {}
    for step, path in validations(measured).items():
        values[step] = json.loads(path.read_text())["benchmarks"]["world_honesty"]["metrics"]["accuracy"]["value"]
    best = best_step(measured, "world_honesty.accuracy")
    assert best == max(values, key=values.__getitem__)
    assert (measured / "model_best" / "model.safetensors").exists() and (
        measured / "model_best" / "config.json"
    ).exists()


def test_a_run_that_is_killed_while_it_measures_goes_on_there(measured: Path, tmp_path: Path, monkeypatch):
    """It measured half of what it has to after step 2, whose metrics were not yet logged."""
    directory, original = tmp_path / "run", Subject.validate

    def killed(self, run, worker, step):
        if step == 2:
            self.benchmarks = {"world_honesty": self.benchmarks["world_honesty"]}
            original(self, run, worker, step)
            (run.path / "evaluation/step_2/evaluation.json").unlink()
            raise KeyboardInterrupt
        return original(self, run, worker, step)

    monkeypatch.setattr(Subject, "validate", killed)
    assert run(directory, *WORDS, *EVERY) == 130
    assert len(read_lines(directory / "metrics.jsonl")) == 1
    half = (directory / "evaluation/step_2/world_honesty.jsonl").stat().st_mtime_ns
    monkeypatch.undo()
    assert run(directory, *WORDS, *EVERY) == 0
    assert f"continuing {directory} after 2 steps" in (directory / "train.log").read_text()
    assert without_times(directory) == without_times(measured)
    assert final(directory) == final(measured)
    names = "evaluation/step_2/evaluation.json", "evaluation/step_2/world_honesty.jsonl"
    assert (directory / names[1]).read_bytes() == (measured / names[1]).read_bytes()
    results = [json.loads((d / names[0]).read_text())["benchmarks"] for d in (directory, measured)]
    assert results[0] == results[1] and half


def test_a_report_shows_the_path_and_what_was_answered_on_the_way(measured: Path, tmp_path: Path, capsys):
    assert cli.main(["report", str(measured), f"output={tmp_path}"]) == 0
    page = (tmp_path / "index.html").read_text()
    assert "While it learned" in page and "step by step, from the base" in page
    (run,) = load_runs([measured])
    (row,) = make_rows([run])
    x, y = (Column(f"world_{name}", "accuracy", name, name) for name in ("reasoning", "honesty"))
    path = curves.measured(row, (x, y))
    assert path and path[0] == [0, 2]
    for step, values in zip(path[0], path[1], strict=True):
        stored = json.loads(validations(measured)[step].read_text())["benchmarks"]
        assert values.tolist() == [stored[c.benchmark]["metrics"]["accuracy"]["value"] for c in (x, y)]
    for entry in learned([row], 100):
        assert [moment.step for moment in entry.moments] == [0, 2] and entry.prompt.startswith("Q: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluation.every=2 benchmark=none", "evaluation.every=2 with benchmark=none"),
        ("evaluation.every=0", "evaluation.every=0: must be at least 1"),
        ("keep_best=world_truth.mc1", "measured only after the last step"),
        (
            "evaluation.during.samples=4",
            "evaluation.during.samples=4 without evaluation.every: nothing is measured while",
        ),
        ("keep_best=math.accuracy evaluation.every=2", "'math' is not among the benchmarks"),
        ("keep_best=world_truth.acuracy evaluation.every=2", "'acuracy' is no metric"),
        ("keep_best=world_truth.ece_floor evaluation.every=2", "'ece_floor' is no metric of which more or less"),
        (
            "keep_best=world_truth.accuracy evaluation.every=2 benchmark.world_truth.max_tokens=0",
            "world_truth has mc1 and mc2 alone",
        ),
    ],
)
def test_settings_that_cannot_work(words: str, message: str):
    with pytest.raises(ConfigError, match=message):
        check_train(train_settings(composed(*words.split())))


def test_a_best_by_what_is_not_measured_is_refused_before_the_first_step(tmp_path: Path, capsys):
    wanted = [*EVERY[:2], "keep_best=world_reasoning.refusal_f1"]
    assert run(tmp_path / "run", *WORDS, *wanted) == 2
    said = capsys.readouterr().err
    assert "world_reasoning has no refusal_f1\n  write world_reasoning. and one of accuracy, " in said
    assert not (tmp_path / "run/metrics.jsonl").read_text()
    assert best_step(tmp_path / "run", "world_reasoning.ece_stated") is None  # of a model that states none yet


def test_how_often_a_run_is_measured_is_no_part_of_what_it_is():
    assert config_hash(composed(*EVERY)) == config_hash(composed())
    with pytest.raises(ConfigError, match="measures a model once"):
        check_evaluate(evaluate_settings(composed("evaluation.every=2", verb="evaluate")))


def test_an_evaluation_has_no_measurements_during_a_training():
    with pytest.raises(ConfigError, match="limit=4 without evaluation") as raised:
        check_evaluate(evaluate_settings(composed("evaluation.during.limit=4", verb="evaluate")))
    assert raised.value.remedy == "write evaluation.limit=4, which every measurement takes"
