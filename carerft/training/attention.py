"""Attention over packed rows (`carerft.training.packing`), as a transformers attention function named "packed".

Where the device has a kernel for segments of any length (torch's `varlen_attn`: GPUs, half precision), that; elsewhere
scaled_dot_product_attention over segments laid out as rectangles, in which only attention computes padding. A call
without a packed row, as in sampling, is transformers' own "sdpa".
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from carerft.training.packing import Grid, Packed

NAME = "packed"
# torch 2.11 takes queries in groups without being told.
GROUPED_QUERIES = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Let a model's layers attend to packed rows by the functions here, if these are right for it.

    They are for layers that see their whole context and weigh it by nothing but queries and keys (Qwen2, Qwen3, Llama).
    A model that was loaded with another implementation than "sdpa" keeps it. Nothing is left to transformers' own
    packing, which not all of its models know of (gpt-oss reads across sequences).
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    plain = layers == {"full_attention"} and not getattr(config, "attn_logit_softcapping", None)
    plain = plain and not any(name.endswith("sinks") for name, _ in model.named_parameters())
    if plain and config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return config._attn_implementation == NAME


@torch.compiler.disable  # what it does follows the lengths in a row; its kernels are fused already
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Packed | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (1, heads, N, D); key, value: (1, key heads, N, D). Returns (1, N, heads, D).

    attention_mask: not looked at where a row is `packed`.
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, D), as the projections made them
    kind = q.device.type
    if torch.is_autocast_enabled(kind):  # rotations in float32 have undone it; SDPA would do the same
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256:
        return _varlen(q, k, v, packed, scaling)[None], None
    return _grids(module, q, k, v, packed, scaling)[None], None


def _varlen(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    row = packed.varlen
    if row.places is not None:
        k, v = k.index_select(0, row.places), v.index_select(0, row.places)
    return varlen_attn(
        q, k, v, row.queries, row.keys, row.longest_query, row.longest_key,
        scale=scaling, window_size=(-1, 0), **(GROUPED_QUERIES if q.shape[1] != k.shape[1] else {}),
    )  # fmt: skip


def _grids(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    parts = [_grid(module, q, k, v, grid, scaling) for grid in packed.grids]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _grid(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scaling: float | None) -> Tensor:
    """(n, heads, D): the outputs of the grid's tokens."""

    def rectangle(x: Tensor, places: Tensor) -> Tensor:  # (N, heads, D) -> (k, heads, T, D)
        own = x[grid.span] if grid.span and places.shape == grid.queries.shape else x.index_select(0, places.flatten())
        return own.unflatten(0, places.shape).transpose(1, 2)

    queries, keys, values = (rectangle(x, places) for x, places in ((q, grid.queries), (k, grid.keys), (v, grid.keys)))
    out = sdpa_attention_forward(module, queries, keys, values, grid.mask, scaling=scaling, is_causal=True)[0]
    out = out.flatten(0, 1)  # (k, T, heads, D) -> (k * T, heads, D)
    return out if grid.span else out.index_select(0, grid.real)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
