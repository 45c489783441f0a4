"""Replies: what counts of a completion, where it ends, and when two texts have the same words.

What a model wrote is hostile input: it is read in linear time, and of free text only the first LONGEST characters.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from carerft.tasks import Grade, Problem, Task

LONGEST = 20_000
LONGEST_VOTE = 200
"""Characters of a reply that decide which other replies it votes with."""

_NO_WORD = re.compile(r"[^\w\s]|_")
_THOUSANDS = re.compile(r"(?<=[0-9])[,\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_ACCENT = re.compile(r"[\u0300-\u036f]")
_POINT, _MINUS = re.compile(r"(?<=[0-9])\.(?=[0-9])"), re.compile(r"(?<![\w)])[-\u2212](?=[0-9])")
_SPACES = re.compile(r"\s{2,}")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")


THINKING = (
    *(("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>")),
    *(("<reasoning>", "</reasoning>"), ("<seed:think>", "</seed:think>"), ("[THINK]", "[/THINK]")),
    *(("◁think▷", "◁/think▷"), ("<|begin_of_thought|>", "<|end_of_thought|>")),
)
"""The tags between which models think."""


def grade_completions(
    task: Task, problems: Sequence[Problem], texts: Sequence[str], finished: Sequence[bool], count_truncated: bool
) -> list[Grade]:
    """One grade per (problem, completion) pair. finished: False for a completion that was cut by the limit on tokens.

    Where a prompt ends with a tag that begins thinking, as some chat templates have it, the completion begins within
    it. count_truncated=False: a completion that was cut is wrong, whatever number it happens to hold, unless it was cut
    after its reply's end (`until`). Of a task that asks for a confidence, the statements of it are taken out of the
    reply before it is graded.
    """
    until = getattr(task, "until", None)
    opened = [open_tag(problem.prompt) + text for problem, text in zip(problems, texts, strict=True)]
    stated: Sequence[tuple[str, float | None]] = [(text, None) for text in opened]
    if without_confidence := getattr(task, "without_confidence", None):
        stated = [without_confidence(reply(text, until)) for text in opened]
    grades = [
        grade if count_truncated or done or (until and until in after_thinking(text)) else Grade(None, correct=False)
        for grade, done, text in zip(task.grade(problems, [text for text, _ in stated]), finished, opened, strict=True)
    ]
    return [replace(grade, confidence=value) for grade, (_, value) in zip(grades, stated, strict=True)]


def open_tag(prompt: str) -> str:
    """The tag at a prompt's end, if there is one, within which a completion begins to think."""
    return next((tag for tag, _ in THINKING if prompt.rstrip().endswith(tag)), "")


def after_thinking(text: str) -> str:
    """What follows the end of thinking; all, without any; nothing, where it doesn't end: the completion was cut."""
    end = max(text.rfind(closing) + len(closing) if closing in text else 0 for _, closing in THINKING)
    rest = text[end:]
    return "" if any(opening in rest for opening, _ in THINKING) else rest


def reply(text: str, until: str | None) -> str:
    """What follows a completion's thinking, up to `until`. A base model often continues with a question of its own
    ("\\nQ: ..."), and its answer to that one must not count."""
    text = after_thinking(text)
    return text.partition(until)[0] if until else text


def free_text(text: str, until: str | None) -> str:
    """The `reply`'s first LONGEST characters."""
    return reply(text, until)[:LONGEST].strip()


def single_spaced(text: str) -> str:
    """With one line break in place of white space that has any, else one space, so that patterns read it in linear
    time."""
    return _SPACES.sub(lambda spaces: "\n" if "\n" in spaces[0] else " ", text)


def words(text: str, articles: bool = True) -> str:
    """The words in lower case with one space between: punctuation and symbols become spaces, as in the aliases of
    TriviaQA (Joshi et al. 2017, arXiv 1705.03551), and the thousands separators of a number go. A number is one word
    ("3.5" has no word 3, and "-5" no 5), and letters lose their accents. articles=False leaves out "a", "an" and
    "the"."""
    text = _ACCENT.sub("", unicodedata.normalize("NFKD", _THOUSANDS.sub("", text).lower()))
    text = _MINUS.sub(" minus", _POINT.sub("point", text))
    text = _NO_WORD.sub(" ", text)
    return " ".join((text if articles else _ARTICLES.sub(" ", text)).split())


def text_vote(free: str) -> str | None:
    """What votes of a free text: its first words."""
    return words(free)[:LONGEST_VOTE] or None


def first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
