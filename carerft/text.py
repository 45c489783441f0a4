"""Text and numbers as a reader sees them. Whatever a model wrote is hostile input: it is made visible, never obeyed."""

import difflib
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

# Control, format (bidirectional marks, zero-width), surrogate and private-use characters: invisible, or able to
# reorder or break what surrounds them.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
MINUS = "\N{MINUS SIGN}"


def visible(value: Any, limit: int = 400) -> str:
    """At most `limit` characters of a value's text, hidden characters spelled out as ⟨U+202E⟩; newlines and tabs stay.

    The result can be encoded in UTF-8 whatever came in. It is not HTML: the template escapes it.
    """
    raw = str(value)
    text = raw[:limit].replace("\r\n", "\n")
    shown = "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN and c not in "\n\t" else c for c in text)
    return shown + (f" … ({len(raw) - limit:,} more characters)" if len(raw) > limit else "")


def line(value: Any, limit: int = 120) -> str:
    """`visible` text on one line, for labels, cells of tables and terminals."""
    return " ".join(visible(value, limit).split())


def number(value: Any) -> float | None:
    """A finite float from a JSON value; None for null, NaN, infinities and anything that isn't a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def decimal(value: float) -> str:
    """A number rounded to three digits, with a true minus sign, and never minus zero."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A rounded change, its sign always shown."""
    rounded = decimal(value)
    return rounded if rounded.startswith(MINUS) or float(rounded) == 0 else f"+{rounded}"


def duration(seconds: float | None) -> str:
    """1 h 02 min, 3 min 20 s or 12 s; a dash where unknown."""
    if seconds is None or seconds < 0:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def greek(label: str) -> str:
    """A label with its parameters' Greek letters: "SRKL alpha=0.8 beta=0.04" as "SRKL α=0.8 β=0.04"."""
    return label.replace(" alpha=", " α=").replace(" beta=", " β=")


def hydra_quoted(text: str) -> str:
    """A text in quotes, as Hydra's overrides take any text. A backslash stands for itself, unless a quote follows."""
    return '"' + re.sub(r'(\\*)("|$)', lambda end: 2 * end[1] + ('\\"' if end[2] else ""), text) + '"'


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ "did you mean train? ", with the known word nearest to this one; empty if none is near.

    Of dotted keys, one that ends as the word does is nearest: "regularizer.alpha" to "alpha".
    """
    ending = word.rpartition(".")[2]
    close = [key for key in known if "." in key and key.rpartition(".")[2] == ending]
    close += difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}? " if close else ""
