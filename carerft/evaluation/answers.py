"""Answers that no worker of ours samples: a server gives them (`served.py`), or a file holds them (`recorded.py`)."""

from dataclasses import dataclass
from typing import Any


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
    said = choice.get("logprobs") or {}
    content, plain = said.get("content"), said.get("token_logprobs")
    log_probs = [token["logprob"] for token in content] if content else plain or []
    known = all(isinstance(value, int | float) for value in log_probs)
    reason = str(choice.get("finish_reason"))
    return Answer(
        text if isinstance(text, str) else "",
        finished={"length": False, "stop": True}.get(reason),
        log_probability=float(sum(log_probs)) if known and log_probs else None,
        tokens=len(log_probs) or None,
    )
