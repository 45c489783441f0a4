"""The layout of the W&B workspace, as it would be sent; and what is said where nothing can be sent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from carerft.commands.dashboard import CURVES
from carerft.config.checks import check_train
from carerft.errors import ConfigError
from carerft.metrics.names import METRICS
from carerft.report.columns import BENCHMARKS


def carerft(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command line of someone who has never logged in to W&B."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "carerft", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)


@pytest.mark.filterwarnings("ignore:Pydantic V1 style")
def test_the_layout_as_it_is_sent():
    pytest.importorskip("wandb_workspaces", reason="pip install 'carerft[dashboard]'")
    from carerft.commands.dashboard import layout

    workspace = layout("my-project", "my-team", "my title")
    view = workspace._to_model()
    assert (view.project, view.entity, view.display_name) == ("my-project", "my-team", "my title")
    sent = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))["section"]
    sections = {section["name"]: section["panels"] for section in sent["panelBankConfig"]["sections"]}
    assert list(sections) == ["Evaluation", *CURVES, "Reliability diagrams", "Answers"]
    for name, metrics in CURVES.items():
        shown = [(panel["config"]["xAxis"], *panel["config"]["metrics"]) for panel in sections[name]]
        assert shown == [("step", metric) for metric in metrics]
    measured = [panel["config"]["metrics"][0].split("/") for panel in sections["Evaluation"]]
    assert all(name in BENCHMARKS and metric in METRICS for name, metric in measured)
    assert {tuple(one) for one in measured} >= {("world_reasoning", "accuracy"), ("world_honesty", "refusal_f1")}
    figures = [panel["config"]["mediaKeys"] for panel in sections["Reliability diagrams"]]
    assert figures == [[f"reliability/{name}"] for name in BENCHMARKS]
    grouping = [(key["section"], key["name"]) for key in sent["runSets"][0]["grouping"]]
    assert grouping == [("run", "group"), ("config", "cell.value")]


@pytest.mark.parametrize("arguments", [["dashboard"], ["train", "tracker=wandb_online"]])
def test_without_a_key_nothing_is_begun(arguments: list[str], tmp_path: Path):
    if arguments == ["dashboard"]:
        pytest.importorskip("wandb_workspaces", reason="pip install 'carerft[dashboard]'")
    done = carerft(tmp_path, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no key for W&B was found" in done.stderr and "wandb login" in done.stderr
    assert not list(tmp_path.rglob("manifest.json"))


def test_what_is_not_installed_is_said_with_its_command(monkeypatch, tmp_path: Path, capsys):
    from helpers.configurations import settings

    from carerft import cli

    monkeypatch.setitem(sys.modules, "tensorboard", None)  # what Python holds to be absent
    with pytest.raises(ConfigError, match=r'pip install "carerft\[tensorboard\]"'):
        check_train(settings("tracker=tensorboard"))
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["dashboard"]) == 2
    assert 'pip install "carerft[dashboard]"' in capsys.readouterr().err
