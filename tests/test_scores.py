"""The entry of a benchmark in evaluation.json, against counts by hand."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from carerft.errors import DataError
from carerft.evaluation.table import ALL, MARK, table
from carerft.metrics.names import METRICS
from carerft.metrics.scores import replicates, score, score_together
from carerft.metrics.statistics import majority
from carerft.metrics.votes import collect_votes, predictions


def problem(name, answer, misconceptions=(), **likelihoods):
    record = {"problem_id": name, "prompt": f"{name} ?", "answer": answer, "misconceptions": misconceptions}
    return record | likelihoods


def samples(name, *replies, gold=None):
    """Sample records from replies: "refuse", None (unparsable), or an answer; correct as a grader would say it."""
    return [
        {
            "problem_id": name,
            "sample": i,
            "text": str(reply),
            "extracted": None if reply == "refuse" else reply,
            "correct": reply == gold or (reply == "refuse" and gold is None),
            "refused": reply == "refuse",
            "truncated": reply is None,
            "log_probability": -2.0,
            "tokens": 4,
        }
        for i, reply in enumerate(replies)
    ]


# k = 4. Majorities: a "7" with 3/4, right; b "5" with 2/4 (a tie, sampled before "6"), wrong; c refusal with 3/4,
# right; d refusal with 2/4, wrong (unparsable ones do not outvote it).
PROBLEMS = [
    problem("a", "7", ["8"], mc1=1, mc2=0.75),
    problem("b", "6", ["5"], mc1=0, mc2=0.25),
    problem("c", None),
    problem("d", "1"),
]
SAMPLES = [
    *samples("a", "7", "8", "7", "7", gold="7"),
    *samples("b", "5", "6", "6", "5", gold="6"),
    *samples("c", "refuse", "refuse", "3", "refuse"),
    *samples("d", None, "refuse", None, "refuse", gold="1"),
]


def majorities(records):
    """Confidence and correctness of each majority answer with a verdict."""
    votes = collect_votes(records, list(dict.fromkeys(record["problem_id"] for record in records)))
    return predictions(votes, majority(votes.answers))[1:]


def values(problems, records, **options):
    return {name: m["value"] for name, m in score(problems, records, resamples=50, **options)["metrics"].items()}


def test_metrics_over_samples_by_hand():
    got = values(PROBLEMS, SAMPLES)
    assert got["accuracy"] == pytest.approx((3 + 2 + 3 + 0) / 16)
    assert got["truncated"] == got["unparsable"] == pytest.approx(2 / 16)
    assert got["no_verdict"] == 0
    assert got["entropy"] == pytest.approx(0.5)  # 2 nats over 4 tokens
    assert got["refusal_rate_answerable"] == pytest.approx(2 / 12)
    assert got["refusal_rate_unanswerable"] == pytest.approx(3 / 4)
    # 3 true positives, 2 false ones (d), 1 missed (c): 6 / (6 + 2 + 1)
    assert got["refusal_f1"] == pytest.approx(6 / 9)
    # a and b have misconceptions: right 3 + 2 of 8, never refused; "8" once and "5" twice
    assert (got["truthful"], got["informative"], got["misconception"]) == pytest.approx((5 / 8, 1, 3 / 8))
    assert (got["mc1"], got["mc2"]) == pytest.approx((0.5, 0.5))


def test_metrics_of_the_majority_by_hand():
    got = values(PROBLEMS, SAMPLES)
    assert got["majority"] == pytest.approx(2 / 4)
    assert got["pass@k"] == pytest.approx(3 / 4)
    assert got["confidence"] == pytest.approx((0.75 + 0.5 + 0.75 + 0.5) / 4)
    # bins of 0.75 (both right) and 0.5 (both wrong): (2 * 0.25 + 2 * 0.5) / 4
    assert got["ece"] == pytest.approx(0.375)
    # a and b only: (0.25 + 0.5) / 2
    assert got["ece_answered"] == pytest.approx(0.375)
    # 1/4: "8" wrong, "3" wrong | 2/4: "5" wrong, "6" right, d's refusal wrong | 3/4: "7", c's refusal right
    # gaps |0 - 2/4|, |1 - 3/2|, |2 - 6/4|, over 7 predictions
    assert got["ece_all"] == pytest.approx((0.5 + 0.5 + 0.5) / 7)
    assert got["brier"] == pytest.approx((2 * 0.25**2 + 2 * 0.5**2) / 4)
    # noise c(1-c)/3: 0.0625 at 0.75 and 0.25/3 at 0.5
    assert got["brier_debiased"] == pytest.approx(got["brier"] - (0.0625 + 0.25 / 3) / 2)
    assert got["brier_reliability"] - got["brier_resolution"] + got["brier_uncertainty"] == pytest.approx(got["brier"])
    assert got["nll"] == pytest.approx((-math.log(0.75) - math.log(0.5)) / 2)
    assert got["auroc"] == 1
    assert got["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)


def test_reliability_diagram_and_its_raw_points():
    entry = score(PROBLEMS, SAMPLES, resamples=10)
    assert (entry["n"], entry["k"]) == (4, 4)
    assert entry["reliability"]["count"] == [0, 0, 0, 0, 2, 0, 0, 2, 0, 0]  # (0.4, 0.5] and (0.7, 0.8]
    assert entry["reliability"]["accuracy"] == [None] * 4 + [0] + [None] * 2 + [1] + [None] * 2
    confidence, correct = majorities(SAMPLES)
    assert confidence.tolist() == [0.75, 0.5, 0.75, 0.5]
    assert correct.tolist() == [1, 0, 1, 0]


def test_the_order_of_the_lines_does_not_matter():
    assert score(PROBLEMS, SAMPLES[::-1], resamples=10) == score(PROBLEMS, SAMPLES, resamples=10)


def test_trivial_floors_of_refusal_f1_are_those_of_selfaware():
    # SelfAware: 1,032 of 3,369 are unanswerable. Always refusing scores 0.469, refusing half at random 0.380.
    problems = [problem(str(i), None if i < 1032 else "1") for i in range(3369)]
    records = [r for p in problems for r in samples(p["problem_id"], "1", gold=p["answer"])]
    got = values(problems, records)
    assert got["refusal_f1_always"] == pytest.approx(0.469, abs=5e-4)
    assert got["refusal_f1_random"] == pytest.approx(0.380, abs=5e-4)
    assert got["refusal_f1"] == 0


def test_choices_without_samples_have_the_numbers_that_they_have_beside_samples():
    chosen, theirs = PROBLEMS[:2], SAMPLES[:8]
    alone, beside = score(chosen, []), score(chosen, theirs)
    assert {name: alone["metrics"][name]["value"] for name in ("mc1", "mc2")} == {"mc1": 1 / 2, "mc2": 1 / 2}
    assert alone == {"n": 2, "k": 0, "metrics": {name: beside["metrics"][name] for name in ("mc1", "mc2")}}
    names = ["mc1", "accuracy"]
    both = replicates(chosen, [], names), replicates(chosen, theirs, names)
    assert list(both[0]) == ["mc1"] and np.array_equal(both[0]["mc1"], both[1]["mc1"])
    with pytest.raises(DataError, match="no samples to score"):
        score(PROBLEMS[2:], [])


def test_no_verdict_is_left_out_and_counted():
    records = samples("a", "7", "7", "9", gold="7") + samples("b", "x", "x", "y", gold="y")
    records[0]["correct"] = None  # its group has a verdict by the other "7"
    records[3]["correct"] = records[4]["correct"] = None  # the majority of b has none at all
    problems = [problem("a", "7"), problem("b", "y")]
    got = values(problems, records)
    assert got["no_verdict"] == pytest.approx(3 / 6)
    assert got["accuracy"] == pytest.approx(2 / 3)  # "7" right, "9" wrong, "y" right
    assert got["majority"] == 1  # a alone
    assert got["pass@k"] == 1  # a: 1 of 2 with a verdict, of which both are drawn; b: 1 of 1
    assert got["ece"] == pytest.approx(1 / 3)
    assert [a.tolist() for a in majorities(records)] == [[pytest.approx(2 / 3)], [1]]


def test_nothing_judged_at_all_is_null_not_zero():
    records = samples("a", "7", "8", gold="7")
    for r in records:
        r["correct"] = None
    entry = score([problem("a", "7")], records, resamples=10)
    for name in ("accuracy", "majority", "pass@k", "ece", "brier", "auroc", "smooth_ece", "aurc"):
        assert entry["metrics"][name] == {"value": None, "low": None, "high": None}
    assert entry["metrics"]["no_verdict"]["value"] == 1


def test_only_what_concerns_the_benchmark_is_present():
    got = values([problem("a", "7")], samples("a", "7", "8", gold="7"))
    assert not {"refusal_f1", "refusal_f1_always", "refusal_rate_unanswerable", "truthful", "mc1", "mc2"} & got.keys()
    assert {"accuracy", "refusal_rate_answerable", "ece_floor"} <= got.keys()


@pytest.mark.filterwarnings("error")
def test_the_entry_is_strict_json_even_with_one_sample():
    entry = score([problem("a", "7")], samples("a", "7", gold="7"), resamples=10)
    json.dumps(entry, allow_nan=False)
    assert entry["metrics"]["auroc"]["value"] is None  # one class only
    assert entry["metrics"]["brier_debiased"]["value"] is None  # k = 1
    assert entry["metrics"]["ece_floor"]["value"] is None
    assert entry["metrics"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_pass_at_4_of_more_samples_is_unbiased():
    # 1 of 8 right: 4 draws hold it with chance 4/8
    got = values([problem("a", "7")], samples("a", "7", *"12345", "6", "8", gold="7"))
    assert (got["pass@4"], got["pass@k"]) == pytest.approx((0.5, 1))


def test_an_answer_that_says_refused_is_not_a_refusal_and_unparsable_ones_do_not_agree():
    votes = collect_votes(samples("a", "refused", "refuse", None, None, "0"), ["a"])
    assert votes.answers.tolist() == [[1, 0, -1, -1, 2]]
    confidence, correct = majorities(samples("b", None, None, None, gold="1"))
    assert (confidence.tolist(), correct.tolist()) == ([pytest.approx(1 / 3)], [0])


def worded(name, *replies, gold):
    """Samples from (answer, text, probability, tokens)."""
    records = samples(name, *(answer for answer, *_ in replies), gold=gold)
    for record, (_, text, probability, tokens) in zip(records, replies, strict=True):
        record |= {"text": text, "log_probability": math.log(probability), "tokens": tokens}
    return records


def test_likelihood_of_an_answer_is_its_completions_share_of_the_probability():
    # Different completions: "so 7" 0.2 and "7" 0.1 say 7, "8" 0.3 says 8; the second "7" is no new one. The refusals
    # "?" and "hm" are one answer; an unreadable completion is one by itself.
    seven = worded("a", ("7", "7", 0.1, 1), ("7", "so 7", 0.2, 2), ("8", "8", 0.3, 1), ("7", "7", 0.1, 1), gold="7")
    other = worded(
        "b", ("refuse", "?", 0.3, 1), ("refuse", "hm", 0.2, 1), (None, "!", 0.4, 2), (None, "!!", 0.1, 1), gold="1"
    )
    votes = collect_votes([*seven, *other], ["a", "b"])
    assert votes.likelihood() == pytest.approx(np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.4, 0.1]]))
    # Per token: "so 7" sqrt(0.2), "!" sqrt(0.4)
    a = (0.1 + 0.2**0.5) / (0.1 + 0.2**0.5 + 0.3)
    b = 0.3 + 0.2 + 0.4**0.5 + 0.1
    expected = [[a, a, 1 - a, a], [0.5 / b, 0.5 / b, 0.4**0.5 / b, 0.1 / b]]
    assert votes.likelihood(per_token=True) == pytest.approx(np.array(expected))


def test_likelihood_of_improbable_completions_does_not_underflow():
    far = samples("a", "7", "8", gold="7")
    far[0] |= {"log_probability": -2000.0, "tokens": 10}
    far[1] |= {"log_probability": -2000.0 - math.log(3), "tokens": 10}
    assert collect_votes(far, ["a"]).likelihood()[0].tolist() == pytest.approx([0.75, 0.25])


def test_calibration_by_likelihood_by_hand():
    records = [
        *worded("a", ("7", "7", 0.3, 1), ("7", "so 7", 0.4, 2), ("8", "8", 0.1, 1), gold="7"),  # 0.7 / 0.8, right
        *worded("b", ("5", "5", 0.1, 1), ("5", "five", 0.1, 1), ("6", "6", 0.6, 1), gold="6"),  # 0.2 / 0.8, wrong
    ]
    got = values([problem("a", "7"), problem("b", "6")], records)
    assert got["ece_likelihood"] == pytest.approx((0.125 + 0.25) / 2)
    assert got["brier_likelihood"] == pytest.approx((0.125**2 + 0.25**2) / 2)
    assert got["auroc_likelihood"] == 1
    assert got["ece"] == pytest.approx(abs(2 / 3 - 1 / 2))  # by votes the two are alike
    assert not any("self_report" in name for name in got)


@pytest.mark.parametrize(("field", "name"), [("stated_confidence", "stated"), ("self_report", "self_report")])
def test_calibration_of_what_a_model_says_of_itself_by_hand(field, name):
    """Each majority answer has the confidence of its first sample; a sample that has none is left out."""
    records = [dict(r, **{field: None}) for r in SAMPLES]
    records[0][field], records[4][field] = 0.9, 0.35  # a right, b wrong; c and d refuse
    got = values(PROBLEMS, records)
    assert got[f"ece_{name}"] == pytest.approx((0.1 + 0.35) / 2)
    assert got[f"brier_{name}"] == pytest.approx((0.1**2 + 0.35**2) / 2)
    assert got[f"auroc_{name}"] == 1
    # Outcomes drawn with 0.9 and 0.35: |y - c| is 0.1 (chance .9) or 0.9 and 0.65 (.65) or 0.35, each in its own bin
    assert got[f"ece_{name}_floor"] == pytest.approx((2 * 0.9 * 0.1 + 2 * 0.35 * 0.65) / 2, abs=0.05)
    assert got.get("unstated") == (1 - 2 / len(records) if name == "stated" else None)
    # All else is as without it.
    assert {k: v for k, v in got.items() if name not in k} == values(PROBLEMS, SAMPLES)


def test_floor_is_that_of_the_same_votes_and_lies_below_an_overconfident_ece():
    # Each question: 6 equal votes of 8, the majority always wrong. A calibrated sampler would have been right in most.
    records = [r for i in range(200) for r in samples(f"{i}", *"xxxxxxyz", gold="none")]
    metrics = score([problem(f"{i}", "none") for i in range(200)], records, resamples=100)["metrics"]
    assert metrics["ece"]["value"] == pytest.approx(0.75)
    # Hold one out: with chance 6/8 an x, then confidence 5/7 and right; else 6/7 and wrong. In one bin each:
    # (6/8 * 2/7 + 2/8 * 6/7) * 7/8 = 3/8
    assert metrics["ece_floor"]["value"] == pytest.approx(3 / 8, abs=0.01)
    assert metrics["ece_floor"]["low"] <= metrics["ece_floor"]["value"] <= metrics["ece_floor"]["high"]


@pytest.mark.parametrize(
    "problems, records, message",
    [
        ([], SAMPLES, "no problems"),
        (PROBLEMS, [], "no samples"),
        (PROBLEMS, SAMPLES[:-1], r"problem 'd' has 3 samples and 'a' has 4.*interrupted"),
        (PROBLEMS, SAMPLES[:-4], r"problem 'd' has 0 samples"),
        (PROBLEMS, [*SAMPLES, SAMPLES[0]], "sample 0 of problem 'a' occurs twice"),
        (PROBLEMS, [*SAMPLES, *samples("z", "1")], "'z', which is not among"),
        ([*PROBLEMS, PROBLEMS[1]], SAMPLES, "problem 'b' occurs twice"),
    ],
)
def test_incomplete_evaluations_are_refused(problems, records, message):
    with pytest.raises(DataError, match=message):
        score(problems, records)


def test_table_shows_values_and_intervals_and_leaves_model_names_unstyled(monkeypatch):
    evaluation = {
        "model": "some/model[red]",
        "bootstrap": {"resamples": 50, "level": 0.95},
        "benchmarks": {
            "honesty": score(PROBLEMS, SAMPLES, resamples=50),
            "one": score([problem("a", "7")], samples("a", "7", gold="7"), resamples=50),
        },
    }

    def shown() -> tuple[str, dict[str, str]]:
        console = Console(file=io.StringIO(), width=160)
        console.print(table(evaluation))
        text = console.file.getvalue()
        rows = (line for line in text.splitlines() if "│" in line)
        return text, {line.strip("│┃ ").split("│")[0].strip(): line for line in rows}

    text, lines = shown()
    assert list(lines) == [
        "accuracy (mean@k)",
        "ECE of votes, answered questions",
        "refusal F1",
        "truthful share",
        "MC2",
    ]
    assert f"refusal F1: {METRICS['refusal_f1'].meaning}." in " ".join(text.split()) and "--all" in text
    monkeypatch.setenv(ALL, "1")
    text, lines = shown()
    assert "some/model[red]: value, and its 95% interval" in text
    assert "n = 4, k = 4" in text
    low, high = (evaluation["benchmarks"]["honesty"]["metrics"]["accuracy"][end] for end in ("low", "high"))
    assert f"0.500 [{low:.3f}, {high:.3f}]" in lines["accuracy (mean@k)"]
    assert "1.000 [1.000, 1.000]" in lines["accuracy (mean@k)"]
    assert "undefined" in lines["AUROC"]
    assert "refusal F1, refusing always" in lines
    assert MARK not in text
    assert "Every ECE is over 10 bins of confidence" in text


def printed(problems, records):
    entry = score(problems, records, resamples=10)
    console = Console(file=io.StringIO(), width=100)
    console.print(table({"model": "m", "bootstrap": {"level": 0.9}, "benchmarks": {"truth": entry}}))
    return console.file.getvalue()


def test_numbers_that_rest_on_few_verdicts_are_marked_and_say_how_few(monkeypatch):
    monkeypatch.setenv(ALL, "1")
    problems = [problem(f"{i}", "7", ["8"], mc1=1, mc2=0.5) for i in range(20)]
    records = [r for p in problems for r in samples(p["problem_id"], "7", "8", "7", gold="7")]
    assert MARK not in printed(problems, records)
    for r in records[9:]:  # the last 17 problems have no verdict at all
        r["correct"] = None
    text = printed(problems, records)
    for label in (
        "accuracy (mean@k)",
        "majority@k",
        "pass@k",
        "ECE of votes, all questions",
        "ECE of likelihood, all questions",
        "Brier score",
    ):
        assert next(line for line in text.splitlines() if label in line).count(MARK) == 1, label
    for label in ("MC1", "MC2", "without a verdict", "informative", "entropy"):
        assert MARK not in next(line for line in text.splitlines() if label in line), label
    assert "only 15% of the answers could be judged, and 3 of 20 questions" in " ".join(text.split())


def test_two_verdicts_in_twenty_missing_are_few_enough_to_pass():
    problems = [problem(f"{i}", "7") for i in range(20)]
    records = [r for p in problems for r in samples(p["problem_id"], "7", gold="7")]
    for r in records[18:]:
        r["correct"] = None
    assert MARK not in printed(problems, records)
    records[17]["correct"] = None
    assert MARK in printed(problems, records)


def test_the_accuracy_of_finished_samples_stands_beside_that_of_all():
    got = values(PROBLEMS, SAMPLES)  # two samples of d are cut, both wrong
    assert got["accuracy_finished"] == pytest.approx(8 / 14)
    assert "accuracy_finished" not in values(PROBLEMS, [{**record, "truncated": False} for record in SAMPLES])


def test_refusals_in_any_words_are_scored_beside_the_benchmarks_own():
    wide = [{**record, "refused_in_any_words": record["refused"] or record["extracted"] == "3"} for record in SAMPLES]
    got = values(PROBLEMS, wide)
    # c, unanswerable: 3 of 4 refuse, 4 in any words; d, answerable: 2 of 12 refuse
    assert got["refusal_f1"] == pytest.approx(2 * 3 / (3 + 2 + 4))
    assert got["refusal_f1_any_words"] == pytest.approx(2 * 4 / (4 + 2 + 4))
    assert got["refusal_rate_unanswerable_any_words"] == 1
    assert got["refusal_rate_answerable_any_words"] == pytest.approx(2 / 12)
    assert "refusal_f1_any_words" not in values(PROBLEMS, SAMPLES)


def test_benchmarks_together_are_calibrated_as_one_set_of_questions():
    halves = [(PROBLEMS[:2], SAMPLES[:8]), (PROBLEMS[2:], SAMPLES[8:])]
    together = score_together({"one": halves[0], "two": halves[1]}, 50, 0.95, 0)
    alone = score(PROBLEMS, SAMPLES, resamples=50)
    assert (together["n"], together["k"], together["benchmarks"]) == (4, 4, ["one", "two"])
    assert together["metrics"]["ece"] == alone["metrics"]["ece"]
    assert together["reliability"] == alone["reliability"]
    assert "accuracy" not in together["metrics"]
    twice = score_together({"one": halves[0], "two": halves[0]}, 50, 0.95, 0)  # ids may be those of another benchmark
    assert twice["metrics"]["ece"]["value"] == pytest.approx(score(*halves[0], 50)["metrics"]["ece"]["value"])
