"""Attention to cached keys, as a transformers attention function named "grouped".

The queries that share a key head become one matrix, so that no key is repeated. transformers repeats all of them where
there is a mask, as prompts of unequal lengths need. On a CPU in bfloat16 this is several times faster.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "grouped"


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Make a model's layers use it in the place of "sdpa"; one with another implementation keeps that."""
    config = model.config.get_text_config()
    heads, key_heads = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if config._attn_implementation == "sdpa" and key_heads not in (None, heads):
        model.set_attn_implementation(NAME)


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


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
