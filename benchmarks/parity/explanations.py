"""Why carerft and lm-evaluation-harness judge a completion differently, by comparison, variant, and the side ("ours" or
"theirs") that judges it correct. A disagreement without an explanation makes `against_lm_eval.py` fail.
"""

MINERVA = "theirs reads only what follows 'Final Answer: The final answer is'"
NOT_A_NUMBER = "right; theirs compares text, and '{}' is not the gold's text"
SECOND_THOUGHT = "theirs takes the last number, which is not the answer"
BARE = "theirs finds LaTeX without a dollar sign only if it is a number"
UNMARKED = "ours requires a box, or 'answer is' before the answer"

EXPLANATIONS = {
    ("GSM8K, strict", "#### with a dollar sign", "ours"): "right; theirs allows no $ between #### and the number",
    ("GSM8K, strict", "#### with decimals", "ours"): NOT_A_NUMBER.format("18.00"),
    ("GSM8K, strict", "#### without a space", "ours"): "right; theirs requires exactly one space after ####",
    ("GSM8K, strict", "two ####, the last right", "ours"): "theirs takes the first ####, ours the last",
    ("GSM8K, flexible", "#### with decimals", "ours"): NOT_A_NUMBER.format("18.00"),
    ("GSM8K, flexible", "#### then an afterthought", "ours"): SECOND_THOUGHT,
    ("GSM8K, flexible", "the answer is, in dollars", "ours"): NOT_A_NUMBER.format("$18.00."),
    ("GSM8K, flexible", "boxed", "ours"): "right; theirs reads '$.' after the box as the last number",
    ("GSM8K, flexible", "boxed, then a number", "ours"): SECOND_THOUGHT,
    ("MATH, math_verify", "boxed, as x = answer", "ours"): "right; theirs doesn't compare words after an equals sign",
    ("MATH, math_verify", "boxed, with a unit", "ours"): "\\text{units} after a word: ours drops it",
    ("MATH, math_verify", "box cut short", "theirs"): "ours takes no answer from a box that is not closed",
    ("MATH, math_verify", "the answer is, plain", "ours"): f"right; {BARE}",
    ("MATH, math_verify", "the answer alone, in dollar signs", "theirs"): UNMARKED,
    (
        "MATH, exact_match",
        "Minerva's ending, wrong",
        "theirs",
    ): "wrong; sympy reads only the beginning of the list '3,5,7', 3",
    ("MATH, exact_match", "reference solution", "ours"): MINERVA,
    ("MATH, exact_match", "boxed", "ours"): MINERVA,
    ("MATH, exact_match", "boxed without dollar signs", "ours"): MINERVA,
    ("MATH, exact_match", "boxed, \\dfrac for \\frac", "ours"): MINERVA,
    ("MATH, exact_match", "boxed, as x = answer", "ours"): MINERVA,
    ("MATH, exact_match", "boxed, with a unit", "ours"): MINERVA,
    ("MATH, exact_match", "a wrong box, then the right one", "ours"): MINERVA,
    ("MATH, exact_match", "the answer is, in dollar signs", "ours"): MINERVA,
    ("MATH, exact_match", "the answer is, plain", "ours"): MINERVA,
}
