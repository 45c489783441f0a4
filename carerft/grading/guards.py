"""Refusal, before any algebra, of answers that are dangerous or slow to evaluate, recognised from their text alone.

Every check is linear in an answer of at most `MAX_LENGTH` characters. The limits are far above the 12,500 answers of
MATH (length 159, nesting 3, exponents 4950). They were set by timing math-verify 0.9.0 on answers that pass them: about
0.35 s of CPU at worst, whereas 20 pairs of braces alone took 158 s.
"""

import re
from itertools import accumulate
from math import prod

MAX_LENGTH = 300
MAX_NESTING = 4
MAX_DIGITS = 40
MAX_EXPONENT = {"number": 5_000, "letter": 200, "group": 12}
MAX_EXPONENT_PRODUCT = 100_000
MAX_ARGUMENT = 3_000
"""Of a factorial or a binomial coefficient."""
MAX_COUNT = {
    "separators": (re.compile(r"[,;]"), 30),
    "operators": (re.compile(r"[-+*/=<>]"), 60),
    "set operations": (re.compile(r"\\(?:cup|cap|setminus)"), 8),
    "functions": (re.compile(r"\\(?:(?:arc)?(?:sin|cos|tan|sec|csc|cot)h?|log|ln|exp)(?![a-z])"), 8),
    "exponentials": (re.compile(r"\\exp(?![a-z])"), 1),
    "bars": (re.compile(r"\||\\[lr]?vert"), 8),
    "matrix entries": (re.compile("&"), 30),
    "letters outside commands": (re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]|(?<=[a-zA-Z])[a-zA-Z]"), 120),
}

_COMMANDS = frozenset(
    r"""frac sqrt pi text textbf textit textrm textnormal mbox mathrm mathbf mathit mathbb mathcal begin end infty
    cup cap setminus in notin emptyset varnothing subset subseteq pm mp cdot times div ast circ degree degrees angle
    sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh log ln exp max min gcd lcm bmod mod pmod binom
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi varphi chi psi omega Delta Theta Lambda Xi Pi Sigma Phi Psi Omega
    le ge ne lt gt approx equiv sim to mid lfloor rfloor lceil rceil lvert rvert vert overline bar vec hat
    ldots cdots dots triangle parallel perp land lor wedge vee""".split()
) | frozenset("\\{}%| _&")
_ENVIRONMENTS = frozenset(f"{kind}matrix" for kind in ("", "p", "b", "v", "B", "small"))
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{([^{}]*)\}")
_NOT_MATHEMATICS = re.compile("[\"'`@#?]|__|[+-]{4}|[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
_POWER = re.compile(r"(?:\^|\*\*)\s*")
_DIGITS = re.compile(r"[0-9]+")


def hazard(answer: str, gold: str = "") -> str | None:
    """Why this answer must not be evaluated; None if it may be. Takes what `mathematics.clean` returns.

    Commands outside the list above are refused unless the gold answer contains them too (sums, integrals, limits,
    determinants: sympy would evaluate them without a limit on time).
    """
    if len(answer) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    if match := _NOT_MATHEMATICS.search(answer):
        return f"not mathematics: {match.group()!a}"
    if (depth := max(accumulate(((c in "{([") - (c in "})]") for c in answer), initial=0))) > MAX_NESTING:
        return f"nested {depth} deep, at most {MAX_NESTING}"
    if any(len(digits) > MAX_DIGITS for digits in _DIGITS.findall(answer)):
        return f"a number of more than {MAX_DIGITS} digits"
    unknown = set(_COMMAND.findall(answer)) - _COMMANDS - set(_COMMAND.findall(gold))
    unknown |= set(_ENVIRONMENT.findall(answer)) - _ENVIRONMENTS - set(_ENVIRONMENT.findall(gold))
    if unknown:
        return f"the command {min(unknown)!a} is not evaluated"
    for kind, (pattern, most) in MAX_COUNT.items():
        if len(pattern.findall(answer)) > most:
            return f"more than {most} {kind}"
    return _large_power(answer) or _large_factorial(answer)


def _large_power(text: str) -> str | None:
    """Refuses towers, and exponents too large for their base: a number, a letter, or a bracketed expression."""
    if re.search(r"[0-9][eE][+-]?[0-9]{3}", text):
        return "a number with a huge exponent"
    product = 1
    for power in _POWER.finditer(text):
        end = _group_end(text, power.end())
        exponent = text[power.end() : end]
        numbers = [int(digits) for digits in _DIGITS.findall(exponent)]
        if _POWER.match(text[end:].lstrip()) or (re.search(r"\^|\*\*|!", exponent) and max(numbers, default=0) > 3):
            return "a tower of exponents"
        before = text[: power.start()].rstrip()
        product *= prod(max(1, n) for n in numbers)
        if prod(max(1, n) for n in numbers) > MAX_EXPONENT[_kind_of_base(before)] or product > MAX_EXPONENT_PRODUCT:
            return "a huge exponent"
    return None


def _group_end(text: str, start: int) -> int:
    """Where the exponent that begins at start ends: after its matching bracket, its number or its single character."""
    closing = {"{": "}", "(": ")", "[": "]"}.get(text[start : start + 1])
    if closing is None:
        plain = re.compile(r"-?(?:[0-9.]+|\\[a-zA-Z]+|.)|-", re.DOTALL).match(text, start)
        return plain.end() if plain else len(text)
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == text[start]) - (text[i] == closing)
        if depth == 0:
            return i + 1
    return len(text)


def _kind_of_base(before: str) -> str:
    if re.search(r"[0-9]\Z|\(\s*-?(?:[0-9./]+|\\frac\{[0-9]+\}\{[0-9]+\})\s*\)\Z", before):
        return "number"
    return "letter" if before[-1:].isalpha() else "group"


def _large_factorial(text: str) -> str | None:
    if re.search(r"[)}\]!]\s*!", text):
        return "a factorial of an expression"
    arguments = [int(digits) for digits in re.findall(r"([0-9]+)\s*!", text)]
    if "\\binom" in text:
        arguments += [int(digits) for digits in _DIGITS.findall(text)]
    return "a huge factorial or binomial coefficient" if max(arguments, default=0) > MAX_ARGUMENT else None
