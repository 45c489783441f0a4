"""A finished run stands for the files that it read: other data or another model at the same path is an error."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.runs import run

from carerft.errors import RunDirectoryError
from carerft.runs import inputs as recorded
from carerft.runs.directory import open_run
from carerft.runs.inputs import changed_since, changes, inputs
from carerft.sweeps.cells import Cell, check_inputs
from carerft.sweeps.composition import _run_name
from carerft.sweeps.sharing import link_finished_run
from carerft.world.bases import SHIPPED, base_place

CONFIG = {"name": "a", "seed": 0}


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def finish(directory: Path, config: dict, status: str = "done") -> None:
    with open_run(directory, "train", config) as opened:
        opened.update(status=status)


def the_changes(config: dict, change) -> list[str]:
    before = inputs(config)
    assert changes(before, inputs(config)) == []
    change()
    return changes(json.loads(json.dumps(before)), inputs(config))


def test_what_has_changed_is_said_by_key_and_file(tmp_path: Path):
    data = tmp_path / "train.jsonl"
    write(data, "x" * 1234)
    config = {"data": {"path": str(data), "test_path": str(data)}, "task": {"path": str(data)}}
    line = f"data.path: {data}: 1,234 bytes then, 1,300 now"
    assert the_changes(config, lambda: data.write_text("x" * 1300)) == [line]
    (same_size,) = the_changes(config, lambda: data.write_text("y" * 1300))
    assert same_size.startswith(f"data.path: {data}: another content of as many bytes (SHA-256 ")
    assert the_changes(config, lambda: os.utime(data, (1, 1))) == []  # the same bytes are the same data
    assert the_changes(config, data.unlink) == [f"data.path: {data}: was there then, and is not now"]


def test_a_reward_or_a_grader_that_has_changed_is_said(tmp_path: Path):
    code = tmp_path / "mine.py"
    write(code, "def f(): pass")
    config = {"reward": {"functions": ["correctness", f"{code}:f"]}, "task": {"grader": f"{code}:f"}}
    (line,) = the_changes(config, lambda: code.write_text("def f(): return"))
    assert line.startswith(f"reward.functions: {code}: ")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("benchmark.gsm8k.path", "test.jsonl"),
        ("benchmark.gsm8k.prompt", "mine.yaml"),
        ("task.prompt", "mine.yaml"),
        ("task.table_of_my_own", "table.csv"),
        ("task.files", "one.txt"),
    ],
)
def test_every_key_that_names_a_file_counts(key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(Path(name), "one")
    config: dict = {}
    place = config
    *groups, last = key.split(".")
    for group in groups:
        place = place.setdefault(group, {})
    place[last] = [name] if last == "files" else name
    (line,) = the_changes(config, lambda: Path(name).write_text("other"))
    assert line == f"{key}: {name}: 3 bytes then, 5 now"


def test_words_that_happen_to_be_names_of_files_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("grpo", "world", "zero_shot", "srkl", "wandb", "train"):
        Path(name).mkdir()
    config = {
        "name": "train",
        "algorithm": {"name": "grpo"},
        "model": {"path": "world"},
        "task": {"prompt": "zero_shot"},
    }
    config["tracker"] = {"name": "wandb", "path": "wandb"}
    assert [entry["path"] for entry in inputs(config)] == [recorded.WEIGHTS]


def test_a_models_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tmp_path / "model"
    shutil.copytree(SHIPPED, model)
    config = {"model": {"path": str(model)}}
    assert {Path(entry["path"]).name for entry in inputs(config)} >= {"config.json", "model.safetensors"}
    (line,) = the_changes(config, lambda: write(model / "chat_template.jinja", "{{ messages }}"))
    assert line == f"model.path: {model}/chat_template.jinja: was not there then, and is now"
    assert the_changes(config, lambda: write(model / "README.md", "A model.")) == []
    monkeypatch.setattr(recorded, "LARGE", 1000)  # weights beyond this are known by size and time
    weights = model / "model.safetensors"
    assert next(e for e in inputs(config) if e["path"] == str(weights)).keys() == {"key", "path", "bytes", "modified"}

    def another_model() -> None:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(1, 1))

    (line,) = the_changes(config, another_model)
    assert line.startswith(f"model.path: {weights}: last changed 20") and line.endswith(
        "1970-01-01T00:00:00.000000+00:00 now"
    )


def test_copies_of_published_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CARERFT_DATA", str(tmp_path))
    file = tmp_path / "gsm8k" / "test.jsonl"
    config = {"benchmark": {"gsm8k": {"_target_": "carerft.tasks.gsm8k.Gsm8kTask", "path": None}}}
    assert the_changes(config, lambda: write(file, "one")) == []  # it came from the hub, where it is the same
    (line,) = the_changes(config, lambda: file.write_text("other"))
    assert line == f"benchmark.gsm8k, $CARERFT_DATA: {file}: 3 bytes then, 5 now"
    config["benchmark"]["gsm8k"]["path"] = str(write(tmp_path / "own.jsonl", "mine"))
    assert the_changes(config, lambda: file.write_text("unused")) == []


def test_the_questions_of_the_built_in_world(monkeypatch: pytest.MonkeyPatch):
    config = {"task": {"_target_": "carerft.tasks.world.WorldTask"}, "model": {"path": "mine"}}
    before = inputs(config)
    (line,) = the_changes(config, lambda: monkeypatch.setattr(recorded, "VERSION", 5))
    assert line == "task: questions of the built-in world: version 4 then, 5 now"
    assert changes([], before) == ["task: questions of the built-in world: version unknown then, 4 now"]


def test_weights_of_the_built_in_model_that_were_built_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CARERFT_CACHE", str(tmp_path))
    config = {"model": {"path": "world", "base": 3, "confidence": False}}
    weights = base_place(3) / "model.safetensors"
    assert the_changes(config, lambda: write(weights, "one")) == []  # a run builds what is absent
    (line,) = the_changes(config, lambda: weights.write_text("two"))
    assert line.startswith("model.base: weights of the built-in model: another content of as many bytes")
    assert inputs(config)[0]["path"] == inputs({"model": {"path": "world", "base": 0}})[0]["path"]


@pytest.mark.parametrize("status", ["done", "interrupted"])
def test_a_run_does_not_go_on_with_other_inputs(status: str, tmp_path: Path):
    config = {**CONFIG, "data": {"path": write(tmp_path / "x.jsonl", "one")}}
    finish(tmp_path / "run", config, status)
    write(tmp_path / "run" / "metrics.jsonl", "{}")
    with open_run(tmp_path / "run", "train", config):
        pass
    write(tmp_path / "x.jsonl", "other")
    with pytest.raises(RunDirectoryError, match=r"data\.path: .*3 bytes then, 5 now") as caught:
        finish(tmp_path / "run", config)
    assert "hydra.run.dir" in caught.value.remedy
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert changed_since(tmp_path / "run", manifest)
    del manifest["inputs"]  # of an earlier version
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    finish(tmp_path / "run", config, status)


def test_a_run_that_has_written_nothing_takes_mended_data(tmp_path: Path):
    config = {**CONFIG, "data": {"path": write(tmp_path / "x.jsonl", "a fault")}}
    finish(tmp_path / "run", config, "failed")
    write(tmp_path / "x.jsonl", "mended")
    finish(tmp_path / "run", config)
    with open_run(tmp_path / "run", "train", config) as opened:
        assert opened.done and [entry["bytes"] for entry in opened.manifest["inputs"]] == [6]


def test_a_run_that_has_written_nothing_takes_other_settings(tmp_path: Path):
    other = {**CONFIG, "steps": 77}
    finish(tmp_path / "run", CONFIG, "failed")
    finish(tmp_path / "run", other, "failed")
    write(tmp_path / "run" / "metrics.jsonl", "{}")
    with pytest.raises(RunDirectoryError, match="another configuration"):
        finish(tmp_path / "run", CONFIG)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with open_run(tmp_path / "run", "train", CONFIG) as opened:
        assert opened.manifest["status"] == "new" and opened.manifest["config"] == CONFIG


def test_a_run_goes_on_with_a_corrected_grader_after_it_has_failed(tmp_path: Path):
    code, data = (write(tmp_path / name, "one") for name in ("mine.py", "x.jsonl"))
    config = {**CONFIG, "task": {"grader": f"{code}:f", "path": data}}
    with open_run(tmp_path / "run", "train", config) as opened:
        opened.update(status="failed", error="UserCodeError: mine.py:1: KeyError")
    write(tmp_path / "run" / "metrics.jsonl", "{}")
    write(tmp_path / "mine.py", "corrected")
    with open_run(tmp_path / "run", "train", config) as opened:
        assert sorted(entry["bytes"] for entry in opened.manifest["inputs"]) == [3, 9]
        opened.update(status="done", error=None)
    write(tmp_path / "mine.py", "changed once more")
    with pytest.raises(RunDirectoryError, match=r"task\.grader: .*9 bytes then, 17 now"):
        finish(tmp_path / "run", config)


def test_a_finished_run_of_other_inputs_is_not_shared(tmp_path: Path):
    config = {**CONFIG, "data": {"path": write(tmp_path / "x.jsonl", "one")}}
    finish(tmp_path / "a/x/seed=0", config)
    assert link_finished_run(tmp_path / "b/x/seed=0", "train", config, tmp_path) == tmp_path / "a/x/seed=0"
    write(tmp_path / "x.jsonl", "two")
    assert link_finished_run(tmp_path / "c/x/seed=0", "train", config, tmp_path) is None


def test_a_sweep_says_that_its_finished_runs_had_other_inputs(tmp_path: Path):
    config = {**CONFIG, "data": {"path": write(tmp_path / "x.jsonl", "one")}}
    finish(tmp_path / "run", config)
    planned = [Cell("train", (), None, tmp_path / name) for name in ("absent", "run")]  # type: ignore[arg-type]
    check_inputs(planned)
    write(tmp_path / "x.jsonl", "two")
    with pytest.raises(RunDirectoryError, match="another content"):
        check_inputs(planned)


def test_a_single_run_with_other_inputs_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = {**CONFIG, "name": "a", "data": {"path": write(tmp_path / "x.jsonl", "one")}}
    finish(Path("outputs/a/before"), config, "interrupted")
    write(Path("outputs/a/before/evaluation/x.jsonl"), "{}")
    assert _run_name(config) == "before"
    write(tmp_path / "x.jsonl", "two")
    assert _run_name(config) != "before"


def test_an_evaluation_of_another_model_at_the_same_path_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    model = tmp_path / "a=1,b"
    shutil.copytree(SHIPPED, model)
    words = [f"model={model}", "benchmark=world_truth", "evaluation.limit=4"]
    assert run(tmp_path / "run", *words, verb="evaluate") == 0
    assert run(tmp_path / "run", *words, verb="evaluate") == 0  # done
    capsys.readouterr()
    config = json.loads((model / "config.json").read_text())
    write(model / "config.json", json.dumps({**config, "rms_norm_eps": 0.1}))
    assert run(tmp_path / "run", *words, verb="evaluate") == 2
    said = capsys.readouterr().err
    assert f"model.path: {model}/config.json: " in said and "bytes then" in said and "hydra.run.dir" in said
