"""Attention to cached keys, in the place of transformers' own "sdpa" while a model is sampled from or scored.

The queries that share a key head become one matrix, so that no key is repeated. transformers repeats all of them where
there is a mask, as prompts of unequal lengths need. On a CPU in bfloat16 this is several times faster. The name stays
"sdpa": models ask for it (MiniMax-M3 applies its selection of keys under this name and "eager" alone).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@contextmanager
def grouping_queries() -> Iterator[None]:
    """In this context "sdpa" is `grouped_attention`."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = grouped_attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (R, heads, T, D); key, value: (R, key heads, T', D). Returns (R, T, heads, D) and no attention weights.

    Where no key would be repeated, or each head has a mask of its own, it is transformers' own "sdpa".
    """
    heads, count = query.shape[1:3]
    own_masks = kwargs.get("position_bias") is not None or (attention_mask is not None and attention_mask.shape[1] > 1)
    repeats = heads != key.shape[1] and (count == 1 or attention_mask is not None)
    if own_masks or not repeats:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    queries = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # (R, key heads, heads that share one * T, D)
    if attention_mask is not None:
        attention_mask = attention_mask.repeat(1, 1, heads // key.shape[1], 1)
    attended = F.scaled_dot_product_attention(queries, key, value, attention_mask, scale=scaling)
    return attended.unflatten(2, (-1, count)).flatten(1, 2).transpose(1, 2).contiguous(), None  # some models need that
