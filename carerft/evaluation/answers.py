"""Answers that no worker of ours samples: a server gives them (`served.py`), or a file holds them (`recorded.py`)."""

from dataclasses import dataclass
from typing import Any

from carerft.text import number


@dataclass(frozen=True)
class Answer:
    """One completion, as text. None: whoever wrote it did not say.

    finished: False if it was cut at the limit on tokens. log_probability: of the whole completion (nats), at
    temperature 1. tokens: how many it has.
    """

    text: str
    finished: bool | None = None
    log_probability: float | None = None
    tokens: int | None = None


def of_choice(choice: dict[str, Any]) -> Answer:
    """An entry of `choices` in a response of OpenAI's API, of a chat or of a completion."""
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    log_probs = _log_probs(choice.get("logprobs"))
    known = [value for value in map(number, log_probs) if value is not None]
    reason = str(choice.get("finish_reason"))
    return Answer(
        text if isinstance(text, str) else "",
        finished={"length": False, "stop": True}.get(reason),
        log_probability=sum(known) if known and len(known) == len(log_probs) else None,
        tokens=len(log_probs) or None,
    )


def _log_probs(said: Any) -> list[Any]:
    """What `logprobs` gives for each token, a number or not; empty where it isn't as the API writes it."""
    said = said if isinstance(said, dict) else {}
    content, plain = said.get("content"), said.get("token_logprobs")
    if isinstance(content, list) and content:
        return [token.get("logprob") if isinstance(token, dict) else None for token in content]
    return plain if isinstance(plain, list) else []
