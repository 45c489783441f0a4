"""Stop strings, for a sampler that has none of its own."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from carerft.errors import ConfigError


class StopStrings:
    """Follows the text of R completions token by token, as vLLM does: without special tokens and without the prompt.

    The prompts only initialise the decoders: the text of a first token can depend on the token before it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, stop: Sequence[str], prompts: Sequence[Sequence[int]]
    ):
        """Raises ConfigError if there is no tokenizer, or it cannot decode a stream."""
        if tokenizer is None or not tokenizer.is_fast:
            raise ConfigError(
                f"stop strings {tuple(stop)} need a tokenizer of the tokenizers library",
                "give the worker the model's tokenizer, or leave the stop strings out",
            )
        self.tokenizer: Any = tokenizer.backend_tokenizer
        self.stop = tuple(stop)
        self.tail_length = max(map(len, self.stop)) - 1  # characters in which a stop string may have begun
        self.streams = [DecodeStream(ids=list(map(int, prompt)), skip_special_tokens=True) for prompt in prompts]
        self.tails = [""] * len(prompts)

    def completes(self, row: int, token: int) -> bool:
        """Appends this token to the row's completion. Returns whether it completes a stop string."""
        text = self.tails[row] + (self.streams[row].step(self.tokenizer, token) or "")
        self.tails[row] = text[max(0, len(text) - self.tail_length) :]
        return any(stop in text for stop in self.stop)
