"""Whether two answers are equal by algebra: lists and tuples by element, values exactly, the rest by math-verify.

latex2sympy reads an expression; no answer is ever evaluated as Python code (see `prepare`). math-verify is left to
decide only what it decides as a careful reader would. Its defaults are not used where they lose something: it takes a
last letter for a unit, ignores the case of letters, compares lists as sets, and rounds to six decimals.
"""

import logging
import re
from collections.abc import Callable
from functools import lru_cache, wraps
from itertools import accumulate, count
from typing import Any

from carerft.grading.mathematics import quick_verdict, unitless

_WARM_UP = (
    r"\frac{\sqrt{3}}{2}", r"(-\infty,-7)\cup[3,\infty)", r"x^2-5x+2y", r"\left(3,\frac{\pi}{2}\right)", r"x=1,y=-2",
    r"1\pm\sqrt{19}", r"\begin{pmatrix}-1&0\\2&\frac{1}{2}\end{pmatrix}", r"\text{yes}", r"x\in[-2,7]", r"2<x\le 5",
    r"\{1,2\}", r"3\sin(2x)", "50%", r"10^{-3}", r"\frac{a+b}{c}",
)  # fmt: skip
_PAIRS = ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), (r"\{", r"\}")
_TUPLE, _SET = ("(", ")"), (r"\{", r"\}")
_COORDINATE = re.compile("[a-z]=")
_COLUMN = re.compile(r"\\begin\{[pb]matrix\}([^&]*)\\end\{[pb]matrix\}")
_SCALED = re.compile(
    r"(?:[^&=]+=)?([^&=+\\]+|\\frac\{[^{}&]*\}\{[^{}&]*\})(\\begin\{[pb]matrix\}[^+]*\\end\{[pb]matrix\})", re.DOTALL
)
_ORDER = re.compile(r"\s*(<|>|\\(?:[lg]e|[lg]t)(?![a-z]))\s*")
_VARIABLE = re.compile(r"[a-zA-Z](?:\([a-z]\))?|\\[a-z]+")
_FUNCTION = re.compile(r"[a-zA-Z](?:\^\{-1\})?\([a-z]\)\s*(?:=|\\in)\s*|[a-zA-Z]\s*\\in\s*")
_RATIO = re.compile(r"(?<![\w.)}\]^!])([0-9]+)/([0-9]+)(?![\w.^!{]*[\^!.])(?![0-9])")
_BOTH_SIGNS = re.compile(r"\\(?:pm|mp)(?![a-z])")
_BRACKET = re.compile(r"\\[{}]|[(\[{)\]}]")
_RELATION = re.compile(r"[<>]|\\(?:[lg]et?|lt|gt|cup|setminus)(?![a-z])")
_POINTS = ((0.6180339887, 0.1415926535), (1.7320508075, 0.3183098861), (-0.5772156649, -0.2718281828))
"""The value of the first variable, and by how much each other one differs from the one before it."""
_DIGITS, _EXACT = 25, 1e-18  # of an evaluation, and the relative difference that remains between equal values
_ROUNDED, _ROUNDED_SHARE = 5e-7, 1e-5  # the largest difference from a decimal: absolute, and relative


def prepare() -> None:
    """Import math-verify with sympy's evaluator replaced by `number_only`, and fill the parser's tables."""
    logging.disable(logging.CRITICAL)  # it logs answers
    import sympy.parsing.sympy_parser
    import sympy.physics.units  # simplify imports it later, and it sympifies strings

    sympy.parsing.sympy_parser.parse_expr = sympy.parsing.parse_expr = number_only
    import math_verify.grader

    for name in ("simplify", "solve"):
        setattr(math_verify.grader, name, _not_swallowed(getattr(math_verify.grader, name)))
    for expression in _WARM_UP:
        compare(expression, expression + "+1")


class GaveUp(BaseException):
    """Out of memory or of stack. Not an Exception, because math-verify treats those as "not equal"."""


def _not_swallowed(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def loud(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (MemoryError, RecursionError) as error:
            raise GaveUp from error

    return loud


_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,50}(?:\.[0-9]{0,50})?|\.[0-9]{1,50})(?:[eE][+-]?[0-9]{1,3})?")


def number_only(text: str, *_: Any, **__: Any) -> Any:
    """Replaces sympy's parse_expr, which runs its argument as Python code. Raises ValueError for all but numbers.

    latex2sympy calls it, through sympify, with every number that its grammar recognises in an answer.
    """
    from sympy import Float, Integer

    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError("strings are not evaluated here")
    return Integer(int(text)) if text.strip().lstrip("+-").isdigit() else Float(text.strip())


def compare(gold: str, answer: str) -> tuple[bool | None, str]:
    """Whether the two (cleaned, unboxed) answers are equal, and why; None if it cannot be told."""
    try:
        equal = equal_texts(unitless(_in_radians(gold)), unitless(_in_radians(answer)))
    except UnreadableGold:
        return None, "latex2sympy cannot read the gold answer"
    except Unreadable:
        return False, "latex2sympy cannot read the answer"
    except (Exception, GaveUp) as error:
        cause = error.__cause__ if isinstance(error, GaveUp) else error
        if isinstance(cause, MemoryError):
            raise cause from None
        return None, f"math-verify failed: {type(cause).__name__}"
    return equal, "equal by algebra" if equal else "not equal by algebra"


_DEGREES = re.compile(
    r"([0-9]+(?:\.[0-9]+)?|\\frac\{[0-9]+\}\{[0-9]+\})\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|\\?degrees?(?![a-z]))"
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)(?![a-z])")


def _in_radians(text: str) -> str:
    """Degrees count within a trigonometric function. Elsewhere they are a unit, which `unitless` drops."""
    return _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text) if _TRIGONOMETRIC.search(text) else text


class Unreadable(Exception):
    """latex2sympy can't read an answer."""


class UnreadableGold(Unreadable):
    """latex2sympy can't read the gold answer."""


def equal_texts(gold: str, answer: str) -> bool:
    """Whether two answers are equal: lists, sets, tuples, intervals and unions by their elements, else as expressions.

    The elements of lists, unions and sets have no order; one counts as often as it is written, except in a set. Tuples
    and intervals need the same brackets; a list without brackets may stand for a tuple or a set. Raises Unreadable.
    """
    quick = quick_verdict(gold, answer)
    if quick is not None:
        return quick
    if bool(_FUNCTION.match(gold)) != bool(_FUNCTION.match(answer)):
        gold, answer = _FUNCTION.sub("", gold, count=1), _FUNCTION.sub("", answer, count=1)
    if bool(_ORDER.search(gold)) != bool(_ORDER.search(answer)):
        gold, answer = _as_interval(gold), _as_interval(answer)
    if len(chain := _ascending(gold)) == len(given_chain := _ascending(answer)) > 3:
        return chain[1::2] == given_chain[1::2] and all(map(equal_texts, chain[::2], given_chain[::2]))
    sides, given_sides = gold.split(r"\ne"), answer.split(r"\ne")
    if len(sides) == len(given_sides) == 2:
        return all(map(equal_texts, sides, given_sides))
    if "matrix" not in gold or "matrix" not in answer:
        gold, answer = _COLUMN.sub(_as_tuple, gold), _COLUMN.sub(_as_tuple, answer)
    (brackets, right), (given_brackets, given) = _elements(gold), _elements(answer)
    if (brackets, given_brackets) == (_TUPLE, ()) and all(map(_COORDINATE.match, given)):
        given = [coordinate[2:] for coordinate in sorted(given)]  # "x=1,y=2"
    if len(right) == len(given) == 1 and not brackets and not given_brackets:
        unions = [_split(text, r"\cup") for text in (gold, answer)]
        return (len(unions[0]) > 1 and _same_elements(*unions)) or _equal_expressions(gold, answer)
    if bool(_RELATION.search(gold)) != bool(_RELATION.search(answer)):  # "[1,2]" and "1\le x\le 2"
        return _equal_expressions(gold, answer)
    if brackets == given_brackets == _SET:
        return _same_elements(_distinct(right), _distinct(given))
    if brackets == given_brackets == () or {brackets, given_brackets} == {_SET, ()}:
        return _same_elements(right, given)
    if brackets == given_brackets or {brackets, given_brackets} == {_TUPLE, ()}:
        return len(right) == len(given) and all(map(equal_texts, right, given))
    return False


def _ascending(text: str) -> list[str]:
    """The sides of a chain of inequalities and the relations between them, the least side first."""
    chain = _ORDER.split(text)
    relations = [{r"\lt": "<", r"\gt": ">"}.get(relation, relation) for relation in chain[1::2]]
    if relations and set(relations) <= {">", r"\ge"}:
        chain.reverse()
        relations = [{">": "<", r"\ge": r"\le"}[relation] for relation in reversed(relations)]
    chain[1::2] = relations
    return chain


def _as_interval(text: str) -> str:
    r"""The interval or union that inequalities mean: "x<1,x\ge2" ("or") is "(-\infty,1)\cup[2,\infty)"."""
    intervals = []
    for part in _split(text, ","):
        sides, relations = (chain := _ascending(part))[::2], chain[1::2]
        if len(sides) == 2 and _VARIABLE.fullmatch(sides[0]):
            sides, relations = [r"-\infty", *sides], ["<", *relations]
        elif len(sides) == 2:
            sides, relations = [*sides, r"\infty"], [*relations, "<"]
        if len(sides) != 3 or not _VARIABLE.fullmatch(sides[1]) or not set(relations) <= {"<", r"\le"}:
            return text
        intervals.append(f"{'(['[relations[0] != '<']}{sides[0]},{sides[2]}{')]'[relations[1] != '<']}")
    return r"\cup".join(intervals)


def _as_tuple(column: re.Match[str]) -> str:
    return f"({','.join(entry.strip() for entry in column[1].split(chr(92) * 2) if entry.strip())})"


def _elements(text: str) -> tuple[tuple[str, ...], list[str]]:
    r"""The brackets around the text, () without, and the elements within. "a\pm b" is a list of two."""
    elements = _split(text, ",")
    if len(elements) == 1:
        for opening, closing in _PAIRS:
            inside = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and _balanced(inside):
                elements = _split(inside, ",")
                if (opening, closing) == _SET:
                    return _SET, _both_signs(elements)
                if len(elements) > 1:
                    return (opening, closing), elements
                return (), [text]
    return (), _both_signs(elements)


def _both_signs(elements: list[str]) -> list[str]:
    """Each element with a single sign of both kinds, twice: with the upper sign, then with the lower."""
    expanded: list[str] = []
    for element in elements:
        commands = _BOTH_SIGNS.findall(element)
        signs = {r"\pm": "+-", r"\mp": "-+"}[commands[0]] if len(commands) == 1 else ()
        expanded += [_BOTH_SIGNS.sub(sign, element) for sign in signs] or [element]
    return expanded


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that stand outside all brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"{_BRACKET.pattern}|{re.escape(separator)}", text):
        if match.group() == separator:
            if depth == 0:
                parts.append(text[start : match.start()].strip())
                start = match.end()
        else:
            depth += 1 if match.group()[-1] in "([{" else -1
    return [*parts, text[start:].strip()]


def _balanced(text: str) -> bool:
    """Whether no bracket of the text closes one that was opened before it."""
    depths = list(accumulate((1 if bracket[-1] in "([{" else -1 for bracket in _BRACKET.findall(text)), initial=0))
    return min(depths) == depths[-1] == 0


def _same_elements(right: list[str], given: list[str]) -> bool:
    """Whether each element of the one list has its own equal in the other. Raises Unreadable."""
    if len(right) != len(given):
        return False
    unmatched, unreadable = list(given), None
    for gold in right:
        for element in unmatched:
            try:
                if equal_texts(gold, element):
                    unmatched.remove(element)
                    break
            except Unreadable as error:
                unreadable = error
        else:
            if unreadable:
                raise unreadable
            return False
    return True


def _distinct(elements: list[str]) -> list[str]:
    distinct: list[str] = []
    for element in elements:
        if not any(equal_texts(element, other) for other in distinct):
            distinct.append(element)
    return distinct


def _equal_expressions(gold: str, answer: str) -> bool:
    right, given = _parsed(gold), _parsed(answer)
    if right is None:
        raise UnreadableGold
    if given is None:
        raise Unreadable
    return equal_values(right, given)


@lru_cache(maxsize=2048)
def _parsed(text: str) -> Any:
    """The expression that a text means, or None if latex2sympy can't read it. Upper and lower case are different."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from sympy import Expr, MatrixBase, nan, zoo

    if scaled := _SCALED.fullmatch(text):  # latex2sympy would misread the matrix's first number
        factor, matrix = _parsed("-1" if scaled[1] == "-" else scaled[1]), _parsed(scaled[2])
        return factor * matrix if isinstance(factor, Expr) and isinstance(matrix, MatrixBase) else None
    text = _RATIO.sub(r"\\frac{\1}{\2}", text)  # "3/5i" is no 3/(5i)
    normalization = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
    latex = normalize_latex(text, normalization)
    try:
        parsed = latex2sympy(
            latex,
            is_real=not should_treat_as_complex(latex),
            conversion_config=ConversionConfig(lowercase_symbols=False),
            normalization_config=None,
        )
    except (MemoryError, RecursionError) as error:
        raise GaveUp from error
    except Exception:  # its parser and its conversion raise all kinds
        *chain, last = text.split("=")
        return _parsed(last) if len(chain) > 1 else None  # of "x=2+3=5" the end counts
    return None if parsed is None or parsed in (nan, zoo) else parsed


def equal_values(right: Any, given: Any) -> bool:
    """Whether two sympy objects are equal: numbers by their values, formulas at three points, the rest by math-verify.

    Exact values differ if they differ at all; a decimal may be rounded, as in `quick_verdict`.
    """
    from math_verify import verify
    from sympy import Add, Eq, Expr, Float, MatrixBase

    if isinstance(right, MatrixBase) and isinstance(given, MatrixBase):
        return right.shape == given.shape and all(map(equal_values, right.flat(), given.flat()))
    if isinstance(right, Eq) and isinstance(right.lhs, Add) and isinstance(given, Expr):
        return False  # math-verify would compare the right side alone
    if isinstance(right, Expr) and isinstance(given, Expr):
        names = sorted({str(symbol) for symbol in right.free_symbols | given.free_symbols} - {"i"})
        rounded = right.has(Float) or given.has(Float)
        agree = [
            _agree(right, given, dict(zip(names, count(*point))), rounded) for point in _POINTS[: 3 if names else 1]
        ]
        if agree[0] is False or all(agree):
            return all(agree)
    return bool(verify(right, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True))


def _agree(right: Any, given: Any, point: dict[str, float], rounded: bool) -> bool | None:
    """Whether two expressions have the same value where their variables have these; None if one has no value there."""
    values = [_value(expression, point) for expression in (right, given)]
    if None in values:
        return None
    difference, size = abs(values[0] - values[1]), max(map(abs, values))
    if rounded:
        return difference <= (_ROUNDED_SHARE * size if point else min(_ROUNDED, _ROUNDED_SHARE * abs(values[0])))
    return difference <= _EXACT * size


def _value(expression: Any, point: dict[str, float]) -> Any:
    """The expression's value, an mpmath number, to 25 digits; None if it has none. "i" is the imaginary unit."""
    import mpmath
    from sympy import Float, I, Rational

    values = {symbol: Rational(point[str(symbol)]) if str(symbol) != "i" else I for symbol in expression.free_symbols}
    try:
        parts = expression.evalf(_DIGITS, subs=values).as_real_imag()
        # A Float of one bit is what remains where all digits have cancelled.
        numbers = [mpmath.mpf(0) if isinstance(part, Float) and part._prec <= 1 else mpmath.mpf(part) for part in parts]
    except (TypeError, ValueError, AttributeError, ArithmeticError):  # without a numeric value
        return None
    return mpmath.mpc(*numbers) if all(map(mpmath.isfinite, numbers)) else None
