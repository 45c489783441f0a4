"""Stop strings, for a sampler that has none of its own."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from carerft.errors import ConfigError


class StopStrings:
    """Follows the text of R completions, token by token, as vLLM does: without special tokens, without the prompt.

    The prompts only prime the decoders, for which a first token may need what precedes it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, stop: Sequence[str], prompts: Sequence[Sequence[int]]
    ):
        """Raises ConfigError where there is no tokenizer, or one that cannot decode a stream."""
        if tokenizer is None or not tokenizer.is_fast:
            raise ConfigError(
                f"stop strings {tuple(stop)} need a tokenizer of the tokenizers library",
                "give the worker the model's tokenizer, or leave the stop strings out",
            )
        self.tokenizer, self.stop = tokenizer.backend_tokenizer, tuple(stop)
        self.kept = max(map(len, self.stop)) - 1  # characters that a stop string may still begin with
        self.streams = [DecodeStream(ids=list(map(int, prompt)), skip_special_tokens=True) for prompt in prompts]
        self.tails = [""] * len(prompts)

    def completes(self, row: int, token: int) -> bool:
        """Whether this next token of the row's completion brings the end of a stop string."""
        text = self.tails[row] + (self.streams[row].step(self.tokenizer, token) or "")
        self.tails[row] = text[len(text) - min(len(text), self.kept) :]
        return any(stop in text for stop in self.stop)
