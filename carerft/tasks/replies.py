"""Free-text replies to factual questions: where a reply ends, and when two texts have the same words.

What a model wrote is hostile input: it is read in linear time, and of free text only the first LONGEST characters.
"""

import re

LONGEST = 20_000
LONGEST_VOTE = 200
"""Characters of a reply that decide which other replies it votes with."""

_NO_WORD = re.compile(r"[^\w\s]|_")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")


def text_before(text: str, until: str | None) -> str:
    """The completion up to `until`. A base model often continues with a question of its own ("\\nQ: ..."), and its
    answer to that one must not count."""
    return text.partition(until)[0] if until else text


def free_text(text: str, until: str | None) -> str:
    """The reply `text_before` that, of the completion's first LONGEST characters."""
    return text_before(text[:LONGEST], until).strip()


def words(text: str, articles: bool = True) -> str:
    """The words in lower case with one space between: punctuation and symbols become spaces, as in the aliases of
    TriviaQA (Joshi et al. 2017, arXiv 1705.03551). articles=False leaves out "a", "an" and "the"."""
    text = _NO_WORD.sub(" ", text.lower())
    return " ".join((text if articles else _ARTICLES.sub(" ", text)).split())


def first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
