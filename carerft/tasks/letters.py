"""The option that a reply to a multiple-choice question names by its letter.

In this order: the letter in the reply's last box; else the first letter in brackets anywhere, or bare at the beginning
or after "answer is"; else a capital that ends a sentence ("I think B"), or a small letter that is all there is. "A" is
no letter where it is an article ("A lamp"), nor "I" where it is a pronoun.
"""

import re
from functools import cache
from string import ascii_uppercase

from carerft.grading.mathematics import last_box
from carerft.tasks.replies import single_spaced

_INTRODUCTION = r"\b(?i:answer|option|choice)(?: is)?:? \W*"
_NO_ARTICLE = r"(?! *['\w])|(?= +(?:is|because|since|as|would|seems|was)\b)"


def named_letter(reply: str, options: int) -> str | None:
    """The capital letter of one of so many options, at most 26; None if the reply names none."""
    box = last_box(reply)
    first, loose, boxed, not_chosen = _patterns(options)
    named = single_spaced(boxed.sub(r"(\1)", box) if box else not_chosen.sub("", reply))
    letter = first.search(named) or loose.search(named)
    return next(filter(None, letter.groups())).upper() if letter else None


def without_denials(reply: str, options: int) -> str:
    """Without what names letters and chooses none: "not (A)", "A or B"."""
    return _patterns(options)[3].sub("", reply)


@cache
def _patterns(options: int) -> tuple[re.Pattern[str], ...]:
    capitals = ascii_uppercase[:options]
    words = "".join(letter for letter in capitals if letter in "AI")
    plain = "".join(letter for letter in capitals if letter not in "AI") or words
    small, any_case = capitals.lower(), capitals + capitals.lower()
    one = rf"\(?[{capitals}]\)?"
    return (
        re.compile(
            rf"\(([{any_case}])\)|(?:^\W*|{_INTRODUCTION})(?:([{words}])\b(?:{_NO_ARTICLE})|([{plain}])\b(?!['\w]))"
            rf"|^\W*([{small}])[).:](?!\w)|{_INTRODUCTION}([{small}])\W*$"
        ),
        re.compile(
            rf"\b([{words}])\b(?=\W*(?:$|[.,;:!?\n])| (?:is|because|since) )|\b([{plain}])\b(?!['\w])"
            rf"|^\W*(?:(?i:the answer is) )?([{small}])\W*$"
        ),
        re.compile(rf"^\W*(?:\\text\w*\{{\W*)?([{any_case}])\b.*"),
        re.compile(
            rf"\b(?i:not|isn['’]t|neither) +{one}(?!\w)(?: +nor +{one}(?!\w))?"
            rf"|(?<!\w){one} +(?:or|and|nor) +{one}(?!\w)"
        ),
    )
