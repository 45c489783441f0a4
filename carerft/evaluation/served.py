"""Answers of a model behind an OpenAI-compatible server: vLLM's, SGLang's, llama.cpp's, a hosted one's."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from carerft.config.settings import OpenaiSettings
from carerft.errors import EngineError, reason
from carerft.evaluation.answers import Answer, of_choice
from carerft.rollout import Sampling, mixed_seed
from carerft.tasks import Problem

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 4
BUSY = {408, 429, 500, 502, 503, 504}
"""HTTP statuses after which the same request may succeed."""


@dataclass(frozen=True)
class Server:
    """A model that a server serves. Each request is one problem's k samples, `settings.batch_size` at a time."""

    settings: OpenaiSettings
    model: str

    @staticmethod
    def connect(settings: OpenaiSettings) -> "Server":
        """The server's model: the one that the settings name, else its only one. Raises EngineError."""
        listed = _request(settings, "models", None).get("data") or []
        names = [entry.get("id", "") for entry in listed]
        model = settings.model or (names[0] if len(names) == 1 else "")
        if not model or (names and model not in names):
            what = f"{settings.url} serves {', '.join(names) or 'no model'}"
            raise EngineError(
                what + (f", and not {model}" if model else ""), f"write rollout.model={names[0] if names else 'NAME'}"
            )
        return Server(settings, model)

    def answers(self, problems: Sequence[Problem], k: int, sampling: Sampling, seed: int) -> list[list[Answer]]:
        """k answers to each problem, in order. Raises EngineError.

        A problem's seed depends on its number among `problems` alone; whether a seed repeats the samples is the
        server's affair.
        """
        with ThreadPoolExecutor(self.settings.batch_size or 16) as pool:
            numbered = list(enumerate(problems))
            return list(pool.map(lambda pair: self._ask(pair[1], k, sampling, mixed_seed(seed, pair[0])), numbered))

    def _ask(self, problem: Problem, k: int, sampling: Sampling, seed: int) -> list[Answer]:
        own = self.settings
        body: dict[str, Any] = {
            "model": self.model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature,
            "top_p": sampling.top_p, "logprobs": own.chat or 0,
        }  # fmt: skip
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if own.chat:
            body["messages"] = [*map(dict, problem.messages)] or [{"role": "user", "content": problem.prompt}]
        else:
            body["prompt"] = problem.prompt
        answers: list[Answer] = []
        while len(answers) < k:  # servers that know no `n` give one completion a request
            asked = {**body, "n": k - len(answers), "seed": mixed_seed(seed, len(answers)) % 2**31}
            response = _request(own, "chat/completions" if own.chat else "completions", asked)
            choices = response.get("choices")
            if not isinstance(choices, list) or not choices:
                raise EngineError(
                    f"{own.url} answered {problem.id} without choices: {json.dumps(response)[:200]}",
                    "see whether it serves OpenAI's API, and whether rollout.chat fits the model",
                )
            answers += [of_choice(choice) for choice in choices[: k - len(answers)]]
        return answers


def _request(settings: OpenaiSettings, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The server's answer, a JSON object. body: None for GET. Tries again while the server is busy. Raises
    EngineError."""
    address = f"{settings.url.rstrip('/')}/{path}"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urlopen(Request(address, data, headers), timeout=settings.timeout_s) as response:
                answer = json.loads(response.read())
            if isinstance(answer, dict):
                return answer
            what = f"{address} answered with no JSON object"
        except HTTPError as error:
            what = f"{address}: {error.code} {error.reason}: {error.read(300).decode(errors='replace')}"
            if error.code not in BUSY:
                remedy = f"export {KEY_VARIABLE}" if error.code in (401, 403) else "see what the server says of it"
                raise EngineError(what, remedy) from error
        except (URLError, OSError, HTTPException, ValueError) as error:
            what = f"{address}: {reason(getattr(error, 'reason', error) if isinstance(error, URLError) else error)}"
        if attempt < ATTEMPTS:
            time.sleep(2.0 ** (attempt - 1))
    raise EngineError(
        what, "start it, as in `vllm serve MODEL`, and write rollout.url=http://HOST:8000/v1; what is measured is kept"
    )
