"""Warns of a model that cannot read its own prompts: whose tokenizer and weights do not belong together."""

import logging
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from carerft.rollout import RolloutWorker

log = logging.getLogger(__name__)

PROMPTS, TOKENS = 4, 64  # how many prompts are read, and how much of each
ABSURD = 6.0  # nats a token; language models have 2 to 4 on text, and a uniform guess of 400 tokens has 6


def warn_of_absurd_loss(
    worker: RolloutWorker, prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> float | None:
    """The model's loss on the first prompts, in nats a token, with a warning if it is absurd. None: prompts of a token.

    worker: synchronised.
    """
    texts = [list(prompt[:TOKENS]) for prompt in prompts[:PROMPTS] if len(prompt) > 1]
    if not texts:
        return None
    total = sum(worker.log_likelihood([text[:1] for text in texts], [text[1:] for text in texts]))
    loss = -total / sum(len(text) - 1 for text in texts)
    if not loss <= ABSURD:
        log.warning(
            "the model's loss on the first prompts is %.1f nats a token, as if it could not read them (a language "
            "model has 2 to 4): %s",
            loss, _cause(texts[0][0], tokenizer),
        )  # fmt: skip
    return loss


def _cause(first: int, tokenizer: PreTrainedTokenizerBase) -> str:
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and first != bos:
        return (
            f"its tokenizer has a token for the beginning of a text, {tokenizer.bos_token}, and does not put it there. "
            "If the model was trained with it (Gemma and Llama were; conversions from GGUF lose this), write "
            '"add_bos_token": true into tokenizer_config.json, or convert the tokenizer again'
        )
    return "the tokenizer or the weights may be those of another model"
