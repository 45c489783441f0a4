r"""Grading of mathematics: what is read from a text, decided without algebra, refused, and what survives the rest."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import psutil
import pytest

from carerft.commands.grade import grade_file
from carerft.errors import ConfigError, DataError
from carerft.grading.grader import Verdict, grade_answers
from carerft.grading.guards import hazard
from carerft.grading.mathematics import canonical, clean, final_answer, last_box, normalise, number, quick_verdict
from carerft.grading.pool import Pool
from carerft.tasks.gsm8k import extracted_number

MARK = "\u200f"  # right-to-left mark


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=1) as pool:
        yield pool


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


ENDLESS = ("1", "{" * 20 + "1" + "}" * 20)  # takes minutes to parse

ORDINARY = [
    (r"2\sqrt{3}", r"\sqrt{12}", True),
    (r"2\sqrt{3}", r"2\sqrt{2}", False),
    ("x^2+2x+1", "(x+1)^2", True),
    ("x^2+2x+1", "(x+1)^3", False),
    ("1,-2", "-2, 1", True),
    ("(1,2)", "(2,1)", False),
    ("[1,2)", "(1,2)", False),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,∞) ∪ (−∞,2)", True),
    (r"\frac{\pi}{2}", "π/2", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
    ("y=2x+3", "y=3+2x", True),
    ("x=5", "y=5", False),
    ("2^{4950}", "4^{2475}", True),
    ("10", r"\binom{5}{2}", True),
    ("6", "3!", True),
    (r"3\pm\sqrt2", r"3-\sqrt2, 3+\sqrt2", True),
    ("0", "0", True),
]


def test_what_takes_algebra(pool):
    verdicts = grade_answers([(gold, answer) for gold, answer, _ in ORDINARY], pool)
    assert [v.correct for v in verdicts] == [right for *_, right in ORDINARY]


def test_a_right_answer_votes_as_the_gold_answer_and_none_is_wrong(pool):
    verdicts = grade_answers([(r"2\sqrt{3}", r"\sqrt{12}"), (r"2\sqrt{3}", "2√3"), (r"2\sqrt{3}", None)], pool)
    assert [v.vote for v in verdicts] == [r"2\sqrt{3}", r"2\sqrt{3}", None]
    assert [v.name for v in verdicts] == ["correct", "correct", "wrong"]


def test_equal_pairs_are_graded_once():
    compared = []

    class Listening(Pool):
        def compare(self, pairs):
            compared.extend(pairs)
            return super().compare(pairs)

    with Listening(workers=1) as pool:
        grade_answers([("x+1", "1+x"), ("7", "7"), ("x+1", "1+x"), ("x+1", "x+2")] * 3, pool)
    assert compared == [("x+1", "1+x"), ("x+1", "x+2")]


HOSTILE = [
    "9^{9^{9}}", r"10^{10^7}", "2^{" * 30 + "2" + "}" * 30, "9^9^9^9^9", "2**1000000", "1e1000000", "100000!", "5!!",
    "((3!)!)!", r"\binom{1000000}{500000}", "(" * 300 + "1" + ")" * 300, "(((((1)))))", "{" * 10_000, "}" * 10_000,
    "{" * 10_000 + "}" * 10_000, r"\left(" * 40, r"\frac{1}{" * 300 + "2" + "}" * 300, r"\sqrt{" * 9 + "2" + "}" * 9,
    "1" * 1_000_000, "x" * 1_000_000, "1+" * 500_000, r"\cup".join(["(1,2)"] * 30), "(x+y+z)^{200}", "x" + "-" * 99,
    r"\sum_{k=1}^{10^{9}} k", r"\prod_{k=1}^{99999} k", r"\int_0^1 x^{x} dx", r"\lim_{x\to0} x", r"\det(1)",
    r"\operatorname{zeros}(99999,99999)", r"\begin{array}{c}1\end{array}", r"\exp(\exp(9))", "1\0", "\0" * 50, "\ud800",
    "__import__('os').system('touch INJECTED')", "eval('1')", "().__class__", "open('INJECTED', 'w')", "`ls`",
    "exp(exp(9))", "2 ** 1000000", "10¹⁰⁰⁰⁰⁰⁰⁰", r"{1000000 \choose 500000}", "sqrt(" * 9 + "2" + ")" * 9,
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_refused_from_its_text_alone(answer):
    assert hazard(clean(answer))


def test_what_the_gold_answer_itself_has_is_not_refused():
    assert hazard(r"\sum_{k=1}^{9} k")
    assert hazard(r"\sum_{k=1}^{9} k", gold=r"\sum_{k=1}^{n} k") is None
    for answer in (
        r"(-2)^{2008}",
        r"e^{x^2}",
        r"\frac{1}{2004!}",
        r"\left(\frac{\sqrt{3}}{2},\sin\frac{\pi}{6}\right)",
    ):
        assert hazard(clean(answer)) is None


def test_hostile_answers_among_ordinary_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Pool(workers=1) as pool:  # its working directory is this one: an injection would leave its file here
        mixed, expected = [], []
        for i, hostile in enumerate(HOSTILE):
            gold, answer, right = ORDINARY[i % len(ORDINARY)]
            mixed += [("7", hostile), (gold, answer)]
            expected.append(right)
        verdicts = grade_answers(mixed, pool)
    assert [v.correct for v in verdicts[1::2]] == expected
    assert {v.correct for v in verdicts[::2]} <= {None, False}
    assert all(v.why for v in verdicts)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_evaluated_even_without_the_guards(tmp_path, monkeypatch):
    """Straight into the workers, past `hazard`."""
    monkeypatch.chdir(tmp_path)
    code = "__import__('os').system('touch INJECTED')"
    with Pool(workers=1) as pool:
        attempts = [
            code,
            rf"\text{{{code}}}",
            rf"\operatorname{{{code}}}(1)",
            f"f({code})",
            f"x_{{{code}}}",
            f"1e{code}",
        ]
        outcomes = pool.compare([("1", attempt) for attempt in attempts])
    assert not any(correct for correct, _ in outcomes)
    assert list(tmp_path.iterdir()) == []


def test_sympys_evaluator_is_gone_in_a_worker():
    script = (
        "from carerft.grading import worker; worker.prepare(); import sympy\n"
        "assert sympy.Number('12') == 12 and sympy.sympify('1.5') == 1.5\n"
        "for code in ('1+1', 'print(1)', '__import__(\"os\")', '9'*99, 'x'):\n"
        "    try: sympy.sympify(code)\n"
        "    except ValueError: continue\n"
        "    raise SystemExit(code)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_pair_that_uses_up_its_time_or_memory_has_no_verdict_and_the_others_go_on():
    easy = [(f"{i}x+1", f"1+{i}x") for i in range(2, 6)]
    huge = ("x", r"\operatorname{zeros}(99999,99999)")
    endless = ENDLESS
    with Pool(workers=1, cpu_seconds=0.5, memory_mb=512) as pool:
        pids = []
        outcomes = []
        for pair in [easy[0], endless, easy[1], huge, endless, easy[2], easy[3]]:
            outcomes += pool.compare([pair])
            pids.append(pool._running[0].child.process.pid)
        assert [correct for correct, _ in outcomes] == [True, None, True, None, None, True, True]
        assert outcomes[1][1] == "needed more than 0.5 s of CPU time"
        assert outcomes[3][1] == "needed more than 512 MB of memory"
        assert len(set(pids)) == 1  # the worker itself lives on: only its fork died


def test_a_worker_that_is_late_by_the_clock_or_ended_from_outside_is_replaced():
    with Pool(workers=1, cpu_seconds=60, deadline=1.0) as pool:
        outcomes = pool.compare([("x+1", "1+x"), ENDLESS, ("x+2", "2+x")])
        assert outcomes[1] == (None, "no answer within 1 s")
        assert (outcomes[0][0], outcomes[2][0]) == (True, True)
        os.killpg(pool._running[0].child.process.pid, signal.SIGKILL)
        assert pool.compare([("x+1", "1+x"), ("x+3", "3+x")])[1][0] is True


def test_threads_take_turns_and_a_closed_pool_starts_again():
    with Pool(workers=2) as pool:
        outcomes = {}

        def ask(i):
            outcomes[i] = pool.compare([(f"{i}x+1", f"1+{i}x"), (f"{i}x+1", f"{i}+x")])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(2, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all([correct for correct, _ in outcome] == [True, False] for outcome in outcomes.values())
        assert len(outcomes) == 6
        pool.close()
        assert pool.compare([("x+1", "1+x")])[0][0] is True


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_no_worker_outlives_its_parent(ending):
    """The parent ends while its worker is stuck in one multiplication; the worker and its fork are gone soon after."""
    script = (
        "from carerft.grading.pool import Pool\n"
        "pool = Pool(workers=1, cpu_seconds=3)\n"
        "assert pool.compare([('x+1', '1+x')])[0][0]\n"
        "print(pool._running[0].child.process.pid, flush=True)\n"
        f"while True: pool.compare([{ENDLESS!r}])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with parent:
        try:
            group = int(parent.stdout.readline())
            assert living(group)
            time.sleep(0.5)
        finally:
            parent.send_signal(ending)
        parent.wait(timeout=30)
        for _ in range(300):
            if not living(group):
                break
            time.sleep(0.1)
        assert living(group) == []


def living(group: int) -> list[int]:
    """The processes of a process group that are no zombies."""

    def counts(pid):
        try:
            return os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, PermissionError, psutil.Error):
            return False

    return [pid for pid in psutil.pids() if counts(pid)]


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
