"""Directories of runs: a name for every cell, a directory for every run, and what is said where none can be written."""

import errno
import json
import logging
import os
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from helpers.configurations import composed
from hydra.core.override_parser.overrides_parser import OverridesParser

from carerft import cli
from carerft.errors import ConfigError
from carerft.runs.directory import open_run
from carerft.sweeps.cells import cells
from carerft.sweeps.folders import experiment
from carerft.sweeps.names import cell_directory, cell_name, reserved
from carerft.text import hydra_quoted
from carerft.world.bases import SHIPPED

SMALL = ["model=tiny", "steps=0", "benchmark=none", "tracker=none"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def cells_of(*words: str) -> list[str]:
    assert cli.main(["train", "-m", *SMALL, *words]) == 0
    found = sorted(Path("outputs").glob("*/*/seed=*/manifest.json"))
    assert all(json.loads(file.read_text())["status"] == "done" for file in found)
    return [str(file.parent.relative_to("outputs")) for file in found]


@pytest.mark.parametrize(
    "name",
    ["algorithm=grpo,regularizer=srkl", "model=tiny,task._target_=hostile.Dies", "x" * 255, 'model.path="a b"'],
)
def test_a_usable_name_stays_as_it_is(name: str):
    assert cell_name(name) == name


@pytest.mark.parametrize("text", ["x" * 256, "é" * 200, "task.path=/a/b.jsonl", "a\nb=1", 'model.path="/p/a=1"'])
def test_any_other_name_is_made_usable_and_stays_its_own(text: str):
    name = cell_name(text)
    assert len(name.encode()) <= 255 and "/" not in name and "\n" not in name and '"' not in name
    assert len({name, cell_name(text + "1"), cell_name(text.replace("/", "_") + " ")}) == 3
    assert name.startswith(text[:8].replace("\n", "_")) and cell_name(text) == name


def test_paths_are_named_by_their_last_part():
    """Without quotes, slashes and `model=path`; other paths of the same name stay apart."""
    first, second = (
        cell_name(f'algorithm=grpo,model.path="{place}/Qwen2.5 1.5B",model=path,seed=1,task.path=a/mine.jsonl')
        for place in ("/models", "Qwen")
    )
    shown = "algorithm=grpo,model=Qwen2.5_1.5B,seed=1,task.path=mine.jsonl-"
    assert first != second and {first[:-6], second[:-6]} == {shown}
    assert cell_name("model.path=Qwen/B,model.revision=x,model=path")[:-7] == "model.revision=x,model=B"
    assert cell_name('model.path="/a/b,c",model=path')[:-7] == "model=b_c"


def chosen(axes: str, overrides: str, config: dict) -> str:
    return cell_directory(axes, overrides, Path("outputs"), lambda: config)


def test_the_swept_keys_alone_name_a_cell_without_quotes_escapes_or_paths():
    assert chosen("regularizer=rkl", "regularizer=rkl,steps=3", {}) == "regularizer=rkl"
    assert chosen("", "regularizer=rkl,steps=3", {}) == "regularizer=rkl,steps=3"  # only seeds are swept
    assert chosen("", "", {}) == "default"
    assert chosen('beta=1,model.path="/a/B 1"', "model=path,x", {})[:-7] == "beta=1,model=B_1"
    assert chosen(r"reward.functions=[mine.py\:f]", "x", {}) == "reward.functions=[mine.py:f]"


def test_a_name_is_shared_by_the_seeds_of_one_configuration_and_by_no_other():
    def config(**changes: object) -> dict:
        return {"name": "a", "seed": 0, "steps": 3, "samples": 5, "model": {"name": "tiny", "base": 0}} | changes

    with open_run(Path("outputs/regularizer=rkl/seed=0"), "train", config()) as run:
        run.update()
    names = ("regularizer=rkl", "regularizer=rkl,samples=6")
    for changes, own in (
        ({}, True), ({"seed": 1, "model": {"name": "tiny", "base": 1}}, True), ({"name": "b"}, True),
        ({"steps": 4}, True), ({"steps": 4, "seed": 1}, True),  # which continue the same trainings
        ({"steps": 2}, False), ({"samples": 6}, False), ({"samples": 6, "seed": 1}, False),
        ({"model": {"name": "other", "base": 0}}, False),
    ):  # fmt: skip
        assert chosen(*names, config(**changes)) == names[not own], changes
    with open_run(Path("outputs/regularizer=rkl,samples=6/seed=0"), "train", config(samples=6)) as run:
        run.update()
    shutil.rmtree("outputs/regularizer=rkl")  # a run that has begun is continued where it is
    assert chosen(*names, config(samples=6, seed=1)) == names[1]


def test_multiruns_that_differ_in_what_is_not_swept_are_kept_apart_and_found_again():
    words = ["regularizer=none,rkl", "learner.max_grad_norm=2"]
    first = cells_of(*words)
    assert first == ["train/regularizer=none/seed=0", "train/regularizer=rkl/seed=0"]
    manifests = [Path("outputs", place, "manifest.json") for place in first]
    before = [file.read_bytes() for file in manifests]
    both = cells_of(words[0], "learner.max_grad_norm=3")
    assert len(both) == 4 and all("learner.max_grad_norm=3" in place for place in both if place not in first)
    assert cells_of(*words) == cells_of(words[0], "learner.max_grad_norm=3") == both
    assert [file.read_bytes() for file in manifests] == before


def test_ten_overrides_of_a_multirun():
    long = [
        "regularizer.alpha_schedule=linear", "regularizer.alpha_end=0.5", "regularizer.beta_schedule=linear",
        "regularizer.beta_end=0.05", "algorithm.advantage_baseline=leave_one_out", "algorithm.dynamic_rounds=17",
        "rollout.prompts_per_batch=4", "rollout.importance_cap=3.5", "learner.max_grad_norm=1.5",
        "evaluation.bootstrap=20", "learner.gradient_checkpointing=true", "samples=2",
    ]  # fmt: skip
    two = cells_of(*long, "algorithm.group_size=2,4")
    assert len(two) == 2 and all(len(name.split("/")[1]) <= 255 for name in two)
    assert cells_of(*long, "algorithm.group_size=2,4") == two  # found again


def test_jobs_that_differ_in_their_names_or_seeds_alone():
    """Those of another name are links to the same runs."""
    assert cli.main(["train", "-m", *SMALL, "name=a,b", "seed=0,1"]) == 0
    assert sorted(str(p.parent) for p in Path("outputs").glob("[ab]/*/seed=*/manifest.json")) == [
        f"outputs/{name}/benchmark=none,model=tiny,steps=0/seed={seed}" for name in "ab" for seed in (0, 1)
    ]


def test_a_multirun_without_an_override_that_names_a_cell():
    with_config = ["train", "-m", "tracker=none", "name=x,y", "seed=0"]
    from carerft.commands import train

    places = []
    original = train.job_directory
    train.job_directory = lambda command, record: places.append(original(command, record))
    try:
        assert cli.main(with_config) == 0
    finally:
        train.job_directory = original
    assert [str(place.relative_to(Path.cwd())) for place in places] == [f"outputs/{n}/default/seed=0" for n in "xy"]


def test_names_in_one_directory_are_refused(capsys: pytest.CaptureFixture):
    assert cli.main(["train", "-m", *SMALL, "name=a,b", "hydra.sweep.dir=here"]) == 2
    assert "would share a directory" in capsys.readouterr().err and not list(Path.cwd().iterdir())


def test_runs_of_the_same_second_have_directories_of_their_own():
    when = datetime(2026, 1, 2, 3, 4, 5)
    names = [reserved(Path("outputs/x"), when) for _ in range(3)]
    assert names == ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3"]
    assert sorted(path.name for path in Path("outputs/x").iterdir()) == names


def test_a_run_whose_directory_is_named_leaves_no_other_behind():
    assert cli.main(["evaluate", "experiment=demo_base", "evaluation.limit=1", "samples=1", "tracker=none"]) == 0
    assert [path.name for path in Path("outputs/demo").iterdir()] == ["base"]


def test_showing_a_configuration_makes_no_directory(capsys: pytest.CaptureFixture):
    assert cli.main(["train", "--cfg", "all", "--resolve"]) == 0
    assert not Path("outputs").exists()


PARSER = OverridesParser.create()


@pytest.mark.parametrize(
    "path", ["/p/a=1", "/p/a,b", "/p/a b", '/p/a"b', "/p/a'b", "/p/a\\b", "/p/a\\", '/p/a\\"', "/p/é(1)"]
)
def test_any_path_of_a_model(path: str, tmp_path: Path):
    model = f"{tmp_path}{path}"
    Path(model).mkdir(parents=True)
    (group, word) = cli.expand_model([f"model={model}"])
    assert group == "model=path" and PARSER.parse_override(word).value() == model
    assert PARSER.parse_override(f"x={hydra_quoted(path)}").value() == path
    assert composed(*cli.expand_model([f"model={model}"]))["model"]["path"] == model
    (word,) = cli.expand_model([f"task.path={model}"])
    assert PARSER.parse_override(word).value() == model


def test_rewards_of_a_sweep(tmp_path: Path):
    assert cli.expand_model(["reward=correctness,mine.py:f"]) == ["reward.functions=[correctness],[mine.py:f]"]
    (tmp_path / "a,b c.py").touch()
    (word,) = cli.expand_model([f"reward={tmp_path}/a,b c.py:f"])
    assert PARSER.parse_override(word).value() == [f"{tmp_path}/a,b c.py:f"]


def swept(words: list[str]) -> list[str]:
    (override,) = PARSER.parse_overrides(words[1:])
    texts = list(override.sweep_string_iterator())
    return [str(PARSER.parse_override(f"model.path={text}").value()) for text in texts]


def test_several_paths_of_models(tmp_path: Path):
    assert swept(cli.expand_model(["model=/p/a=1,/p/b"])) == ["/p/a=1", "/p/b"]
    assert swept(cli.expand_model(["model=Org/A-1.5,Org/B"])) == ["Org/A-1.5", "Org/B"]
    (tmp_path / "a,1").mkdir()
    assert swept(cli.expand_model([f"model={tmp_path}/a,1,/p/b"])) == [f"{tmp_path}/a,1", "/p/b"]
    with pytest.raises(ConfigError, match="'tiny' is neither a directory nor a hub name"):
        cli.expand_model(["model=/p/a,tiny"])


@pytest.mark.parametrize("word", ["task.path=/a/b.jsonl", "task.path=null", "hydra.run.dir=x/y", "seed=1,2"])
def test_other_words_stay_as_they_are(word: str):
    assert cli.expand_model([word]) == [word]


def test_a_directory_to_write_to_may_have_any_name():
    assert cli.main(["train", *SMALL, "hydra.run.dir=runs/a=1,b (2)"]) == 0
    assert Path("runs/a=1,b (2)/manifest.json").is_file()


def test_the_base_models_of_a_sweep_over_models_have_directories_of_their_own(tmp_path: Path):
    models = [tmp_path / "a=1", tmp_path / "b,c"]
    for model in models:
        shutil.copytree(SHIPPED, model)
    words = cli.expand_model(["model=" + ",".join(map(str, models)), "task=world", "benchmark=world", "seed=0"])
    planned = cells(experiment("figure2"), [*words, "rollout=transformers"])
    bases = [cell for cell in planned if cell.command == "evaluate"]
    assert [cell.settings.model.path for cell in bases] == list(map(str, models))
    assert len({cell.directory for cell in planned}) == len(planned)
    assert {len(cell.directory.parts) for cell in planned} == {4}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", *SMALL], ["Read-only file system", "hydra.run.dir="]),
        (["train", *SMALL, "hydra.run.dir=here"], ["here: Read-only file system", "hydra.run.dir="]),
        (["train", "-m", *SMALL], ["Read-only file system", "hydra.sweep.dir="]),
        (["evaluate", "model=tiny", "tracker=none"], ["Read-only file system", "hydra.run.dir="]),
        (["sweep", "figure2", "seed=0"], ["Read-only file system", "working directory"]),
        (["base", "steps=1", "output=here"], ["Read-only file system", "output="]),
    ],
)
def test_a_read_only_file_system(words: list[str], says: list[str], capsys: pytest.CaptureFixture, monkeypatch):
    def mkdir(self: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr("os.mkdir", lambda path, *_, **__: mkdir(Path(path)))
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert all(text in said for text in says) and "Traceback" not in said


def test_a_directory_in_which_no_file_can_be_made(capsys: pytest.CaptureFixture, monkeypatch):
    """Hydra makes the log of a run, by a handler of logging."""

    def refuse(self: logging.FileHandler) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.baseFilename)

    monkeypatch.setattr(logging.FileHandler, "_open", refuse)
    assert cli.main(["train", *SMALL, "hydra.run.dir=here"]) == 2
    said = capsys.readouterr().err
    assert "here/train.log: Read-only file system" in said and "hydra.run.dir=" in said and "Traceback" not in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_in_the_middle_of_a_run(number: int, capsys: pytest.CaptureFixture, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("carerft.model.export.export", fail)
    assert cli.main(["train", *SMALL, "hydra.run.dir=here"]) == 2
    assert f"a file cannot be written: {os.strerror(number)}" in capsys.readouterr().err
    assert json.loads(Path("here/manifest.json").read_text())["status"] == "failed"


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    for error in (FileNotFoundError(errno.ENOENT, "absent", "/absent/file"), ConnectionError("no"), ValueError("no")):
        assert cli.file_failure(error) is None


@pytest.mark.parametrize("value", ["0", "", "1"])
def test_the_users_setting_of_hydras_errors_changes_nothing(value: str, capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", value)
    assert cli.main(["train", *SMALL, "steps=-1"]) == 2
    assert cli.main(["train", "learner=nothing"]) == 2
    said = capsys.readouterr().err
    assert "steps=-1: must be at least 0" in said and "no such learner" in said and "Traceback" not in said


@pytest.mark.parametrize("word", ["seed=4294967296", "seed=-1", "model.base=4294967296", "seed=100000000000000000000"])
def test_a_seed_that_a_random_generator_does_not_take(word: str, capsys: pytest.CaptureFixture):
    for command in ("train", "evaluate"):
        assert cli.main([command, "model=tiny", "tracker=none", word]) == 2
        said = capsys.readouterr().err
        assert f"{word}: must be at least 0 and at most 4294967295" in said and "Traceback" not in said


def test_the_largest_seed_works():
    assert cli.main(["train", *SMALL, "seed=4294967295"]) == 0


def test_half_of_a_surrogate_pair(tmp_path: Path, capsys: pytest.CaptureFixture):
    row = {"question": "What is 1 + 1?", "answer": "#### 2"}
    for field in row:
        text = json.dumps({**row, "question": "2?"}) + "\n" + json.dumps({**row, field: "a \ud800 b #### 2"})
        (tmp_path / "x.jsonl").write_text(text)
        assert (
            cli.main(["evaluate", "model=tiny", "tracker=none", "benchmark=gsm8k", "benchmark.gsm8k.path=x.jsonl"]) == 2
        )
        assert "x.jsonl:2: the character \\ud800 is half of a surrogate pair" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text('prompt: "\\uD800 {question}"\n')
    words = ["benchmark=gsm8k", "benchmark.gsm8k.path=x.jsonl", "benchmark.gsm8k.prompt=mine.yaml"]
    assert cli.main(["evaluate", "model=tiny", "tracker=none", *words]) == 2
    assert "mine.yaml" in capsys.readouterr().err


def test_a_word_that_is_not_utf_8(capsys: pytest.CaptureFixture):
    assert cli.main(["train", *SMALL, "name=\udcff"]) == 2
    assert "name=⟨U+DCFF⟩: this is not UTF-8" in capsys.readouterr().err


def test_a_multiruns_option_may_come_after_its_words():
    assert cli.main(["train", *SMALL, "-m", "hydra.sweep.dir=there"]) == 0
    assert list(Path("there").glob("*/seed=0/manifest.json"))


def test_directories_that_earlier_versions_made_of_a_path_are_found_again(tmp_path: Path):
    model = tmp_path / "m"
    shutil.copytree(SHIPPED, model)
    words = ["train", "-m", *cli.expand_model([f"model={model}"]), *SMALL[1:], "rollout=transformers"]
    assert cli.main(words) == 0
    (new,) = Path("outputs/train").glob("*/seed=0")
    assert "model=m,rollout=transformers" in new.parent.name
    old = Path(f'outputs/train/benchmark=none,model.path="{model}",model=path,rollout=transformers,steps=0')
    old.mkdir(parents=True)
    new.rename(old / "seed=0")
    before = (old / "seed=0/manifest.json").read_bytes()
    shutil.rmtree(new.parent)
    assert cli.main(words) == 0
    assert (old / "seed=0/manifest.json").read_bytes() == before and not new.exists()
