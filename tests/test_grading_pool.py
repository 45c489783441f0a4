"""Grading by algebra, in processes: hostile answers among ordinary ones, limits, and workers that are killed."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from carerft.grading.grader import grade_answers
from carerft.grading.guards import hazard
from carerft.grading.mathematics import clean
from carerft.grading.pool import Pool


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=1) as pool:
        yield pool


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
        for _ in range(1800):
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
