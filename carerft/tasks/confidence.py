r"""Stated confidences: the probability that a completion gives to its own answer, as in "Confidence: 0.8".

A statement is the word `confidence` in any case, followed by a colon, an equals sign, or "is" and a number, and goes on
to the end of its sentence or line; or it is `<confidence>0.8</confidence>`. Nothing but the number may stand there:
0 to 1 in decimal digits with a point (0.8, .8, 1), or a percentage from 1% to 100%, or 0%. Anything else is no
confidence, and never another number: "0,9", "1.5", "-0.1", "1e-1", "nan", "0.8%", "0.8 or 0.9", digits of other
scripts, more than 20 decimals.

Of several statements the last one counts, even where it cannot be read: what was said last was meant. All of them are
taken out before a completion is graded, so that no confidence is read as its answer.

The text is hostile input: it is read in linear time, and of a statement at most 60 characters.
"""

import re
from collections import deque
from collections.abc import Callable

Reader = Callable[[str], tuple[str, float | None]]
"""From a reply to the reply without its statements of confidence, and the confidence that counts."""
_LONGEST = 60
_STATEMENT = re.compile(
    r"<confidence>(?P<tagged>[^<\n]*)(?:</confidence>)?"
    r"|(?:\bmy )?(?<![\w-])[*_]{0,3}confidence(?: level| score)?(?: ?\([^()\n]{0,30}\))?[*_]{0,3}"
    r"(?: ?[:=][*_]{0,3}(?:[ \t]{0,3}\n\s{0,3}(?=[^a-z\s]{0,10}[0-9]))?| is(?= [^a-z\s]{0,10}[0-9]))"
    r"(?P<plain>(?:[^\n.!?;]|[.!?;](?!\s|$))*)[.!?;]?",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(?P<share>0|1|0?\.[0-9]{1,20}|1\.0{1,20})"
    r"|(?P<percent>0|100(?:\.0{1,20})?|[1-9][0-9]?(?:\.[0-9]{1,20})?) ?\\?%"
)
_BOX = re.compile(r"\\boxed\{([^{}]*)\}")
_AROUND = " \t*_$`\"'()[]{}"


def without_confidence(text: str) -> tuple[str, float | None]:
    """The text without its statements of confidence, and the last one's value in [0, 1]; None if there is none that can
    be read."""
    statements = deque(_STATEMENT.finditer(text), maxlen=1)
    if not statements:
        return text, None
    last = statements.pop()
    stated = last["plain"] if last["tagged"] is None else last["tagged"]
    return _STATEMENT.sub("", text).rstrip(), _value(stated)


def _value(stated: str) -> float | None:
    if len(stated) > _LONGEST:
        return None
    match = _VALUE.fullmatch(_BOX.sub(r"\1", stated).strip(_AROUND))
    if match is None:
        return None
    return float(match["share"]) if match["share"] else float(match["percent"]) / 100
