"""Claims, paired differences and what a report says of an experiment, against numbers worked out by hand."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import make_demo, manifest, write_run
from scipy.optimize import minimize
from scipy.stats import t as student_t

from carerft import cli
from carerft.metrics import scores
from carerft.metrics.intervals import Spread
from carerft.metrics.statistics import Interval
from carerft.report.build import publish
from carerft.report.findings import FAILS, HOLDS, NO_RUNS, ONE_SEED, UNCLEAR, dominance, judge, verdict
from carerft.report.paired import Paired, block_spread, matches, nearest, partners, seed_pairs
from carerft.report.paper import Claim, read_paper
from carerft.report.rows import make_rows
from carerft.runs.reading import Run, load_runs
from carerft.sweeps.folders import experiment


def claim(expect: str, margin: float = 0.0) -> Claim:
    return Claim("says", {}, expect, {}, ("MATH",), margin)


@pytest.mark.parametrize(
    ("expect", "margin", "low", "high", "says"),
    [
        ("above", 0.0, 0.01, 0.05, HOLDS),
        ("above", 0.0, -0.01, 0.05, UNCLEAR),
        ("above", 0.0, -0.05, -0.01, FAILS),
        ("below", 0.0, -0.05, -0.01, HOLDS),
        ("below", 0.0, 0.01, 0.05, FAILS),
        ("not below", 0.02, -0.01, 0.05, HOLDS),  # all of it above -0.02
        ("not below", 0.02, -0.03, 0.05, UNCLEAR),
        ("not below", 0.02, -0.05, -0.03, FAILS),
        ("not above", 0.03, -0.05, 0.02, HOLDS),
        ("not above", 0.03, 0.04, 0.05, FAILS),
        ("not above", 0.03, 0.02, 0.05, UNCLEAR),
    ],
)
def test_the_verdict_follows_from_the_interval(expect: str, margin: float, low: float, high: float, says: str):
    assert verdict(claim(expect, margin), Interval((low + high) / 2, low, high)) == says


def test_without_an_interval_nothing_can_be_told():
    assert verdict(claim("above"), Interval(0.5)) == UNCLEAR


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([(0.02, 0.04), (-0.5, -0.4)], HOLDS),  # better in the first: not dominated, however bad the second
        ([(-0.04, -0.02), (-0.02, 0.005)], FAILS),  # worse in the first, and in the second not better by 0.01
        ([(-0.04, -0.02), (-0.02, 0.03)], UNCLEAR),  # in the second it may be better
        ([(-0.02, 0.005), (-0.02, 0.005)], UNCLEAR),  # nowhere clearly worse
    ],
)
def test_dominance(changes: list[tuple[float, float]], says: str):
    assert dominance([Interval((low + high) / 2, low, high) for low, high in changes], margin=0.01) == says


def test_the_spread_between_seeds_is_what_rows_and_seeds_leave_over():
    """[[1, 2], [3, 6]]: row means 1.5 and 4.5, seed means 2 and 4, mean 3. Left over: 1 - 1.5 - 2 + 3 = 0.5, then -0.5,
    -0.5, 0.5: a sum of squares of 1 on (2 - 1)(2 - 1) = 1 degree of freedom; of a difference of rows, twice that. The
    difference by seed, 2 and 4, has indeed the standard deviation sqrt(2)."""
    spread = block_spread([{0: 1.0, 1: 2.0}, {0: 3.0, 1: 6.0}])
    assert spread is not None and spread.freedom == 1
    assert spread.deviation == pytest.approx(math.sqrt(2)) == pytest.approx(np.std([2, 4], ddof=1))
    # A seed that lifts every row alike is no spread of their differences; one that one row alone has tells nothing.
    assert block_spread([{0: 1.0, 1: 2.0, 2: 9.0}, {0: 3.0, 1: 4.0}]) == Spread(pytest.approx(0.0, abs=1e-9), 1)
    assert (
        block_spread([{0: 1.0}, {0: 2.0}]) is None
        and block_spread([{0: 1.0, 1: 2.0}]) is None
        and block_spread([]) is None
    )


def test_the_spread_between_seeds_of_rows_that_lack_some_and_of_rows_from_another_base():
    """Three rows that lack some seeds, as while a sweep is running: 7 values less the effects of 3 rows and 3 seeds,
    which are 5 numbers, leave 2 degrees of freedom; what remains is the least that any effects leave."""
    rows = [{0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 5.0}, {1: 1.0, 2: 4.0}]
    spread = block_spread(rows)
    assert spread is not None and spread.freedom == 2

    def left(effects: np.ndarray) -> float:
        return sum((x - effects[i] - effects[3 + seed]) ** 2 for i, row in enumerate(rows) for seed, x in row.items())

    least = minimize(left, np.zeros(6)).fun
    assert spread.deviation == pytest.approx(math.sqrt(2 * least / 2), abs=1e-6)
    # A row from another base model has blocks of its own, and changes nothing.
    alone = [{("other", seed): value for seed, value in enumerate((9.0, -3.0, 5.0))}]
    assert block_spread([*rows, *alone]) == Spread(pytest.approx(spread.deviation), 2)


def test_replicates_that_only_their_base_model_tells_apart_have_a_spread_too(rows):
    """Three runs at one seed from three base models are three blocks, as three seeds are."""
    place = ("world_reasoning", "accuracy")

    def at_seed_0(run: Run) -> Run:
        config = {**run.config, "seed": 0, "model": {**run.config["model"], "base": run.seed}}
        return replace(run, seed=0, config=config)

    both = [rows[name] for name in ("none", "rkl", "srkl")]
    crossed = [replace(row, runs=tuple(map(at_seed_0, row.runs))) for row in both]
    found, again = (
        Paired(some, {"world_reasoning": ["accuracy"]}).difference(some[2], some[0], place) for some in (both, crossed)
    )
    assert found == again and found.sides[0] > 0


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("claims") / "outputs" / "table1", questions=40)


@pytest.fixture(scope="module")
def rows(demo):
    return {row.family: row for row in make_rows(load_runs([demo]))}


def samples(directory: Path, benchmark: str) -> tuple[list[dict], list[dict]]:
    return tuple(
        [json.loads(line) for line in (directory / "evaluation" / f"{benchmark}{kind}").read_text().splitlines()]
        for kind in (".problems.jsonl", ".jsonl")
    )


def test_a_paired_difference_is_the_mean_over_seeds_with_both_kinds_of_luck(demo: Path, rows):
    """Against the same computed the long way: accuracies by question, the questions resampled together."""
    place = ("world_reasoning", "accuracy")
    paired = Paired(list(rows.values()), {"world_reasoning": ["accuracy"]})
    found = paired.difference(rows["srkl"], rows["none"], place)

    def shares(name: str, seed: int) -> np.ndarray:
        _, answers = samples(demo / f"regularizer={name}" / f"seed={seed}", "world_reasoning")
        return np.array([float(a["correct"]) for a in answers]).reshape(40, -1).mean(1)

    by_question = np.mean([shares("srkl", seed) - shares("none", seed) for seed in (0, 1)], axis=0)
    assert found.value == pytest.approx(by_question.mean())
    drawn = np.random.default_rng(0).integers(40, size=(1000, 40))
    low, high = np.quantile(by_question[drawn].mean(1), [0.025, 0.975])
    table = np.array([[shares(name, seed).mean() for seed in (0, 1)] for name in ("none", "rkl", "srkl")])
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    deviation = math.sqrt(2 * (rest**2).sum() / 2)  # (3 - 1)(2 - 1) degrees of freedom
    half = student_t.ppf(0.975, 2) * deviation / math.sqrt(2)
    assert found.low == pytest.approx(found.value - math.hypot(found.value - low, half), abs=1e-12)
    assert found.high == pytest.approx(found.value + math.hypot(high - found.value, half), abs=1e-12)


def test_a_seed_that_lacks_the_metric_has_no_part_in_a_paired_difference(tmp_path: Path):
    """A run that refuses every question has no calibration error of its answers."""
    outputs = make_demo(tmp_path / "outputs" / "table1", questions=40)
    refusing = outputs / "regularizer=none" / "seed=1" / "evaluation" / "world_truth.jsonl"
    answers = [json.loads(line) | {"refused": True} for line in refusing.read_text().splitlines()]
    refusing.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    rows = {row.family: row for row in make_rows(load_runs([outputs]))}
    place, metrics = ("world_truth", "ece_answered"), {"world_truth": ["ece_answered"]}
    found = Paired(list(rows.values()), metrics).difference(rows["srkl"], rows["none"], place)
    (first, _), (second, _) = ((row.runs[0], row.runs[1]) for row in (rows["srkl"], rows["none"]))
    ours, theirs = (
        scores.replicates(*samples(run.directory, "world_truth"), ["ece_answered"])["ece_answered"][0]
        for run in (first, second)
    )
    assert found is not None and found.value == pytest.approx(ours - theirs) and math.isfinite(found.low)


def test_replicates_begin_with_the_metric_itself(demo: Path):
    directory = demo / "regularizer=rkl" / "seed=0"
    for benchmark, names in {
        "world_truth": ["truthful", "ece_answered", "mc2"],
        "world_honesty": ["refusal_f1"],
    }.items():
        problems, answers = samples(directory, benchmark)
        metrics = scores.score(problems, answers)["metrics"]
        drawn = scores.replicates(problems, answers, [*names, "no such metric"])
        assert set(drawn) == set(names)
        for name in names:
            assert drawn[name].shape == (1001,) and drawn[name][0] == pytest.approx(metrics[name]["value"])


def test_runs_are_paired_by_seed_and_a_base_model_serves_all(rows):
    assert [(a.seed, b.seed) for a, b in seed_pairs(rows["srkl"], rows["rkl"])] == [(0, 0), (1, 1)]
    assert [(a.seed, b.seed) for a, b in seed_pairs(rows["srkl"], rows["base"])] == [(0, 0), (1, 0)]


def write(root: Path, place: str, regularizer: dict, **config) -> None:
    record = manifest("train", "srkl", 0)
    record["config"]["regularizer"] = regularizer
    record["config"] |= config
    write_run(root / place, record, "srkl", questions=4, steps=3)


def test_partners_differ_in_what_the_selectors_name_alone(tmp_path: Path):
    skew = {"name": "srkl", "alpha": 0.8, "estimator": "exact"}
    write(tmp_path, "a", {**skew, "beta": 0.04})
    write(tmp_path, "b", {**skew, "beta": 0.04}, algorithm={"name": "dapo", "group_size": 8})
    for beta in (0.01, 0.04):
        write(tmp_path, f"rkl{beta}", {"name": "rkl", "beta": beta, "estimator": "exact"})
    write(tmp_path, "k3", {**skew, "beta": 0.04, "estimator": "k3"})
    rows = make_rows(load_runs([tmp_path]))
    at = {row.runs[0].name: row for row in rows}
    rkl = {"regularizer.name": "rkl"}
    found = partners(at["a"], rows, {"regularizer.name": "srkl"}, rkl)
    assert {row.runs[0].name for row in found} == {"rkl0.01", "rkl0.04"}  # another beta is no other experiment
    assert [row.runs[0].name for row in nearest(at["a"], found)] == ["rkl0.04"]
    assert partners(at["b"], rows, {}, rkl) == []  # none of them is DAPO's
    exact = partners(at["k3"], rows, {"regularizer.estimator": "k3"}, {"regularizer.estimator": "exact"})
    assert [row.runs[0].name for row in exact] == ["a"]
    assert matches(at["a"], {"regularizer.match": "none"})  # a default counts as a value
    assert not any(matches(row, {"base": True}) for row in rows)


def test_every_claim_is_judged_or_said_to_have_no_runs(rows):
    asked = read_paper(experiment("table1"))
    places = {
        "world_reasoning": ["accuracy"],
        "world_honesty": ["refusal_f1"],
        "world_truth": ["truthful", "ece_answered"],
    }
    everything = list(rows.values())
    judged = judge(asked, everything, Paired(everything, places))
    assert len(judged) == len(asked.claims) and not any(j.verdict == NO_RUNS for j in judged)
    without = [row for row in everything if row.family != "rkl"]
    verdicts = {j.claim.says: j.verdict for j in judge(asked, without, Paired(without, places))}
    assert verdicts["SRKL reasons better than reverse KL"] == NO_RUNS
    assert verdicts["Unconstrained finetuning raises reasoning"] != NO_RUNS


def test_the_report_of_an_experiment(demo: Path, monkeypatch, capsys):
    """`carerft report table1`: the paper's numbers beside ours, claims with verdicts, and a page for the repository."""
    monkeypatch.chdir(demo.parent.parent)
    assert cli.main(["report", "table1"]) == 0
    page = (demo / "report" / "report.md").read_text()
    assert "(0.410)" in page and "(0.600)" in page  # the paper's MATH of its base model, and of CARE-GRPO
    assert sum(page.count(f"| {verdict} |") for verdict in (HOLDS, FAILS, UNCLEAR)) == 13
    for file in [line.split("](")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]:
        assert (demo / "report" / file).exists()
    publish(demo / "report", demo.parent / "page" / "table1.md")
    copied = {f"figures/{path.name}" for path in (demo.parent / "page" / "figures").iterdir()}
    assert copied == set(re.findall(r"\]\((figures/[^)]+)\)", page)) and len(copied) == 2
    assert (demo.parent / "page" / "table1.md").read_text() == page
    for name in ("beside", "claims", "compared"):
        assert (demo / "report" / f"{name}.tex").read_text().startswith(r"\begin{tabular}")
    tidy = list(csv.DictReader((demo / "report" / "beside.csv").open()))
    (care,) = [line for line in tidy if line["column"] == "MATH" and line["row"].startswith("SRKL")]
    assert care["paper"] == "0.6" and float(care["low"]) < float(care["ours"]) < float(care["high"])
    html = (demo / "report" / "index.html").read_text()
    assert "SRKL reasons as well as without a constraint" in html and "http-equiv" in html
    before = html
    assert cli.main(["report", "table1"]) == 0
    assert (demo / "report" / "index.html").read_text() == before


def test_runs_of_two_models_are_not_mixed(demo: Path, tmp_path: Path, monkeypatch, capsys):
    record = manifest("train", "none", 0)
    record["config"]["model"] = {"name": "other", "path": "org/other", "revision": None, "base": 0}
    for place, kept in (("outputs/figure1/a", manifest("train", "none", 0)), ("outputs/figure1/b", record)):
        write_run(tmp_path / place, kept, "none", questions=4, steps=3)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "figure1"]) == 2
    assert "holds runs of other, tiny" in capsys.readouterr().err
    assert cli.main(["report", "figure1", "model=tiny"]) == 0
    assert cli.main(["report", "figure1", "model=third"]) == 2
    assert cli.main(["report", "table3"]) == 2
    assert "carerft sweep table3 writes its runs there" in capsys.readouterr().err


def test_a_shared_run_is_read_once(demo: Path, tmp_path: Path):
    root = tmp_path / "outputs"
    write_run(root / "table1" / "a" / "seed=0", manifest("train", "none", 0), "none", questions=4, steps=3)
    (root / "entropy" / "b").mkdir(parents=True)
    (root / "entropy" / "b" / "seed=0").symlink_to("../../table1/a/seed=0")
    assert [run.name for run in load_runs([root / "entropy"])] == ["b/seed=0"]
    assert [run.name for run in load_runs([root])] == ["table1/a/seed=0"]


def test_one_seed_can_tell_nothing(tmp_path: Path):
    demo = make_demo(tmp_path / "outputs", questions=40, seeds=(0,))
    rows = make_rows(load_runs([demo]))
    places = {"world_reasoning": ["accuracy"], "world_honesty": ["refusal_f1"]}
    places["world_truth"] = ["truthful", "ece_answered"]
    judged = judge(read_paper(experiment("table1")), rows, Paired(rows, places))
    assert {j.verdict for j in judged} == {ONE_SEED} and all(j.differences for j in judged)
