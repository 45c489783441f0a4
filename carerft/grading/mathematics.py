r"""Answers to mathematics problems as text: finding them, one spelling for all, and comparisons that need no algebra.

Nothing here evaluates an answer, and every function takes time linear in the part of its input that it reads.

Spellings that count as the same (`normalise`): \dfrac and \frac, spaces, \left and \right, dollar signs, a final full
stop, thousands separators, a percent sign, a degree sign, a unit after a number ("5 \text{ cm}" is "5", whatever the
unit; a.m. and p.m. stay), \text around a word, "(C)" and "C". The first ones follow `math_equivalence.py` of
Hendrycks et al. 2021 (arXiv 2103.03874).
"""

import re
from collections import deque
from fractions import Fraction

MAX_ANSWER = 2_000
"""Characters of an answer that are read. The longest answer of MATH has 159."""
_BOXES_TRIED = 20
_TAIL = 10_000
_NUMBER_LENGTH = 60

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MARKER = re.compile(r"(?:final answer|answer)\s*(?:is|:)\s*:?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.\s|\.$|\s*I hope it is correct")


def last_box(text: str) -> str | None:
    r"""The content of the last closed \boxed{...} (or \fbox{...}, or "\boxed 5"); None if there is none.

    A box without its closing brace (a truncated completion) is skipped for the one before it. An answer of more than
    `MAX_ANSWER` characters is cut there; `guards` refuses it. Only the last 20 boxes are tried.
    """
    for box in reversed(deque(_BOX.finditer(text), maxlen=_BOXES_TRIED)):
        content = _box_content(text, box.end())
        if content is not None:
            return content
    return None


def _box_content(text: str, opening: int) -> str | None:
    if text[opening : opening + 1] != "{":
        bare = re.compile(r"[^\s$\\{}.,]{1,20}").match(text, opening)
        return bare.group() if bare else None
    depth = 0
    stop = opening + MAX_ANSWER
    for brace in _BRACE.finditer(text, opening, stop):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[opening + 1 : brace.start()].strip()
    return text[opening + 1 : stop + 1] if stop < len(text) else None


def final_answer(text: str, boxed_only: bool = False) -> str | None:
    r"""The answer that a completion gives: its last box, else what follows its last "answer is" or "answer:".

    The second form is that of the Minerva prompt ("Final Answer: The final answer is $5$. I hope it is correct."),
    for base models, which write no box; the answer ends at a line break or a sentence's full stop.
    """
    box = last_box(text)
    if box is not None or boxed_only:
        return box
    tail = text[-_TAIL:]
    markers = list(_MARKER.finditer(tail))
    if not markers:
        return None
    answer = _SENTENCE_END.split(tail[markers[-1].end() :], maxsplit=1)[0].strip().strip("$*").strip()
    return answer or None


_FORMAT_CHARACTERS = [0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
_PLAIN = {
    "\u2212\u2013\u2010\u2011": "-", "\u00a0\u2009\u202f\u3000": " ", "×": r"\times ", "·⋅": r"\cdot ", "÷": "/",
    "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "√": r"\sqrt ", "°": r"^\circ ", "²": "^2", "³": "^3",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
}  # fmt: skip
_LOOKALIKES: dict[int, str | None] = dict.fromkeys(_FORMAT_CHARACTERS) | {
    ord(character): plain for characters, plain in _PLAIN.items() for character in characters
}
_SPACING = re.compile(
    r"\\!\s*|(?<!\\)\\[,;:()\[\]]|\\?\$|\\(?:left|right)(?![a-zA-Z])\s*\.?|\\(?:display|text)style(?![a-zA-Z])"
    r"|\\[bB]igg?[lr]?(?![a-zA-Z])"
)
_WIDE_SPACE = re.compile(r"(?<!\\)\\\s|~|\\q?quad(?![a-zA-Z])|\s+")
_SYNONYMS = re.compile(r"\\([dtc]frac|leq|geq|neq|lbrace|rbrace|dbinom|tbinom)(?![a-zA-Z])")
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:([0-9a-zA-Z]|\\pi)|(\{[^{}]*\}))\s*(?:([0-9a-zA-Z]|\\pi)|(\{[^{}]*\}))")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9a-zA-Z])")
_SYNONYM = {"leq": r"\le", "geq": r"\ge", "neq": r"\ne", "lbrace": r"\{", "rbrace": r"\}"}


def clean(answer: str) -> str:
    """The answer without decoration (spacing commands, dollar signs, sizes, look-alike characters) or short forms."""
    text = _SPACING.sub("", answer[:MAX_ANSWER].translate(_LOOKALIKES)[:MAX_ANSWER])
    text = _WIDE_SPACE.sub(" ", text)
    text = _SYNONYMS.sub(lambda m: _SYNONYM.get(m[1], "\\" + m[1].lstrip("dtc")), text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_FRACTION.sub(lambda m: "\\frac" + (m[2] or f"{{{m[1]}}}") + (m[4] or f"{{{m[3]}}}"), text)
    return text.replace("{,}", ",").strip().rstrip(".,; ")


_TEXT = r"\\(?:text(?:bf|it|rm|normal)?|mbox|math(?:rm|bf|it))\s*\{"
_UNIT = re.compile(rf"(?<=[0-9}})])\s*{_TEXT}(?!\s*[ap]\.?\s*m\b)[^{{}}]*\}}\s*(?:\^\s*\{{?[23]\}}?)?$", re.IGNORECASE)
_BARE_UNIT = re.compile(r"(?<=[0-9]) (?!(?:pi|mod|and|or|am|pm)\b)[a-zA-Z]{2,20}(?: [a-zA-Z]{2,20}){0,2}(?:\^[23])?$")
_WRAPPED_TEXT = re.compile(rf"{_TEXT}([^{{}}]*)\}}")
_DROPPED = re.compile(r"\\?%|\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![a-zA-Z])")
_ONE_CHARACTER_SCRIPT = re.compile(r"([_^])\s*\{([0-9a-zA-Z])\}")
_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])| (?=[0-9]{3}(?![0-9]))")


def normalise(answer: str) -> str:
    """One spelling for all the ways of writing the same answer (see the head of this file). Never evaluates."""
    text = _UNIT.sub("", clean(answer))
    text = _BARE_UNIT.sub("", text)
    text = _WRAPPED_TEXT.sub(r"\1", _DROPPED.sub("", text))
    text = _SPACE.sub("", _ONE_CHARACTER_SCRIPT.sub(r"\1\2", text.strip()))
    choice = re.fullmatch(r"\(([A-Z])\)|\{([^{}]*)\}", text)
    text = (choice[1] or choice[2] or "") if choice else text
    text = text.rstrip(".,;")
    return text.casefold() if len(text) > 1 and text.isalpha() else text


_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_PLAIN_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)(?:
        (?P<whole>{_INTEGER})?\\frac\{{(?P<top>[+-]?{_INTEGER})\}}\{{(?P<bottom>[+-]?{_INTEGER})\}}
      | (?:(?P<whole_>{_INTEGER})[ ])?(?P<top_>{_INTEGER})/(?P<bottom_>{_INTEGER})
      | (?P<decimal>{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)
      | (?P<before>[0-9]*)\.(?P<fixed>[0-9]*)\\overline\{{(?P<repeated>[0-9]+)\}}
    )""",
    re.VERBOSE,
)


def number(normalised: str) -> Fraction | None:
    r"""The exact value of an integer, decimal, repeating decimal, fraction or mixed number; None for all else.

    Takes what `normalise` returns, of at most 60 characters. A comma separates thousands ("1,234") or nothing.
    """
    match = _PLAIN_NUMBER.fullmatch(normalised) if len(normalised) <= _NUMBER_LENGTH else None
    if match is None:
        return None
    group = {name: (value or "").replace(",", "") for name, value in match.groupdict().items()}
    if group["decimal"]:
        value = Fraction(group["decimal"].rstrip(".") or "0")
    elif group["repeated"]:
        fixed, repeated = group["fixed"], group["repeated"]
        all_digits = Fraction(int(group["before"] + fixed + repeated or 0) - int(group["before"] + fixed or 0))
        value = all_digits / (10 ** len(fixed) * (10 ** len(repeated) - 1))
    else:
        top, bottom = int(group["top"] or group["top_"]), int(group["bottom"] or group["bottom_"])
        whole = int(group["whole"] or group["whole_"] or 0)
        if bottom == 0 or (whole and top / bottom < 0):
            return None
        value = whole + Fraction(top, bottom)
    return -value if group["sign"] == "-" else value


_ASSIGNMENT = re.compile(r"^[a-zA-Z]=(?=[^=]*$)")


def canonical(answer: str) -> str:
    """The form in which answers vote: a number in lowest terms (a decimal if 6 places suffice), else `normalise`.

    "1,234", "1234.0" and "1234" are one vote, and so are 0.5 and 1/2. Two expressions of equal value may still differ.
    """
    normalised = normalise(answer)
    value = number(_ASSIGNMENT.sub("", normalised))
    if value is None:
        return normalised
    if value.denominator == 1 or 10**6 % value.denominator:
        return str(value)
    whole, millionths = divmod(int(abs(value) * 10**6), 10**6)
    return f"{'-' if value < 0 else ''}{whole}.{millionths:06d}".rstrip("0")


_BASED = re.compile(r"([0-9A-Z]+)_\{?([0-9]+)\}?")
_TIME_OF_DAY = re.compile(r"[ap]\.?m$", re.IGNORECASE)
_TOLERANCE = Fraction(1, 2_000_000)


def quick_verdict(gold: str, answer: str) -> bool | None:
    """Whether the answer is right, if its spelling or exact arithmetic decides that; None if it takes algebra.

    Two plain numbers are equal if they are exactly equal, or if one of them is a decimal that is off by at most 5e-7
    and by at most one part in 10^5: 0.333333 is 1/3, 0.3333 is not, 0.0000001 is not 0.0000002.
    """
    right, given = normalise(gold), normalise(answer)
    if not given:
        return False
    if ("=" in right) != ("=" in given):  # "x=5" for "5"; but x=5 is not y=5
        right, given = _ASSIGNMENT.sub("", right), _ASSIGNMENT.sub("", given)
    if right == given:
        return True
    right_value, given_value = number(right), number(given)
    if right_value is not None and given_value is not None:
        if right_value == given_value:
            return True
        rounded = "." in right or "." in given
        return rounded and abs(right_value - given_value) <= min(_TOLERANCE, abs(right_value) / 10**5)
    if right_value is not None and (given.isalpha() or "," in given):
        return False  # a number is neither a word nor a list
    if _TIME_OF_DAY.search(right):
        return False
    if right.isalpha() and _WRAPPED_TEXT.search(gold) and len(right) > 1:
        return False  # a word; other spellings of it were equal above
    if {right[:1], given[:1]} & {"(", "["} and {right[:2], given[:2]} & {"\\{"}:
        return False  # an ordered pair or an interval is not a set, though math-verify says so
    right_based, given_based = _BASED.fullmatch(right), _BASED.fullmatch(given)
    if right_based and (given_based or given_value is not None):  # 7602_8 is not 7602_9, though math-verify says so
        return given in (right_based[1], right_based[0])
    return None
