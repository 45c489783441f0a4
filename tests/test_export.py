"""A run's policy handed on: at its end and at a checkpoint, merged, in either precision, and measured from there."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.runs import run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from carerft import cli
from carerft.config.checks import is_checkpoint
from carerft.config.choices import knows_world
from carerft.model import checkpoints
from carerft.model.checkpoints import write_model
from carerft.model.loading import load_model

WORDS = ["benchmark=none", "steps=3", "learner.checkpoint_every=2", "learner.keep_checkpoints=5"]


@pytest.fixture(scope="module", params=["full", "lora"])
def finished(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp(request.param) / "run"
    adapter = ["model.adapter=lora", "learner.learning_rate=1e-2"] if request.param == "lora" else []
    assert run(directory, *WORDS, *adapter) == 0
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_the_last_checkpoint_is_the_model(finished: Path, capsys):
    assert cli.main(["export", str(finished), "step=3"]) == 0
    directory = finished / "model_step_3"
    assert f"vllm serve {directory} --dtype float32" in capsys.readouterr().out
    found, expected = weights(directory), weights(finished / "model")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_bfloat16_is_the_model_rounded(finished: Path, tmp_path: Path):
    assert cli.main(["export", str(finished), "dtype=bfloat16", f"output={tmp_path / 'small'}"]) == 0
    found, expected = weights(tmp_path / "small"), weights(finished / "model")
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in expected)
    assert json.loads((tmp_path / "small/config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").dtype == torch.bfloat16


def test_of_processes_that_need_a_checkpoints_model_at_once_one_writes_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_again, written = tmp_path / "run", []
    shutil.copytree(finished, run_again, ignore=shutil.ignore_patterns("model*"))

    def counted(*arguments):
        written.append(arguments)
        write_model(*arguments)

    monkeypatch.setattr(checkpoints, "write_model", counted)
    monkeypatch.chdir(run_again / "checkpoints")
    with ThreadPoolExecutor(2) as pool:
        places = list(pool.map(checkpoints.checkpoint_model, [Path("step_3")] * 2))
    assert places == [run_again / "model_step_3"] * 2 and len(written) == 1
    assert is_checkpoint(Path("step_3"))


def test_the_model_at_the_end_is_loaded_with_the_runs_attention(finished: Path, tmp_path: Path, monkeypatch):
    settings, manifest = [], json.loads((finished / "manifest.json").read_text())
    manifest["config"]["model"]["attention"] = "eager"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "run/model").symlink_to(finished / "model")
    monkeypatch.setattr(checkpoints, "load_model", lambda *given: settings.append(given[0]) or load_model(*given))
    write_model(tmp_path / "run", None, tmp_path / "small", torch.bfloat16)
    assert [one.attention for one in settings] == ["eager"]


def test_a_checkpoint_is_measured_as_a_model(finished: Path, tmp_path: Path):
    assert knows_world(str(finished / "checkpoints/step_3")) and not knows_world(str(tmp_path / "checkpoints/step_3"))
    words = ["benchmark=world_honesty"]
    for name in ("checkpoints/step_3", "model"):
        assert run(tmp_path / name, f"model={finished / name}", *words, verb="evaluate") == 0
    answers = [
        (tmp_path / name / "evaluation/world_honesty.jsonl").read_bytes() for name in ("checkpoints/step_3", "model")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}", "step=7"], "there are checkpoints of 2, 3"),
        (["{run}"], "the run's own model, in float32, already"),
        (["{run}", "step=3", "output={run}/checkpoints"], "checkpoints exists already"),
        (["nowhere"], "not one run's directory"),
        (["{run}", "dtype=float16"], "must be one of float32, bfloat16"),
    ],
)
def test_words_that_cannot_work(finished: Path, words: list[str], says: str, capsys):
    assert cli.main(["export", *(word.format(run=finished) for word in words)]) == 2
    assert says in capsys.readouterr().err


def test_a_run_is_no_model(finished: Path, tmp_path: Path, capsys):
    assert run(tmp_path / "run", f"model={finished}", verb="evaluate") == 2
    assert f"model={finished}/model" in capsys.readouterr().err
