"""Completions of a GSM8K or MATH problem: the reference solution, and variants of how an answer is written.

`right` says whether a person would read the text as a right answer; None if a person could not tell.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """write: maps a solution, the right answer and a wrong answer to a completion."""

    name: str
    write: Callable[[str, str, str], str]
    right: bool | None = True


def grouped(answer: str) -> str:
    """1234 as 1,234."""
    return f"{int(answer):,}"


GSM8K = (
    Variant("reference solution", lambda s, a, w: f" {s}"),
    Variant("reference solution, wrong number", lambda s, a, w: f" {s.rpartition('####')[0]}#### {w}", False),
    Variant("#### with a dollar sign", lambda s, a, w: f" So it costs that.\n#### ${a}"),
    Variant("#### with thousands separators", lambda s, a, w: f" Adding up.\n#### {grouped(a)}"),
    Variant("#### with decimals", lambda s, a, w: f" Adding up.\n#### {a}.00"),
    Variant("#### with a unit", lambda s, a, w: f" Adding up.\n#### {a} apples"),
    Variant("#### without a space", lambda s, a, w: f" Adding up.\n####{a}"),
    Variant("#### with a full stop", lambda s, a, w: f" Adding up.\n#### {a}."),
    Variant("two ####, the last right", lambda s, a, w: f" First\n#### {w}\nbut no, it is\n#### {a}"),
    Variant("#### then another question", lambda s, a, w: f" Adding up.\n#### {a}\n\nQuestion: And {w}?\nAnswer: {w}"),
    Variant("#### then an afterthought", lambda s, a, w: f" Adding up.\n#### {a}\nThat took {w} steps."),
    Variant("the answer is", lambda s, a, w: f" Adding up, the answer is {a}."),
    Variant("the answer is, in dollars", lambda s, a, w: f" Adding up, the answer is ${a}.00."),
    Variant("the answer is, thousands", lambda s, a, w: f" Adding up, the answer is {grouped(a)}."),
    Variant("the answer is, in bold", lambda s, a, w: f" Adding up, the answer is **{a}**."),
    Variant("the answer is, then a reason", lambda s, a, w: f" The answer is {a} because {w} are left over."),
    Variant("boxed", lambda s, a, w: f" Adding up, we get $\\boxed{{{a}}}$."),
    Variant("boxed, then a number", lambda s, a, w: f" We get $\\boxed{{{a}}}$. This took {w} steps."),
    Variant("an equation", lambda s, a, w: f" Hence {w} + 0 = {a}"),
    Variant("percent", lambda s, a, w: f" Adding up, it is {a}%"),
    Variant("wrong number, in words", lambda s, a, w: f" Adding up, the answer is {w}.", False),
    Variant("negated", lambda s, a, w: f" Adding up, the answer is -{a}", False),
    Variant("refusal without a number", lambda s, a, w: " I cannot answer that.", False),
    Variant("empty", lambda s, a, w: "", False),
)

MATH = (
    Variant("reference solution", lambda s, a, w: f" {s}"),
    Variant(
        "reference solution, Minerva's ending",
        lambda s, a, w: f" {s}\nFinal Answer: The final answer is ${a}$. I hope it is correct.",
    ),
    Variant(
        "Minerva's ending alone", lambda s, a, w: f" Final Answer: The final answer is ${a}$. I hope it is correct."
    ),
    Variant(
        "Minerva's ending, wrong",
        lambda s, a, w: f" Final Answer: The final answer is ${w}$. I hope it is correct.",
        False,
    ),
    Variant("boxed", lambda s, a, w: f" Therefore the answer is $\\boxed{{{a}}}$."),
    Variant("boxed, wrong", lambda s, a, w: f" Therefore the answer is $\\boxed{{{w}}}$.", False),
    Variant("boxed without dollar signs", lambda s, a, w: f" Therefore the answer is \\boxed{{{a}}}."),
    Variant(
        "boxed, \\dfrac for \\frac",
        lambda s, a, w: f" So $\\boxed{{{a.replace(chr(92) + 'frac', chr(92) + 'dfrac')}}}$.",
    ),
    Variant("boxed, as x = answer", lambda s, a, w: f" So $\\boxed{{x = {a}}}$."),
    Variant("boxed, with a unit", lambda s, a, w: f" So $\\boxed{{{a} \\text{{ units}}}}$."),
    Variant("a wrong box, then the right one", lambda s, a, w: f" So $\\boxed{{{w}}}$? No: $\\boxed{{{a}}}$."),
    Variant("a right box, then a wrong one", lambda s, a, w: f" So $\\boxed{{{a}}}$? No: $\\boxed{{{w}}}$.", False),
    Variant("box cut short", lambda s, a, w: f" Therefore the answer is $\\boxed{{{a}", None),
    Variant("the answer is, in dollar signs", lambda s, a, w: f" The answer is ${a}$."),
    Variant("the answer is, plain", lambda s, a, w: f" The answer is {a}."),
    Variant("the answer alone, in dollar signs", lambda s, a, w: f" ${a}$", None),
    Variant("no answer", lambda s, a, w: " I do not know how to solve this.", False),
    Variant("empty", lambda s, a, w: "", False),
)
