r"""Answers to mathematics problems as text: finding them, one spelling for all, and comparisons that need no algebra.

Nothing here evaluates an answer, and every function takes time linear in the part of its input that it reads.

Spellings that count as the same (`normalise`, after `carerft.grading.notation`): \dfrac and \frac, spaces, \left and
\right, dollar signs, a final full stop, thousands separators, a percent sign, a degree sign, a unit after a number
("5 \text{ cm}" is "5", whatever the unit; a.m. and p.m. stay), \text around a word, "(C)" and "C", the case of a word's
letters. The first ones follow `math_equivalence.py` of Hendrycks et al. 2021 (arXiv 2103.03874). A variable is never
taken for a unit.
"""

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

from carerft.grading.notation import AMBIGUOUS, MAX_ANSWER, TEXT, clean

_BOXES_TRIED = 20
_TAIL = 10_000
_NUMBER_LENGTH = 60

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_VERB = (
    r"(?:(?:is|=|:|(?:should|would|will|must) be)[*_]*:?[*_]*"
    r"\s*(?:(?:therefore|thus|then|hence|so|simply|just|equal to)[,:]?\s+)*)"
)
_MARKER = re.compile(rf"answer[*_]*\s*{_VERB}\s*|^[#*_ ]*(?:final\s+)?answer[*_ ]*\n\s*", re.IGNORECASE | re.MULTILINE)
_FINAL_MARKER = re.compile(
    rf"final\s+answer[*_]*\s*{_VERB}\s*|^[#*_ ]*final\s+answer[*_ ]*\n\s*", re.IGNORECASE | re.MULTILINE
)
_MATHEMATICAL = re.compile(r"[0-9$\\]")
_SENTENCE_END = re.compile(
    r"\n|\.\s|[.!][*_]*$|I hope it is correct|<\||</s>|<end_of_turn>|<eos>|,?\s(?:i\.e|which|because|since|where)\b"
    r"|,\s(?:not|so|as|giving|that is)\b|\s\([a-z][a-z ]*\)[.*_]*$"
)
_DISPLAY = re.compile(r"[*_]*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\])", re.DOTALL)
_BARE_BOX = re.compile(r"[^\s$\\{}.,]{1,20}")
_SENTENCE = re.compile(r"[a-zA-Z]{2,}[ ,]")
_PROSE = re.compile(r"(?:[a-zA-Z]+[ ,]+){2}")
_NUMBER = r"-?\\?\$?[0-9]+(?:[.,/:][0-9]+)*"
_ONE_NUMBER = re.compile(_NUMBER)
_NUMBER_FIRST = re.compile(rf"^({_NUMBER})(?: [a-z]+)? (?:(?:for|to|in|from|with|by|of|at|on) |\()[^0-9]*$")
_FORMULA = r"(?:\$+[^$]+\$+|\\\(.+?\\\)|\\\[.+?\\\])"
_FORMULAS = re.compile(rf"{_FORMULA}(?:[\s,]*(?:and|or)?[\s,]*{_FORMULA})*")


def last_box(text: str) -> str | None:
    r"""The content of the last closed \boxed{...} (or \fbox{...}, or "\boxed 5"); None if there is none.

    A box without its closing brace (a truncated completion) is skipped for the one before it. An answer of more than
    `MAX_ANSWER` characters is cut there; `guards` refuses it. Only the last 20 boxes are tried.
    """
    return next((content for _, content in _boxes(text)), None)


def _boxes(text: str) -> Iterator[tuple[int, str]]:
    """Where each closed box ends, and what it holds; the last one first."""
    for box in reversed(deque(_BOX.finditer(text), maxlen=_BOXES_TRIED)):
        if text[box.end() : box.end() + 1] != "{":
            if bare := _BARE_BOX.match(text, box.end()):
                yield bare.end(), bare.group()
            continue
        depth, limit = 0, box.end() + MAX_ANSWER
        for brace in _BRACE.finditer(text, box.end(), limit):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                yield brace.end(), text[box.end() + 1 : brace.start()].strip()
                break
        else:
            if limit < len(text):
                yield limit, text[box.end() + 1 : limit + 1]


def final_answer(text: str, boxed_only: bool = False) -> str | None:
    r"""The answer that a completion gives: its last box, else what follows its last "answer is" or "answer:".

    The second form is that of the Minerva prompt ("Final Answer: The final answer is $5$. I hope it is correct."), for
    base models, which write no box. The answer ends at a line break, a sentence's full stop or a subordinate clause. Of
    a sentence ("The area is $5$ square units") it is the mathematics, what follows its last "is", or its only number. A
    final answer in mathematics that is stated after the last box replaces the box. Of several boxes only the last
    counts: MATH's own answers are the last boxes of its solutions.
    """
    end, content = next(_boxes(text), (0, None))
    tail = text[end:][-_TAIL:]
    markers = [] if boxed_only else list((_MARKER if content is None else _FINAL_MARKER).finditer(tail))
    if not markers:
        return content
    answer = _stated(tail[markers[-1].end() :], guess=content is None)
    if content is None:
        return answer or None
    return answer if _MATHEMATICAL.search(answer) and not _PROSE.match(answer) else content


def _stated(text: str, guess: bool = True) -> str:
    """The answer in the sentence or line with which the text begins. guess: it may be the only number in a sentence."""
    text = text.lstrip("*_ \n")
    if display := _DISPLAY.match(text):
        return (display[1] or display[2]).strip()
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0].strip().strip("*_").strip()
    formulas = _FORMULAS.findall(sentence)
    words = re.findall("[a-zA-Z]{2,}", _FORMULAS.sub("", sentence))
    if formulas and len(words) > 1:
        sentence = formulas[-1]
    elif not formulas and len(words) > 1:
        sentence = re.split(r"\b(?:is|are|equals)\s|=(?=[^=]*$)", sentence)[-1]
        sentence = _NUMBER_FIRST.sub(r"\1", sentence)
        if guess and _SENTENCE.match(sentence) and len(numbers := _ONE_NUMBER.findall(sentence)) == 1:
            sentence = numbers[0]
    return sentence.strip().strip("$*").strip()


_BEFORE_UNIT = r"(?:(?<=[0-9})])|(?<=\\pi)|(?<=\\pi ))"
_UNIT = re.compile(
    rf"(?<=[0-9a-zA-Z)}}\]])\s*{TEXT}(?!\s*[ap]\.?\s*m\b)[^{{}}]*\}}\s*(?:\^\s*(?:[23]|\{{[23]\}}))?$", re.IGNORECASE
)
_SHORT_UNITS = (
    "cm mm km ft in lb lbs kg mg ml oz hr hrs min sec mph yd mi sq cu deg rad men day cup way set ton gal".split()
)
_UNIT_WORD = rf"(?:(?:{'|'.join(_SHORT_UNITS)})\b|[a-zA-Z]{{4,20}})"
_BARE_UNIT = re.compile(
    rf"{_BEFORE_UNIT}(?:(?<= )| ){_UNIT_WORD}(?:(?: |/)(?:{_UNIT_WORD}|of|per|an?)){{0,3}}(?:\^(?:[23]|\{{[23]\}}))?$"
)
_QUANTITY = re.compile(r"[0-9]|\\pi")
_WORDED_NUMBER = re.compile(rf"{TEXT}\s*([0-9][^{{}}]*)\}}")
_WRAPPED_TEXT = re.compile(rf"{TEXT}([^{{}}]*)\}}")
_DROPPED = re.compile(r"\\?%|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degrees?(?![a-zA-Z])")
_ONE_CHARACTER_SCRIPT = re.compile(r"([_^])\s*\{([0-9a-zA-Z])\}")
_SPACE = re.compile(r"(?<![0-9,]) | (?![0-9])|(?<=[0-9]) (?=[0-9]{3}(?![0-9]))")


def unitless(answer: str) -> str:
    """What `clean` returns without per cent and degree signs and without a final unit."""
    text = AMBIGUOUS.sub(", ", _DROPPED.sub("", clean(answer))).strip()
    text = match[1] if (match := _WORDED_NUMBER.fullmatch(text)) else text
    without = _UNIT.sub("", text).strip()
    text = without if _WRAPPED_TEXT.sub("", without).strip(" ()") else text  # of words alone, none is a unit
    without = _BARE_UNIT.sub("", text).strip()
    return without if _QUANTITY.search(_WRAPPED_TEXT.sub("", without)) else text


def normalise(answer: str) -> str:
    """One spelling for all the ways of writing the same answer (see the head of this file). Never evaluates."""
    text = _WRAPPED_TEXT.sub(r"\1", unitless(answer)).strip()
    if _WORDS.fullmatch(text) and re.search("[a-z]{3}", text):
        text = _ARTICLE.sub("", text).casefold()
    text = _SPACE.sub("", _ONE_CHARACTER_SCRIPT.sub(r"\1\2", text))
    text = _BASE.sub(lambda m: f"{m[1]}_{_BASE_NAMES.get(m[2] or m[3], m[2] or m[3])}", text)
    text = _REALS.sub(r"(-\\infty,\\infty)", r"\emptyset" if text == "emptyset" else text)
    choice = re.fullmatch(r"\(([A-Z])\)|\{([^{}]*)\}", text)
    text = (choice[1] or choice[2] or "") if choice else text
    text = text.rstrip(".,;")
    return text.casefold() if _WORD.fullmatch(text) else text


_WORDS = re.compile(r"[A-Za-z]+(?:[ .'-]+[A-Za-z0-9]+)*\.?")
_ARTICLE = re.compile(r"^(?:an?|the) ", re.IGNORECASE)
_REALS = re.compile(r"(?:^|(?<=\\in))(?:\\mathbb\{R\}|allreal(?:number)?s)$")
_BASE_NAMES = dict(two="2", three="3", four="4", five="5", six="6", seven="7", eight="8", nine="9", sixteen="16")
_BASE_NAME = rf"([0-9]+|{'|'.join(_BASE_NAMES)})"
_BASE = re.compile(rf"^\(?(-?[0-9A-Z][0-9A-Z.]*)\)?(?:_\{{?\(?{_BASE_NAME}\)?\}}?|\(?base-?{_BASE_NAME}\)?)$")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]{3,}")
_INTEGER = "[0-9]+"
_PLAIN_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)(?:
        (?P<whole>{_INTEGER})?\\frac\{{(?P<top>[+-]?{_INTEGER})\}}\{{(?P<bottom>[+-]?{_INTEGER})\}}
      | (?:(?P<whole_>{_INTEGER})[ ])?(?P<top_>{_INTEGER})/(?P<bottom_>{_INTEGER})
      | (?P<decimal>{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE](?P<exponent>[+-]?[0-9]{{1,2}}))?
      | (?:(?P<mantissa>{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)(?:\\times|\\cdot|\*))?
        10(?:\^|\*\*)(?:(?P<power>[+-]?[0-9]{{1,2}})|\{{(?P<power_>[+-]?[0-9]{{1,2}})\}})
      | (?P<before>[0-9]*)\.(?P<fixed>[0-9]*)\\overline\{{(?P<repeated>[0-9]+)\}}
    )""",
    re.VERBOSE,
)


def number(normalised: str) -> Fraction | None:
    r"""The exact value of a plain number: integer, decimal, fraction, mixed number, repeating decimal, 1.5\times10^3.

    Takes what `normalise` returns, of at most 60 characters. None for all else.
    """
    match = _PLAIN_NUMBER.fullmatch(normalised) if len(normalised) <= _NUMBER_LENGTH else None
    if match is None:
        return None
    group = {name: value or "" for name, value in match.groupdict().items()}
    power = group["exponent"] or group["power"] or group["power_"]
    if group["decimal"] or power:
        value = Fraction((group["decimal"] or group["mantissa"]).rstrip(".") or "1") * Fraction(10) ** int(power or 0)
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


_ASSIGNMENT = re.compile(r"^[a-zA-Z](?:=|\\in)(?=[^=]*$)")


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


_BASED = re.compile(r"(-?[0-9A-Z]+(?:\.[0-9A-Z]*)?)_([0-9]+)")
_TIME = re.compile(r"([0-9]{1,2})(:[0-9]{2}(?::[0-9]{2})?)?(?:([ap])\.?m)?", re.IGNORECASE)
_FLAT = re.compile(r"[(\[][^()\[\]{}]*[)\]]")
_FLAT_SET = re.compile(r"\\\{[^()\[\]{}]*\\\}")
_TOLERANCE = Fraction(1, 2_000_000)


def quick_verdict(gold: str, answer: str) -> bool | None:
    """Whether the answer is right, if its spelling or exact arithmetic decides that; None if it takes algebra.

    Two plain numbers are equal if they are exactly equal, or if one of them is a decimal that is off by at most 5e-7
    and by at most one part in 10^5: 0.333333 is 1/3, 0.3333 is not, 0.0000001 is not 0.0000002.
    """
    right, given = normalise(gold), normalise(answer)
    if not given:
        return False
    if bool(_ASSIGNMENT.match(right)) != bool(_ASSIGNMENT.match(given)):  # "x=5" for "5"; but x=5 is not y=5
        right, given = _ASSIGNMENT.sub("", right), _ASSIGNMENT.sub("", given)
    if right == given or _with_unit(gold) == _with_unit(answer):
        return True
    right_value, given_value = number(right), number(given)
    if right_value is not None and given_value is not None:
        if right_value == given_value:
            return True
        rounded = "." in right or "." in given
        return rounded and abs(right_value - given_value) <= min(_TOLERANCE, abs(right_value) / 10**5)
    if right_value is not None and (given.isalpha() or "," in given):
        return False  # a number is neither a word nor a list
    spellings = re.split(r"=|\\approx", right)  # "0.56 = 56\%"
    if len(spellings) > 1 and all(number(spelling) is not None for spelling in spellings):
        return any(quick_verdict(spelling, given) for spelling in spellings)
    if (time := _time(right)) and (time[-1] or ":0" in right):  # otherwise it may be a ratio
        return time == _time(given)
    if right.isalpha() and len(right) > 1 and (_WRAPPED_TEXT.search(gold) or (gold.isupper() and len(right) > 2)):
        return False  # a word; other spellings of it were equal above
    if r"\emptyset" in (right, given) or (right.startswith(r"\angle") and given.startswith(r"\angle")):
        return False
    if any(_FLAT.fullmatch(one) and _FLAT_SET.fullmatch(other) for one, other in ((right, given), (given, right))):
        return False  # an ordered pair or an interval is no set
    right_based, given_based = _BASED.fullmatch(right), _BASED.fullmatch(given)
    if right_based and (given_based or given_value is not None or given == right_based[1]):
        return given in (right_based[1], right_based[0])  # 7602_8 is not 7602_9, though math-verify says so
    if given_based and right_value is not None:
        return right == given_based[1]
    return None


def _with_unit(answer: str) -> str:
    """The answer's spelling with its unit: "144 m^3" is "144 \\text{ m}^3", though its m may be a variable."""
    return _ONE_CHARACTER_SCRIPT.sub(r"\1\2", _WRAPPED_TEXT.sub(r"\1", clean(answer))).replace(" ", "")


def _time(normalised: str) -> tuple[str, ...] | None:
    """Hours, minutes, and a or p, of "4:30p.m" or "05:00"; None for what is no time."""
    match = _TIME.fullmatch(normalised)
    if match is None or not (match[2] or match[3]):
        return None
    return match[1].lstrip("0"), match[2] or ":00", (match[3] or "").lower()
