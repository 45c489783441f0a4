"""docs/running-at-scale.md: every command composes and passes the checks, every figure of its table is the plan's."""

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from carerft import cli
from carerft.config.checks import check_train
from carerft.config.composition import CONF, plain, train_settings
from carerft.sweeps.cells import cells
from carerft.sweeps.composition import register
from carerft.sweeps.folders import experiment
from carerft.training.launch import check_processes

PLACE = Path(__file__).parent.parent / "docs" / "running-at-scale.md"
PAGE = PLACE.read_text()
FEW = ["seed=0", "algorithm=grpo", "regularizer=srkl"]  # one run of a table, and its base model: the others are alike
SUBMITIT = importlib.util.find_spec("submitit") is not None

register()


def commands() -> Iterator[list[str]]:
    """The words of each command in the page's shell blocks, without comments."""
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


OURS = [words for words in commands() if {"carerft", "carerft.commands.train"} & set(words)]
TRAININGS = [words for words in OURS if {"train", "carerft.commands.train"} & set(words)]
ROWS = re.findall(
    r"^\| [^|]+ \| `([^`]+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\w[\w ]*) \|$", PAGE, flags=re.MULTILINE
)


def shown(words: list[str]) -> str:
    return " ".join(words)


def arguments(words: list[str]) -> list[str]:
    """What the verb is given, of Hydra's launcher only what is installed here."""
    start = (
        words.index("carerft.commands.train") + 1 if "carerft.commands.train" in words else words.index("carerft") + 2
    )
    return [word for word in words[start:] if SUBMITIT or not word.startswith(("hydra/launcher=", "hydra.launcher."))]


def options(words: list[str]) -> dict[str, str]:
    """torchrun's."""
    return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)


def composed(verb: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(verb, overrides, return_hydra_config=True)


def test_the_page_has_commands_for_each_of_its_parts():
    for part in (
        "model.adapter=lora",
        "adamw_8bit",
        "processes=8",
        "placement=dedicated",
        "submitit_slurm",
        "--nnodes",
    ):
        assert any(part in shown(words) for words in OURS), part
    assert len(ROWS) == 10
    assert all(
        {"carerft", "carerft.commands.train"} & set(words) or words[:2] == ["ray", "start"] for words in commands()
    )


@pytest.mark.parametrize("words", TRAININGS, ids=shown)
def test_every_training_composes_and_passes_the_checks(words: list[str], monkeypatch: pytest.MonkeyPatch):
    for word in words[: words.index("carerft")] if "carerft" in words else []:
        monkeypatch.setenv(*word.split("="))  # RAY_ADDRESS
    given, many = [word for word in arguments(words) if word != "-m"], "-m" in arguments(words)
    if "carerft.commands.train" in words:
        asked = options(words)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "0")
        monkeypatch.setenv("WORLD_SIZE", str(int(asked["nproc-per-node"]) * int(asked.get("nnodes", "1"))))
    given = cli.expand_model(given)
    if many:
        (name,) = [word.removeprefix("experiment=") for word in given if word.startswith("experiment=")]
        rest = [word for word in given if not word.startswith("experiment=")]
        runs = [cell.settings for cell in cells(experiment(name), [*rest, *FEW], here=False) if cell.command == "train"]
    else:
        runs = [train_settings(plain(composed("train", given)))]
    for settings in runs:
        check_train(settings, here=False)
        check_processes(settings, multirun=many)
        assert settings.rollout.name == "vllm" and settings.task.name == "math"  # the scale was not forgotten


@pytest.mark.parametrize("words", [words for words in OURS if words[0] == "carerft" and words[1] == "sweep"], ids=shown)
def test_every_sweep_lists_its_runs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert cli.main(["sweep", *arguments(words), *FEW, "--dry-run"]) == 0
    found = capsys.readouterr().out
    assert "0 of 2 runs are done" in found and list(tmp_path.iterdir()) == []


def planned(given: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = cli.main(["plan", *given])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("words", [words for words in OURS if words[:2] == ["carerft", "plan"]], ids=shown)
def test_every_plan_says_that_it_fits(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)  # where no finished runs correct it
    monkeypatch.setattr(sys, "argv", sys.argv)
    status, found = planned([*arguments(words), *FEW], capsys)
    assert status == 0 and "it fits" in found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_is_what_the_plan_prints(
    row: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert f"`carerft plan ARGUMENTS {' '.join(FEW)}`" in PAGE
    status, found = planned([*row[0].split(), *FEW], capsys)
    together = re.search(r"together +│ +([\d.]+) │ +([\d.]+) │\n│ there is +│ +([\d.]+)", found)
    assert together.groups() == row[1:4]
    assert row[4] == ("does not fit" if status else "fits") and ("it fits" in found) == (status == 0)


@pytest.mark.skipif(not SUBMITIT, reason="submitit is not installed: pip install 'carerft[submitit]'")
@pytest.mark.parametrize("words", [words for words in OURS if "submitit_slurm" in shown(words)], ids=shown)
def test_submitits_launcher_takes_its_settings(words: list[str]):
    given = [word for word in arguments(words) if word.startswith(("hydra/launcher=", "hydra.launcher."))]
    launcher = composed("train", given).hydra.launcher
    wanted = dict(
        word.removeprefix("hydra.launcher.").split("=") for word in given if word.startswith("hydra.launcher.")
    )
    assert {key: str(launcher[key]) for key in wanted} == wanted
    assert launcher.nodes == launcher.tasks_per_node == 1 and launcher.timeout_min > 60


def test_every_file_and_heading_that_the_page_points_to_is_there():
    headings = {
        re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings
    for path in re.findall(r"`((?:tests|conf)/[\w./]+)`", PAGE):
        assert (PLACE.parent.parent / path).is_file(), path
