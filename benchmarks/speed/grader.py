"""How fast answers are graded, and how much hostile answers slow grading down.

    python benchmarks/speed/grader.py [--workers 1] [--ordinary 10000] [--plain 1000] [--hostile 1000] [--seed 0]

1. Throughput of `carerft.grading` and of plain math-verify (parse and verify as in its README, in this process, with
   its own alarms) on the same answers, their ratio, and the answers on which the two verdicts differ.
2. The time of the ordinary answers alone, and of the same answers with hostile ones among them.

The ordinary answers are made from the gold answers of $CARERFT_DATA/math if that directory exists, otherwise from
invented gold answers: 55 of 100 repeat the gold answer, 15 spell it differently, and 30 are wrong (one digit is
changed, or it is another problem's answer).
"""

import argparse
import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

from carerft.grading.grader import Verdict, grade_answers
from carerft.grading.mathematics import final_answer, last_box
from carerft.grading.pool import Pool

Pair = tuple[str, str]


def gold_answers(count: int, rng: random.Random) -> list[str]:
    """Answers of MATH's test split, or invented ones of the same kinds."""
    root = os.environ.get("CARERFT_DATA")
    file = Path(root) / "math/test.jsonl" if root else None
    if file is not None and file.is_file():
        boxes = [last_box(json.loads(line)["solution"]) for line in file.read_text(encoding="utf-8").splitlines()]
        return rng.choices([box for box in boxes if box], k=count)

    def invented() -> str:
        a, b, c = (rng.randint(2, 99) for _ in range(3))
        rest = [rf"{a}\sqrt{{{b}}}", f"({a},{-b})", f"{a}x^2-{b}x+{c}", rf"[-{a},{b})\cup({b + c},\infty)", rf"{a}\pi"]
        return rng.choice([str(a * b)] * 12 + [rf"\frac{{{a}}}{{{a + b}}}"] * 4 + rest)

    return [invented() for _ in range(count)]


def rewritten(gold: str) -> str:
    """The same answer in another spelling."""
    bracketed = gold if r"\left" in gold else gold.replace("(", r"\left(").replace(")", r"\right)")
    return bracketed.replace(r"\frac", r"\dfrac").replace(", ", ",") + r"\,"


def ordinary_pairs(count: int, rng: random.Random) -> list[Pair]:
    """(gold, completion text) pairs."""
    golds = gold_answers(count, rng)
    pairs = []
    for gold in golds:
        share = rng.random()
        wrong = re.sub(r"\d", str(rng.randint(1, 9)), gold, count=1) if share < 0.9 else rng.choice(golds)
        answer = gold if share < 0.55 else rewritten(gold) if share < 0.7 else wrong
        pairs.append((gold, rf"After some work, we see that the answer is $\boxed{{{answer}}}$."))
    return pairs


def hostile_texts(count: int, rng: random.Random) -> list[str]:
    """Texts that make plain math-verify hang, crash or run out of memory. Many hold a random number."""

    def one() -> str:
        n = rng.randint(1000, 9999)
        return rng.choice([
            "9^{9^{9}}", f"10^{{10^{{{n}}}}}", "2^{" * 30 + "2" + "}" * 30, f"{n}!" * 2, f"({n}!)!", f"{n}{n}!",
            "(" * n + "1" + ")" * n, "{" * 10_000 + "}" * 10_000, "{" * 10_000, r"\left(" * 300 + "1" + r"\right)" * 99,
            r"\frac{1}{" * 300 + "2" + "}" * 300, r"\sqrt{" * 60 + "2" + "}" * 60, r"\boxed{" * n, "|" * 200 + "x",
            str(n) * 250_000, "x" * 1_000_000, "1+" * 200_000 + "1", r"\cup".join(["(1,2)"] * 500), "-" * 900 + "1",
            rf"\sum_{{k=1}}^{{10^{{{n}}}}} k", rf"\prod_{{k=1}}^{{{n}000}} k", r"\int_0^1 x^{x^x} dx", f"1e{n}000",
            rf"\binom{{{n}000}}{{{n}}}", f"(x+y+z)^{{{n}}}", "x^{x^{x^{x^{x^{x}}}}}", f"2**{n}000", "9^9^9^9^9^9",
            f"__import__('os').system('touch /tmp/{n}')", f"eval('9**9**{n}')", "().__class__.__base__.__init__",
            f"{n}\0", "\0" * n, f"\u202e{n}\u202c", "\u200f" * n + "7", "\ud800", r"\operatorname{zeros}(99999,99999)",
            r"\begin{pmatrix}" + "&".join("1" * 900) + r"\end{pmatrix}", r"\lim_{x\to0}\frac{\sin x}{x}", "𝟗^𝟗" * n,
        ])  # fmt: skip

    return [rf"\boxed{{{one()}}}" for _ in range(count)]


def graded(pairs: list[Pair], workers: int) -> tuple[list[Verdict], float]:
    """Verdicts on (gold, text) pairs, and the seconds of extracting and grading, after a warm-up of the workers."""
    with Pool(workers) as pool:
        pool.compare([(f"{i}x+1", f"1+{i}x") for i in range(100)])
        began = time.perf_counter()
        verdicts = grade_answers([(gold, final_answer(text)) for gold, text in pairs], pool)
        return verdicts, time.perf_counter() - began


def plain_math_verify(pairs: list[Pair]) -> tuple[list[bool], float]:
    """Verdicts and seconds of math-verify, used as in its README: the gold answer in a box, all of the text parsed."""
    from math_verify import parse, verify

    began = time.perf_counter()
    verdicts = [verify(parse(rf"\boxed{{{gold}}}"), parse(text)) for gold, text in pairs]
    return verdicts, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("workers", 1), ("ordinary", 10_000), ("plain", 1_000), ("hostile", 1_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    pairs = ordinary_pairs(options.ordinary, rng)

    few = pairs[: options.plain]
    plain_math_verify(pairs[-50:])  # warm-up
    plain, plain_seconds = plain_math_verify(few)
    verdicts, seconds = graded(few, options.workers)
    print(f"plain math-verify:    {len(few) / plain_seconds:9,.0f} answers/s")
    print(f"carerft.grading:      {len(few) / seconds:9,.0f} answers/s with {options.workers} worker(s)")
    print(f"ratio:                {plain_seconds / seconds:9.1f}")
    differing = [(pair, p, v) for pair, p, v in zip(few, plain, verdicts, strict=True) if p != v.correct]
    print(f"verdicts that differ: {len(differing)} of {len(few)}")
    for (gold, text), plain_verdict, verdict in differing[:10]:
        print(f"  {gold!r}, {final_answer(text)!r}: plain {plain_verdict}, ours {verdict.name} ({verdict.why})")

    verdicts, ordinary_seconds = graded(pairs, options.workers)
    print(f"\n{len(pairs):,} ordinary answers: {ordinary_seconds:.1f} s", dict(Counter(v.name for v in verdicts)))
    hostile = [(gold, text) for (gold, _), text in zip(pairs, hostile_texts(options.hostile, rng), strict=False)]
    mixed = [(pair, False) for pair in pairs] + [(pair, True) for pair in hostile]
    rng.shuffle(mixed)
    again, mixed_seconds = graded([pair for pair, _ in mixed], options.workers)
    on_hostile = [verdict for verdict, (_, is_hostile) in zip(again, mixed, strict=True) if is_hostile]
    print(f"with {len(hostile):,} hostile ones:  {mixed_seconds:.1f} s, {mixed_seconds / ordinary_seconds:.2f} x")
    print("verdicts on the hostile:", dict(Counter(verdict.name for verdict in on_hostile)))
    for why, times in Counter(verdict.why for verdict in on_hostile if "refused" not in verdict.why).most_common():
        print(f"  {times:5} {why}")


if __name__ == "__main__":
    main()
