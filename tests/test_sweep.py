"""Experiments as folders: every file composes and runs, and every paper file can be read."""

import json
import re
import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from carerft import cli
from carerft.commands import sweep
from carerft.commands.sweep import named_experiment
from carerft.config.composition import plain
from carerft.config.identity import config_hash
from carerft.errors import ConfigError, DataError
from carerft.report.paper import EXPECTATIONS, read_paper
from carerft.sweeps.cells import cells, jobs
from carerft.sweeps.composition import composing
from carerft.sweeps.folders import Experiment, experiment, experiments
from carerft.sweeps.loader import Loader
from carerft.sweeps.workers import last_step
from carerft.world.facts import DEFAULT_SETTINGS
from carerft.world.pretraining import build_base

SMALL = [
    "steps=2", "samples=2", "rollout.prompts_per_batch=4", "algorithm.group_size=4", "tracker=none",
    "evaluation.limit=4", "evaluation.bootstrap=20",
]  # fmt: skip
SWEEPS = [sweep for found in experiments().values() for sweep in found.sweeps]
AT_ANY_SCALE = [name for name, found in experiments().items() if not found.names_model]


def test_the_experiments_of_the_paper_and_of_its_reviewers_are_there():
    wanted = (
        "table1 table2 table3 figure1 figure2 entropy beta_sweep divergences estimators data_size real_model rivals"
    )
    assert set(experiments()) == set(wanted.split())


@pytest.mark.parametrize("sweep", [sweep for name in AT_ANY_SCALE for sweep in experiments()[name].sweeps])
def test_every_experiment_file_runs_for_two_steps(sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first cell of each sweep, trained and measured as the whole sweep would be."""
    monkeypatch.chdir(tmp_path)
    if sweep == "rivals_calibrated":  # whose base is not shipped: one of two steps stands in its place
        monkeypatch.setenv("CARERFT_CACHE", str(tmp_path))
        place = tmp_path / "bases" / DEFAULT_SETTINGS.content_hash() / "confidence,seed=0"
        build_base(0, place, steps=2, confidence=True)
    name = next(found.name for found in experiments().values() if sweep in found.sweeps)
    (first, *_) = jobs_of(sweep, "seed=0")
    assert cli.main(["train", "-m", *first, *SMALL]) == 0
    (manifest,) = (tmp_path / "outputs" / name).glob("*/seed=0/manifest.json")
    assert json.loads(manifest.read_text())["status"] == "done"
    assert last_step(manifest.parent) == 2


def jobs_of(sweep: str, *overrides: str) -> list[list[str]]:
    with composing():
        return jobs(sweep, list(overrides))


def fully_composed(loader: type[ConfigLoaderImpl], command: str, overrides: list[str]) -> tuple[DictConfig, str]:
    """What a loader makes of overrides, Hydra's own part included, and the hash of the run."""
    with composing():
        path = GlobalHydra.instance().config_loader().get_search_path()
        config = loader(path).load_configuration(command, overrides, RunMode.RUN)
        return config, config_hash(plain(config))


def compare_with_hydra(command: str, overrides: list[str]) -> None:
    (ours, identity), (theirs, expected) = (
        fully_composed(loader, command, overrides) for loader in (Loader, ConfigLoaderImpl)
    )
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs) and identity == expected
    flags = [[config._get_node(key)._get_flag("struct") for key in config] for config in (ours, theirs)]
    assert flags[0] == flags[1] and ours._get_flag("struct") is theirs._get_flag("struct") is True


@pytest.mark.parametrize("sweep", SWEEPS)
def test_experiments_are_composed_as_hydra_composes_them(sweep: str):
    """The second of two jobs that differ in values alone: its choices have been composed before."""
    before, last = jobs_of(sweep, "seed=0,1", "model=tiny")[-2:]
    fully_composed(Loader, "train", before)
    compare_with_hydra("train", last)


@pytest.mark.parametrize(
    "overrides",
    [
        ["steps=3", "regularizer=rkl", "regularizer.beta=0.1", "steps=4"],
        [
            "+hydra.mine=1",
            "++benchmark.other={limit: 1}",
            "~benchmark.world_truth",
            "benchmark={world_honesty: {limit: 2}}",
        ],
        [
            "hydra.sweep.dir=a",
            "hydra.sweep.subdir=b",
            "hydra.job.config.override_dirname.exclude_keys=[seed]",
            "seed=3",
        ],
        ["hydra.run.dir=c/${seed}", "hydra/job_logging=disabled", "hydra.job.env_copy=[HOME]", "~hydra/hydra_logging"],
        [
            "benchmark=[world_truth,world_honesty]",
            "evaluation.limit=${steps}",
            "tracker.project='a b'",
            "experiment=demo",
        ],
    ],
)
def test_overrides_of_every_kind_are_composed_as_hydra_composes_them(overrides: list[str]):
    compare_with_hydra("train", overrides)


@pytest.mark.parametrize("overrides", [["steps=1,2"], ["nothing=1"], ["task=nothing"], ["~steps=3"], ["steps=many"]])
def test_what_cannot_be_composed_is_refused_as_hydra_refuses_it(overrides: list[str]):
    said = []
    for loader in (Loader, ConfigLoaderImpl):
        with pytest.raises(HydraException) as caught:
            fully_composed(loader, "train", overrides)
        said.append(f"{type(caught.value).__name__}: {caught.value}")
    assert said[0] == said[1]


@pytest.mark.parametrize("name", AT_ANY_SCALE)
def test_every_experiment_composes_at_both_scales(name: str):
    small = cells(experiment(name), ["model=tiny", "seed=0"])
    assert len({cell.directory for cell in small}) == len(small)
    assert all(cell.settings.samples == 16 for cell in small)
    large = cells(experiment(name), ["model=qwen2.5-3b", "rollout=transformers", "seed=0"])
    assert [cell.overrides[1:3] for cell in large if cell.command == "train"] == [
        cell.overrides[1:3] for cell in small if cell.command == "train"
    ]
    paper = {"math", "gsm8k", "selfaware", "truthfulqa", "truthfulqa_options"}
    assert all(set(cell.settings.benchmark) == paper for cell in large)
    assert all(set(cell.settings.evaluation.combine) < paper for cell in large)
    assert all(cell.settings.task.name == "math" for cell in large if cell.command == "train")


def test_seeds_are_three_and_bring_their_base_models_in_miniature():
    small = cells(experiment("figure2"), ["model=tiny"])
    assert [cell.settings.model.base for cell in small if cell.command == "evaluate"] == [0, 1, 2]
    trained = [cell.settings for cell in small if cell.command == "train"]
    assert [(settings.model.base, settings.seed) for settings in trained] == 2 * [(0, 0), (1, 1), (2, 2)]
    large = cells(experiment("figure2"), ["model=qwen2.5-3b", "rollout=transformers"])
    assert [cell.command for cell in large].count("evaluate") == 1  # one base model, measured once


def test_a_base_model_that_states_confidences_is_measured_beside_the_other():
    """Another model for the same seeds: what a sweep itself sets of a model is part of the name of its evaluation, also
    where the command line says it again, which is of that sweep alone."""
    found = cells(experiment("rivals"), ["model=tiny"])
    again = cells(experiment("rivals"), ["model=tiny", "model.confidence=true", "seed=0"])
    assert [cell.directory for cell in again] == [cell.directory for cell in found if cell.settings.seed == 0]
    assert len({cell.directory for cell in found}) == len(found) == 2 * 3 + (7 + 2 + 1) * 3
    asked = {cell.directory.parts[-2]: cell.settings.model.confidence for cell in found if cell.command == "evaluate"}
    assert asked == {"base": False, "base,model.confidence=True": True}
    trained = [cell.settings for cell in found if cell.command == "train"]
    assert all(s.model.confidence == (s.reward.functions == ["calibrated"]) for s in trained)


def test_a_base_model_is_measured_as_what_starts_from_it():
    base, *_ = cells(
        experiment("table1"), ["model=tiny", "seed=0", "evaluation.limit=7", "samples=3", "benchmark=world_truth"]
    )
    assert (base.command, base.settings.samples, base.settings.evaluation.limit) == ("evaluate", 3, 7)
    assert list(base.settings.benchmark) == ["world_truth"]


def test_a_base_model_is_not_sampled_as_its_trainings_sample():
    biased = ["rollout.temperature=0.7", "rollout.top_p=0.9", "rollout.allow_biased_sampling=true"]
    biased += ["rollout.reward_truncated=false"]
    base, first, *_ = cells(experiment("table1"), ["model=tiny", "seed=0", *biased])
    assert (base.settings.rollout.temperature, base.settings.rollout.top_p) == (1.0, 1.0)
    assert first.settings.rollout.temperature == 0.7 and base.directory.parts[-2] == "base"


def test_a_base_model_is_shown_by_the_tracker_of_its_trainings():
    base, *_ = cells(experiment("table1"), ["model=tiny", "seed=0", "tracker=none"])
    assert (base.command, base.settings.tracker.name) == ("evaluate", "none")
    named, *_ = cells(experiment("table1"), ["model=tiny", "seed=0", "tracker.project=mine"])
    assert named.settings.tracker.project == "mine"
    assert named.directory == base.directory and "tracker" not in str(base.directory)


def test_any_model_that_is_not_the_tiny_one_is_trained_as_in_the_paper():
    base, *trained = cells(experiment("figure2"), ["model=path", "model.path=org/name", "rollout=transformers"])
    assert (base.command, base.settings.model.path, base.settings.model.name) == (
        "evaluate",
        "org/name",
        "name",
    )
    assert {cell.settings.task.name for cell in trained} == {"math"}
    assert {(cell.settings.steps, cell.settings.model.path) for cell in trained} == {(180, "org/name")}


def test_an_axis_of_one_sweep_is_not_asked_of_another():
    found = cells(experiment("table3"), ["model=tiny", "seed=0", "regularizer.alpha=0.9"])
    trained = [cell.settings.regularizer for cell in found if cell.command == "train"]
    assert [(entry.name, getattr(entry, "alpha", None)) for entry in trained] == [("srkl", 0.9), ("none", None)]


@pytest.mark.parametrize(
    ("name", "words", "left"),
    [
        ("beta_sweep", ["regularizer=rkl,srkl", "seed=0"], {"beta_sweep": ["regularizer=rkl,srkl", "seed=0"]}),
        ("beta_sweep", ["regularizer=none"], {"beta_sweep_references": ["regularizer=none"]}),
        ("beta_sweep", ["seed=1,7"], {"beta_sweep": ["seed=1,7"], "beta_sweep_references": ["seed=1,7"]}),
        ("beta_sweep", ["regularizer=jsd"], {"beta_sweep": ["regularizer=jsd"]}),
        (
            "beta_sweep",
            ["regularizer=rkl,none", "regularizer.beta=0.08", "steps=3"],
            {
                "beta_sweep": ["regularizer=rkl", "regularizer.beta=0.08", "steps=3"],
                "beta_sweep_references": ["regularizer=none", "steps=3"],
            },
        ),
        ("real_model", ["regularizer=none"], {"real_model": ["regularizer=none"]}),
        ("rivals", ["reward=ternary"], {"rivals_ternary": ["reward=ternary"]}),
    ],
)
def test_a_value_of_an_axis_chooses_the_sweeps_that_list_it(name: str, words: list[str], left: dict[str, list[str]]):
    """`beta_sweep regularizer=rkl regularizer.beta=0.08` ran its reference, too, as reverse KL of another beta."""
    assert experiment(name).overridden(words) == left


def test_values_that_no_sweep_has_together_are_refused_with_the_command_that_runs_them():
    with pytest.raises(ConfigError) as refused:
        experiment("rivals").overridden(["reward=ternary", "regularizer=rkl"])
    assert refused.value.what == "no sweep of experiment rivals has all of reward=ternary regularizer=rkl"
    assert "carerft train -m experiment=rivals_ternary reward=ternary regularizer=rkl" in refused.value.remedy


def test_an_experiment_that_names_its_model_is_one_of_a_small_real_model():
    assert set(experiments()) - set(AT_ANY_SCALE) == {"real_model"}
    chosen, words = named_experiment(["real_model", "seed=0"])
    assert chosen == experiment("real_model") and words == ["seed=0"]
    base, *trained = cells(experiment("real_model"), [*words, "model.path=org/name"])  # not on this disk
    assert {cell.settings.model.name for cell in (base, *trained)} == {"smollm2-135m"}
    assert {cell.settings.task.name for cell in trained} == {"arithmetic"}
    # Measured with the same questions and in the same precision before and after.
    assert {cell.settings.precision for cell in (base, *trained)} == {"bfloat16"}
    assert all(cell.settings.benchmark == base.settings.benchmark for cell in trained)
    penalties = [(cell.settings.regularizer.name, getattr(cell.settings.regularizer, "beta", None)) for cell in trained]
    assert len(set(penalties)) == 7 and len(trained) == 8  # SRKL and matched SRKL share name and beta


def test_words_name_an_experiment_and_override_its_configuration():
    assert named_experiment(["figure2", "seed=0"]) == (experiment("figure2"), ["model=tiny", "seed=0"])
    assert named_experiment(["price=2", "figure2", "model=path"]) == (experiment("figure2"), ["price=2", "model=path"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["figure2", "--dry"], "no option --dry\n.*--help"),
        (["figure2", "table1"], "2 experiments were named\n.*such as figure2"),
        (["seed=0"], "no experiment was named\n.*carerft sweep table1"),
        (["figure2", "jobs=0"], "jobs=0: must be at least 1\n.*1 or more"),
        (["figure2", "jobs=two"], "jobs: Value 'two' .* could not be converted to Integer"),
    ],
)
def test_wrong_words_are_refused(arguments: list[str], says: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", *arguments]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_an_unknown_experiment_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="no experiment 'tabel1'") as caught:
        experiment("tabel1")
    assert "did you mean table1" in caught.value.remedy


@pytest.mark.parametrize(
    ("word", "here"),
    [("jobs=1", True), ("hydra/launcher=joblib", True), ("hydra/launcher=submitit_slurm", False), ("--dry-run", False)],
)
def test_what_runs_on_a_cluster_need_not_be_able_to_run_here(word, here, monkeypatch):
    def cells(*_, **given):
        assert given == {"here": here}
        raise ConfigError("seen")

    monkeypatch.setattr(sweep, "cells", cells)
    monkeypatch.setattr(sys, "argv", ["carerft sweep", "figure2", word])
    with pytest.raises(ConfigError, match="seen"):
        sweep.main()


def test_a_launcher_whose_plugin_is_not_installed_is_said_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "figure2", "seed=0", "hydra/launcher=nomad"]) == 2
    assert "pip install hydra-nomad-launcher" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("asks: a\nsource: b\ncolumns: [Mth]\n", "'Mth' is not known"),
        ("asks: a\nsource: b\ncolumns: [MATH]\nclaim: []\n", "'claim' is not known"),
        ("asks: a\nsource: b\ncolumns: [MATH]\npanels: [MATH, Mth]\n", "'Mth' is not known"),
        ("asks: a\ncolumns: [MATH]\n", "'source'"),
        ("asks: a\nsource: b\ncolumns: MATH\n", "columns is a text and not a list"),
        ("asks: a\nsource: b\ncolumns: [MATH]\nfrontiers: [[MATH, ECE, SelfAware]]\n", "too many values"),
        (
            "asks: a\nsource: b\ncolumns: [MATH]\n"
            "claims: [{says: c, rows: {}, against: {}, column: MATH, columns: [ECE], expect: undominated}]",
            "a column or columns, not both",
        ),
        ("- a\n", "holds no mapping"),
        ("asks: [a\n", "not valid YAML"),
        (
            "asks: a\nsource: b\ncolumns: [MATH]\n"
            "claims: [{says: c, rows: {}, against: {}, column: MATH, expect: best}]",
            "'best' is none of above",
        ),
    ],
)
def test_a_malformed_paper_file_is_named(text: str, says: str, tmp_path: Path):
    (tmp_path / "paper.yaml").write_text(text)
    with pytest.raises(DataError, match=str(tmp_path)) as caught:
        read_paper(Experiment("mine", tmp_path, {}))
    assert says in caught.value.what


@pytest.mark.parametrize("name", list(experiments()))
def test_every_paper_file_can_be_read(name: str):
    found = read_paper(experiment(name))
    assert found.asks and found.source and found.columns
    for claim in found.claims:
        assert claim.expect in EXPECTATIONS


def test_the_papers_table_is_the_papers():
    """Some of its cells, as printed."""
    rows = {tuple(sorted(map(str, row.values()))): values for row, values in read_paper(experiment("table1")).numbers}
    assert rows["dapo", "rkl"]["GSM8K"] == 0.8432 and rows["gspo", "srkl"]["MATH"] == 0.693
    assert rows[("True",)] == {"MATH": 0.41, "GSM8K": 0.791, "SelfAware": 0.372, "TruthfulQA": 0.489, "ECE": 0.102}
