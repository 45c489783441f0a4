"""Grading of mathematics: what is read from a text, what is decided without algebra, and real gold answers."""

import json
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest

from carerft.commands.grade import grade_file
from carerft.errors import ConfigError, DataError
from carerft.grading.grader import Verdict, grade_answers
from carerft.grading.guards import hazard
from carerft.grading.mathematics import canonical, clean, final_answer, last_box, normalise, number, quick_verdict
from carerft.grading.pool import Pool
from carerft.tasks.gsm8k import extracted_number

MARK = "\u200f"  # right-to-left mark


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} and then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\fbox{7}", "7"),
        (r"the answer is $\boxed 9$.", "9"),
        (r"\boxed{1} or, on reflection, \boxed{2", "1"),  # cut off: the last box that is closed
        (r"} } \boxed{3} {", "3"),
        (r"\boxedfoo", None),
        ("no box", None),
        (r"\boxed{" * 10_000, None),
    ],
)
def test_last_box(text, answer):
    assert last_box(text) == answer


def test_the_answer_without_a_box():
    minerva = "Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct."
    assert final_answer(minerva) == r"\frac{1}{2}"
    assert final_answer("The answer is 3.5.\nQuestion: what is the answer: 4") == "4"
    assert final_answer("the answer is 1, or \\boxed{2}") == "2"
    assert final_answer("the answer is 1", boxed_only=True) is None
    assert final_answer("I do not know") is None


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("1,234", 1234),
        (r"1\,234", 1234),
        (r"29,\!322,\!216", 29322216),
        ("-.5", Fraction(-1, 2)),
        (r"-\dfrac{2}{4}", Fraction(-1, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"\frac12", Fraction(1, 2)),
        ("5 1/2", Fraction(11, 2)),
        (r"5\frac{1}{2}", Fraction(11, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"\$ 12.50", Fraction(25, 2)),
        (r"50\%", 50),
        (r"30^\circ", 30),
        (r"5\text{ cm}^2", 5),
        ("12 square feet", 12),
        ("\u22125", -5),
        (MARK + "18" + MARK, 18),
        (r"\frac{1}{0}", None),
        ("1,23", None),
        ("2x", None),
        (r"2\pi", None),
        ("9" * 5000, None),
    ],
)
def test_the_exact_value_of_a_plain_number(answer, value):
    assert number(normalise(answer)) == value


@pytest.mark.parametrize(
    ("answer", "vote"),
    [
        ("1,234.00", "1234"),
        (r"\frac{1}{2}", "0.5"),
        ("0.50", "0.5"),
        ("-1.25", "-1.25"),
        ("x = 4/2", "2"),
        (r"\frac{2}{6}", "1/3"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"\text{Even}", "even"),
        (r"\text{(C)}", "C"),
        (r"x^{2} \leq 4", r"x^2\le4"),
    ],
)
def test_how_an_answer_votes(answer, vote):
    assert canonical(answer) == vote
    assert canonical(vote) == vote


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("3", "3.0", True),
        ("3", "4", False),
        (r"\frac13", "0.333333", True),
        (r"\frac16", "0.166667", True),
        (r"\frac13", "0.333", False),
        ("0.0000001", "0.0000002", False),
        ("12", "12.0000001", True),
        ("5", "x=5", True),
        ("x=5", "5", True),
        ("5", "", False),
        ("5", "five", False),
        ("5", "5,6", False),
        (r"\text{even}", "Even.", True),
        (r"\text{even}", "odd", False),
        ("7602_8", "7602_{8}", True),
        ("7602_8", "7602", True),
        ("7602_8", "7602_9", False),
        ("(1,2)", r"\{1,2\}", False),
        (r"\text{4:30 p.m.}", r"\text{4:30 a.m.}", False),
        (r"9\text{ a.m.}", r"9\text{ p.m.}", False),
        (r"\sqrt{12}", r"2\sqrt{3}", None),  # takes algebra
        ("1,2", "2,1", None),
        ("x=5", "y=5", None),
    ],
)
def test_what_spelling_and_numbers_decide(gold, answer, right):
    assert quick_verdict(gold, answer) is right


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=1) as pool:
        yield pool


def test_grading_a_file(tmp_path, pool):
    lines = [
        {"id": "a", "gold": "5", "text": r"\boxed{5}"},
        {"id": 2, "gold": "x+1", "text": r"\boxed{1+x}"},
        {"id": "c", "gold": "5", "text": "no idea"},
        {"id": "d", "gold": "5", "text": r"\boxed{9^{9^{9}}}"},
    ]
    source, target = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert grade_file("math", source, target, pool) == {"correct": 2, "wrong": 2}
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["id"] for line in written] == ["a", 2, "c", "d"]
    assert [line["verdict"] for line in written] == ["correct", "correct", "wrong", "wrong"]
    assert [line["extracted"] for line in written] == ["5", "1+x", None, "9^{9^{9}}"]
    assert written[3]["why"] == "refused: a tower of exponents"
    grade_file("gsm8k", source, target)
    assert [json.loads(line)["verdict"] for line in target.read_text().splitlines()] == [
        "correct",
        "none",
        "wrong",
        "wrong",
    ]
    assert grade_file("gsm8k", source, target, extraction="strict") == {"wrong": 4}  # no "####" anywhere
    source.write_text('{"id": 1, "gold": "5"}\n')
    with pytest.raises(DataError, match=re.escape(f"{source}:1: no field 'text'")):
        grade_file("math", source, target, pool)
    with pytest.raises(ConfigError, match="selfaware"):
        grade_file("selfaware", source, target, pool)


@pytest.mark.skipif(not os.environ.get("CARERFT_DATA"), reason="set CARERFT_DATA to the directory of the real files")
def test_math_verify_reads_real_gold_answers(pool):
    """Every 40th answer of MATH's test split that is no plain number, against itself and without the fast path."""
    lines = (Path(os.environ["CARERFT_DATA"]) / "math/test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [last_box(json.loads(line)["solution"]) for line in lines]
    answers = [clean(answer) for answer in answers if number(normalise(answer)) is None][::40]
    assert all(hazard(answer, answer) is None for answer in answers)
    assert [a for a, (same, _) in zip(answers, pool.compare([(a, a) for a in answers]), strict=True) if not same] == []


@pytest.mark.skipif(not os.environ.get("CARERFT_DATA"), reason="set CARERFT_DATA to the directory of the real files")
def test_every_real_gold_answer_is_right_beside_itself(pool):
    root = Path(os.environ["CARERFT_DATA"])
    rows = [json.loads(line) for file in ("train", "test") for line in (root / f"math/{file}.jsonl").open("rb")]
    golds = [gold for row in rows if (gold := last_box(row["solution"]))]
    verdicts = grade_answers([(gold, gold) for gold in golds], pool)
    assert [gold for gold, verdict in zip(golds, verdicts, strict=True) if not verdict.correct] == []
    assert len(golds) == 12_498
    assert [gold for gold in golds if clean(clean(gold)) != clean(gold)] == []
    assert [gold for gold in golds if canonical(canonical(gold)) != canonical(gold)] == []
    rows = [json.loads(line) for file in ("train", "test") for line in (root / f"gsm8k/{file}.jsonl").open("rb")]
    numbers = [(row["answer"], row["answer"].rpartition("####")[2].strip()) for row in rows]
    assert len(numbers) == 8_792
    for solution, gold in numbers:
        written = (solution, f"The answer is ${gold}.", rf"So it is \boxed{{{gold}}}")
        assert {extracted_number(text) for text in written} == {canonical(gold)}


def test_a_verdict_names_itself():
    assert [Verdict(correct, "", None).name for correct in (True, False, None)] == ["correct", "wrong", "none"]
