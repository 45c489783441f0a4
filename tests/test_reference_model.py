"""`reference=`: the penalty's anchor is the model that the user names, and else the policy's own beginning."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs import read_lines, run
from safetensors.torch import load_file, save_file

from carerft.world.bases import SHIPPED

WORDS = ["benchmark=none", "steps=2", "regularizer=rkl", "task=world"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "run"
    assert run(directory, *WORDS, "learner.learning_rate=3e-3") == 0
    return directory


def first_kl(directory: Path) -> float:
    return read_lines(directory / "metrics.jsonl")[0]["policy/kl_to_reference"]


@pytest.mark.parametrize("adapter", ["null", "lora"])
def test_the_penalty_is_measured_from_the_reference_that_is_named(trained: Path, tmp_path: Path, adapter: str):
    model, words = f"model={trained}/model", [*WORDS, f"model.adapter={adapter}"]
    assert run(tmp_path / "own", model, *words) == 0
    assert run(tmp_path / "original", model, *words, f"reference={SHIPPED}") == 0
    assert run(tmp_path / "same", model, *words, f"reference={trained}/model") == 0
    assert run(tmp_path / "step", f"model={trained}/checkpoints/step_2", *words) == 0
    assert first_kl(tmp_path / "own") == first_kl(tmp_path / "same") == first_kl(tmp_path / "step") == 0
    # The policy before its first step is the model that the earlier run ended with.
    assert first_kl(tmp_path / "original") > 1e-3
    said = [(tmp_path / name / "train.log").read_text() for name in ("own", "step", "original")]
    assert ["reference=world" in text for text in said] == [True, True, False]
    assert json.loads((tmp_path / "original/manifest.json").read_text())["config"]["reference"] == str(SHIPPED)


def test_another_kind_of_model_is_refused(trained: Path, tmp_path: Path, capsys):
    other = tmp_path / "other"
    shutil.copytree(SHIPPED, other)
    config = json.loads((other / "config.json").read_text())
    weights = load_file(other / "model.safetensors")
    last = config["num_hidden_layers"] - 1
    save_file({name: w for name, w in weights.items() if f"layers.{last}." not in name}, other / "model.safetensors")
    config |= {"num_hidden_layers": last, "layer_types": (config.get("layer_types") or [])[:last] or None}
    (other / "config.json").write_text(json.dumps(config))
    assert run(tmp_path / "a", *WORDS, f"reference={other}") == 2
    assert "is another kind of model" in capsys.readouterr().err
    assert run(tmp_path / "b", *WORDS, "reference=/nowhere") == 2
    assert "/nowhere holds no config.json" in capsys.readouterr().err
