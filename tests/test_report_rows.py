"""How a report gets from runs to rows: means, intervals, labels, columns, warnings, and the questions it shows."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_runs import make_demo, manifest, write_json, write_lines, write_run, write_training
from matplotlib.figure import Figure
from rich.console import Console

from carerft.commands.report import COLUMNS
from carerft.metrics.intervals import Spread, clear_best, over_seeds, pooled_spread
from carerft.metrics.names import FIRST, METRICS
from carerft.metrics.statistics import Interval
from carerft.report.columns import Column, MainTable, few_verdicts, main_table, notes
from carerft.report.figures.curves import smooth
from carerft.report.figures.points import label_points
from carerft.report.figures.reliability import pooled_reliability
from carerft.report.questions import select_questions
from carerft.report.rows import Row, base_of, make_rows
from carerft.report.tables import latex, print_table
from carerft.runs.reading import load_runs
from carerft.text import decimal, signed, visible


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("runs"), questions=40)


# Numbers


def test_pooled_spread_is_the_within_row_deviation():
    # Means 2 and 3: squares 1 + 1 and 1 + 1 + 4; degrees of freedom 1 + 2. A row of one seed says nothing.
    spread = pooled_spread([[1, 3], [2, 2, 5], [100]])
    assert spread == Spread(pytest.approx((8 / 3) ** 0.5), 3)
    assert pooled_spread([[1], [2]]) is None


def test_over_seeds_joins_the_spread_between_seeds_with_that_over_questions():
    runs = [Interval(0.5, 0.4, 0.7), Interval(0.7, 0.6, 0.9)]
    half = 3.1824 * 0.1 / 2**0.5  # t at 3 degrees of freedom, deviation 0.1, two seeds
    joined = over_seeds(runs, Spread(0.1, 3))
    assert joined.value == pytest.approx(0.6)
    assert joined.low == pytest.approx(0.6 - (half**2 + 0.1**2) ** 0.5, abs=1e-4)
    assert joined.high == pytest.approx(0.6 + (half**2 + 0.2**2) ** 0.5, abs=1e-4)
    assert over_seeds(runs[:1], None) == runs[0]
    assert over_seeds(runs, Spread(1.0, 1)) == Interval(pytest.approx(0.6), 0.0, 1.0)  # a share can't leave [0, 1]
    assert over_seeds([Interval(0.5), Interval(0.7)], Spread(0.1, 1)) == Interval(pytest.approx(0.6))


def test_best_is_marked_only_where_its_interval_touches_no_other():
    apart = [Interval(0.9, 0.8, 1.0), Interval(0.5, 0.4, 0.7), None]
    assert clear_best(apart, 1) == 0
    assert clear_best(apart, -1) == 1
    assert clear_best(apart, 0) is None
    assert clear_best([Interval(0.9, 0.7, 1.0), Interval(0.5, 0.4, 0.7)], 1) is None
    assert clear_best([Interval(0.9), Interval(0.5, 0.4, 0.7)], 1) is None
    assert clear_best([Interval(0.9, 0.8, 1.0), None], 1) is None


def test_numbers_are_written_for_readers():
    assert (decimal(-0.25), decimal(-0.0001), decimal(1 / 3)) == ("−0.250", "0.000", "0.333")
    assert (signed(0.25), signed(-0.25), signed(0.0001)) == ("+0.250", "−0.250", "0.000")


def test_smoothing_keeps_a_constant_and_skips_gaps():
    values = np.full(48, 2.0)
    values[[0, 20, 21]] = np.nan
    assert smooth(values) == pytest.approx(np.full(48, 2.0))
    assert smooth(np.array([0.0, 3.0, 0.0])) == pytest.approx([1.5, 1.0, 1.5])


def test_visible_keeps_layout_and_says_what_was_cut():
    assert visible("a\tb\r\n c\x00") == "a\tb\n c⟨U+0000⟩"
    assert visible("x" * 1_002_000, 2000) == "x" * 2000 + " … (1,000,000 more characters)"
    visible("\ud800", 10).encode("utf-8")


# Rows


def labels(root: Path) -> list[str]:
    return [row.label for row in make_rows(load_runs([root]))]


def test_rows_are_ordered_and_named_from_their_configuration(demo):
    rows = make_rows(load_runs([demo]))
    assert [c.label for c in rows] == ["base model", "no penalty", "RKL beta=0.04", "SRKL alpha=0.8 beta=0.04"]
    assert [[run.seed for run in row.runs] for row in rows] == [[0], [0, 1], [0, 1], [0, 1]]
    assert [base_of(row, rows) for row in rows] == [None, rows[0], rows[0], rows[0]]


def test_labels_say_what_differs(tmp_path):
    write_training(tmp_path, "a", regularizer__beta=0.04)
    write_training(tmp_path, "b", regularizer__beta=0.5)
    write_training(tmp_path, "c", regularizer__beta=0.5, regularizer__estimator="k3")
    assert labels(tmp_path) == [
        "SRKL alpha=0.8 beta=0.04",
        "SRKL alpha=0.8 beta=0.5, estimator=exact",
        "SRKL alpha=0.8 beta=0.5, estimator=k3",
    ]
    write_training(tmp_path, "d", "none", algorithm__name="dapo")
    assert labels(tmp_path)[0] == "DAPO, no penalty"
    assert "GRPO, SRKL alpha=0.8 beta=0.04" in labels(tmp_path)


def test_labels_name_each_kind_of_penalty(tmp_path):
    write_training(tmp_path, "a")
    write_training(tmp_path, "b", regularizer__match="local")
    write_training(tmp_path, "c", "rkl", regularizer__name="forward_kl")
    write_training(tmp_path, "d", "none", regularizer__name="entropy", regularizer__entropy_bonus=0.001)
    write_training(tmp_path, "e", regularizer__entropy_bonus=0.01)
    assert set(labels(tmp_path)) == {
        "SRKL alpha=0.8 beta=0.04",
        "SRKL alpha=0.8 beta=0.04 matched",
        "FORWARD KL beta=0.04",
        "entropy bonus=0.001",
        "SRKL alpha=0.8 beta=0.04, entropy bonus=0.01",
    }


def test_an_evaluated_model_is_a_base_only_of_runs_that_started_from_it(tmp_path):
    other = manifest("evaluate")
    other["config"]["model"] |= {"name": "finetuned", "path": "outputs/x/model"}
    write_run(tmp_path / "other", other, "base", questions=4)
    write_training(tmp_path, "run")
    assert labels(tmp_path) == ["finetuned, as it is", "SRKL alpha=0.8 beta=0.04"]


def test_seed_base_model_and_name_do_not_make_a_row_but_a_repeated_seed_counts_once(tmp_path):
    write_training(tmp_path, "2026-01-01", seed=0)
    write_training(tmp_path, "2026-01-02", seed=0, name="again")
    write_training(tmp_path, "2026-01-03", seed=1, model__base=1)
    (row,) = make_rows(load_runs([tmp_path]))
    assert [run.name for run in row.runs] == ["2026-01-02", "2026-01-03"]
    assert [run.name for run in row.superseded] == ["2026-01-01"]


def test_real_benchmarks_get_the_columns_of_the_papers_table(tmp_path):
    names = dict(world_reasoning="math", world_transfer="gsm8k", world_honesty="selfaware", world_truth="truthfulqa")
    make_demo(tmp_path, questions=6, seeds=(0,))
    for path in tmp_path.rglob("evaluation.json"):
        content = json.loads(path.read_text())
        content["benchmarks"] = {names[name]: value for name, value in content["benchmarks"].items()}
        write_json(path, content)
    rows = make_rows(load_runs([tmp_path]))
    table = main_table(rows, COLUMNS)
    assert [column.heading for column in table.columns] == [
        "Accuracy (mean@k): MATH ↑",
        "Accuracy (mean@k): GSM8K ↑",
        "Accuracy (mean@k): SelfAware ↑",
        "Accuracy (mean@k): TruthfulQA ↑",
        "SelfAware: refusal F1 ↑",
        "TruthfulQA: MC2 ↑",
        "ECE of votes, answered questions (k=8): MATH ↓",
        "ECE of votes, answered questions (k=8): SelfAware ↓",
        "ECE of votes, answered questions (k=8): TruthfulQA ↓",
        "Entropy: nats/token",
    ]
    table = main_table(rows, {"gsm8k": ["majority", "accuracy"], "truthfulqa": []})
    headings = [column.heading for column in table.columns]
    assert headings[4:6] == ["GSM8K: majority@k ↑", "SelfAware: refusal F1 ↑"]
    assert headings[:4] == [f"Accuracy (mean@k): {name} ↑" for name in ("MATH", "GSM8K", "SelfAware", "TruthfulQA")]
    assert not any(heading.startswith("TruthfulQA") for heading in headings)


def test_questions_of_ones_own_show_their_accuracy_also_where_some_have_no_answer(tmp_path):
    make_demo(tmp_path, questions=6, seeds=(0,))
    for path in tmp_path.rglob("evaluation.json"):
        content = json.loads(path.read_text())
        content["benchmarks"] = {"exam": content["benchmarks"]["world_honesty"]}
        write_json(path, content)
    columns = main_table(make_rows(load_runs([tmp_path]))).columns
    assert [column.heading for column in columns][:2] == ["Accuracy (mean@k): exam ↑", "exam: refusal F1 ↑"]
    assert [column.caption for column in columns][:2] == ["exam: accuracy (mean@k)", "exam: refusal F1"]


def test_calibration_at_different_k_is_never_compared(demo, tmp_path):
    apart = {"base": 0.1, "none": 0.5, "rkl": 0.6, "srkl": 0.7}
    for k, best in ((8, 0), (16, None)):
        make_demo(tmp_path / str(k), questions=4, seeds=(0,))
        for path in (tmp_path / str(k)).rglob("evaluation.json"):
            content = json.loads(path.read_text())
            ece = apart[
                next(name for name in ("base", "none", "srkl", "rkl") if name in str(path.relative_to(tmp_path)))
            ]
            found = content["benchmarks"]["world_reasoning"]
            found["metrics"]["ece_answered"] = {"value": ece, "low": ece - 0.01, "high": ece + 0.01}
            found["k"] = k if "base" in path.parts else 8
            write_json(path, content)
        rows = make_rows(load_runs([tmp_path / str(k)]))
        table = main_table(rows)
        index = next(i for i, column in enumerate(table.columns) if column.metric == "ece_answered")
        assert table.best[index] == best
    assert table.columns[index].group == "ECE of votes, answered questions (k=8 to 16)"


def test_print_table_fits_a_terminal(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "runs")
    write_training(tmp_path / "runs", "fifth", regularizer__match="local")
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    print_table(load_runs([tmp_path / "runs"]), console)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    for word in (
        "base model",
        "no penalty",
        "refusal F1: F1 of refusing",
        "--all",
        "(k=8)",
        "a perfectly calibrated sampler would show about",
    ):
        assert word in " ".join(text.split())
    # every interval is there whole: a digit that is cut off would be another number
    intervals = re.findall(r"\S+\u2013\S+", text)
    assert len(intervals) > 40 and all(re.fullmatch(r"\d\.\d{3}\u2013\d\.\d{3}", found) for found in intervals)


def test_a_terminal_shows_five_metrics_with_what_they_mean_or_all_of_them(demo):
    def printed(everything: bool) -> str:
        console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        print_table(load_runs([demo]), console, everything=everything)
        return " ".join(console.export_text().split())

    few, every = printed(False), printed(True)
    for metric in FIRST:
        assert f"{METRICS[metric].title}: {METRICS[metric].meaning}." in few
    for metric in ("majority", "brier", "entropy"):
        assert METRICS[metric].title not in few and f"{METRICS[metric].title}: {METRICS[metric].meaning}." in every


def test_tables_say_what_perfect_calibration_would_show_and_which_numbers_rest_on_few_verdicts(demo):
    rows = make_rows(load_runs([demo]))
    columns = main_table(rows).columns
    ece = next(column for column in columns if column.metric == "ece_answered")
    lows = [row.scores[ece.benchmark, "ece_answered_floor"].value for row in rows]
    first = notes(rows, columns)[0]
    assert (
        f"ECE of votes, answered questions, on {ece.title}: " in first
        and decimal(min(lows)) in first
        and decimal(max(lows)) in first
    )
    assert not few_verdicts(rows, columns)
    judged = [Interval(0.02), None, *[Interval(0.0)] * (len(rows) - 3), Interval(0.85)]

    def with_verdicts(benchmark: str) -> list[Row]:
        new = [{} if value is None else {(benchmark, "no_verdict"): value} for value in judged]
        return [replace(row, scores=row.scores | scores) for row, scores in zip(rows, new, strict=True)]

    (warning,) = few_verdicts(with_verdicts(ece.benchmark), columns)
    assert warning.startswith(f"FEW VERDICTS: {rows[-1].label}, ") and "rest on the 15% of the answers" in warning
    assert "accuracy (mean@k), ECE of votes" in warning
    likelihoods = [column for column in columns if column.metric == "mc2"]
    assert not few_verdicts(with_verdicts("truthfulqa"), likelihoods)


def test_no_row_is_best_of_a_column_that_rests_on_few_verdicts(demo):
    rows = [
        replace(row, scores=row.scores | {("b", "accuracy"): Interval(x, x, x), ("b", "no_verdict"): Interval(missing)})
        for row, x, missing in zip(make_rows(load_runs([demo]))[:2], (0.9, 0.1), (0.98, 0.0), strict=True)
    ]
    column = Column("b", "accuracy", "B", "Accuracy")
    assert MainTable([column], rows).best == [None]
    rows[0].scores["b", "no_verdict"] = Interval(0.02)
    assert MainTable([column], rows).best == [0]


def test_latex_is_escaped_and_balanced(tmp_path):
    write_training(tmp_path, "a", regularizer__name="my_$penalty%{x}^~\\&#")
    rows = make_rows(load_runs([tmp_path]))
    text = latex(main_table(rows))
    assert r"MY\_\$PENALTY\%\{X\}\textasciicircum{}\textasciitilde{}\textbackslash{}\&\#" in text
    columns = {
        line.replace(r"\&", "").count("&") for line in text.splitlines() if line.endswith(r"\\") and "multi" not in line
    }
    assert len(columns) == 1
    assert "$\\alpha$=0.8 $\\beta$=0.04" in text


# Questions


def test_reliability_pools_seeds_by_their_counts(tmp_path):
    for seed, (count, accuracy) in enumerate([([1, 3], [0.0, 1.0]), ([0, 1], [None, 0.0])]):
        write_training(tmp_path, str(seed), seed=seed)
        path = tmp_path / str(seed) / "evaluation.json"
        content = json.loads(path.read_text())
        bins = {
            "edges": [0, 0.5, 1],
            "count": count,
            "confidence": [0.4 if count[0] else None, 0.9],
            "accuracy": accuracy,
        }
        content["benchmarks"]["world_truth"]["reliability"] = bins
        write_json(path, content)
    (row,) = make_rows(load_runs([tmp_path]))
    pooled = pooled_reliability(row, "world_truth")
    assert pooled.count.tolist() == [1, 4]
    assert pooled.confidence == pytest.approx([0.4, 0.9])
    assert pooled.accuracy == pytest.approx([0.0, 0.75])


def write_votes(directory: Path, benchmark: str, votes: dict[str, list[tuple[str | None, bool, bool]]]) -> None:
    """Samples as (extracted, correct, refused) by problem."""
    rows = [
        {
            "problem_id": problem,
            "sample": i,
            "text": f"{extracted} {i}",
            "extracted": extracted,
            "correct": correct,
            "refused": refused,
        }
        for problem, samples in votes.items()
        for i, (extracted, correct, refused) in enumerate(samples)
    ]
    write_lines(directory / "evaluation" / f"{benchmark}.jsonl", rows)


def test_questions_are_those_where_majorities_differ(tmp_path):
    make_demo(tmp_path, questions=4, seeds=(0,))
    right, wrong = ("moss", True, False), ("honey", False, False)
    no, nothing = (None, False, True), (None, False, False)
    problem = {"prompt": "Q", "answer": "moss", "misconceptions": ["Honey"]}
    for directory in (tmp_path / "base", *(tmp_path / f"regularizer={r}/seed=0" for r in ("none", "rkl", "srkl"))):
        write_lines(
            directory / "evaluation" / "world_truth.problems.jsonl", [{"problem_id": i} | problem for i in "bc"]
        )
        lured = "none" in str(directory)
        write_votes(directory, "world_truth", {
            "b": [wrong, wrong, right] if lured else [no, right, right],
            "c": [nothing, nothing, right, wrong],  # unreadable samples never win; a tie: the one sampled first
        })  # fmt: skip
    troubles: list[str] = []
    (chosen,) = select_questions(make_rows(load_runs([tmp_path])), ["world_truth"], 100, troubles)
    assert (chosen.differing, chosen.total, troubles) == (1, 2, [])
    first, second = chosen.questions
    assert [(a.answer, a.votes, a.total) for a in second.answers] == [("moss", 1, 4)] * 4
    assert first.id == "b" and first.differs and not second.differs
    assert [(a.label, a.answer, a.kind, a.votes, a.total, a.text) for a in first.answers][:2] == [
        ("base model", "moss", "correct", 2, 3, "moss 1"),
        ("no penalty", "honey", "misconception", 2, 3, "honey 0"),
    ]
    assert [first.right(answer) for answer in first.answers] == ["right", "wrong", "right", "right"]


def test_declining_is_right_only_where_no_answer_exists(tmp_path):
    write_training(tmp_path, "run")
    write_votes(
        tmp_path / "run",
        "world_honesty",
        {"world_honesty-0000": [(None, True, True)], "world_honesty-0001": [(None, False, True)]},
    )
    (chosen,) = select_questions(make_rows(load_runs([tmp_path])), ["world_honesty"], 100, [])
    shown = {q.id: (q.unanswerable, q.right(q.answers[0]), q.answers[0].answer) for q in chosen.questions}
    assert shown == {
        "world_honesty-0000": (True, "right", "declines to answer"),
        "world_honesty-0001": (False, "", "declines to answer"),
    }


@pytest.mark.parametrize("all_of_them", [True, False])
def test_labels_of_crowded_points_cover_neither_each_other_nor_a_point(all_of_them: bool):
    figure = Figure((4, 4))
    axes = figure.add_subplot()
    points = [(0.0, 0.0), (1.0, 1.0), *[(0.5 + 0.002 * i, 0.5) for i in range(12)]]
    axes.plot(*zip(*points, strict=True), "o", ms=7)
    label_points(axes, [(str(i), *point) for i, point in enumerate(points)], size=8, all_of_them=all_of_them)
    figure.canvas.draw()
    for text in axes.texts:
        text.arrowprops = text.arrow_patch = None  # its line may pass others
    drawn = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert {"0", "1", "2"} <= drawn.keys() and len(drawn) == len(points) if all_of_them else len(drawn) < len(points)
    free = [name for name in drawn if not all_of_them or int(name) < 6]  # of the rest, the least covered place is taken
    for name in free:
        assert not any(drawn[name].overlaps(drawn[other]) for other in free if other != name)
        assert not any(drawn[name].contains(*axes.transData.transform(point)) for point in points)
