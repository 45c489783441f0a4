"""Free-text replies to factual questions: where a reply ends, and when two texts say the same words.

What a model wrote is hostile input: it is read in linear time, and of free text only the first LONGEST characters.
"""

import re

LONGEST = 20_000

_NO_WORD = re.compile(r"[^\w\s]|_")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")


def before(text: str, until: str | None) -> str:
    """The completion up to `until`. A base model goes on after its answer with a question of its own ("\\nQ: ..."),
    and what it answers to that is no answer to ours."""
    return text.partition(until)[0] if until else text


def reply(text: str, until: str | None) -> str:
    """What is said `before` that, of the completion's first LONGEST characters."""
    return before(text[:LONGEST], until).strip()


def words(text: str, articles: bool = True) -> str:
    """The words in lower case with one space between: punctuation and symbols become spaces, as in the aliases of
    TriviaQA (Joshi et al. 2017, arXiv 1705.03551); with articles=False, "a", "an" and "the" are left out as well."""
    text = _NO_WORD.sub(" ", text.lower())
    return " ".join((text if articles else _ARTICLES.sub(" ", text)).split())


def first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
