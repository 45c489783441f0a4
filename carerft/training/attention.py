"""Attention over packed rows (`carerft.training.packing`), as a transformers attention function named "packed".

On a GPU in half precision this is torch's kernel for segments of any length, `varlen_attn`. Elsewhere it is
scaled_dot_product_attention over segments laid out as padded rectangles; padding exists only inside attention. Without
a packed row, as in sampling, it is `grouped_attention`.

A rectangle of completions of shared prompts needs a mask, of which kernels compute both halves. On a CPU, where torch's
kernel returns each query's normaliser, long ones are two attentions instead, to the prompts and to the completions.
"""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from carerft.model.grouped_attention import grouped_attention
from carerft.model.loading import attends_fully
from carerft.training.packing import Grid, Packed

NAME = "packed"
# torch 2.11 accepts grouped queries without this argument.
GROUPED_QUERIES: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)

# Tokens of prompt and completion up to which two attentions are no faster than one with a mask, which rounds as earlier
# versions did. They are 1.1 x faster at 768 tokens and, after a short prompt, 1.9 x at 4,096, in half of the memory.
LONG = 512


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Make a model's layers use packed attention, if its configuration allows that. Returns whether they do.

    Allowed are layers of `attends_fully`. A model that was loaded with another implementation than "sdpa" keeps it.
    Whether the layers hand the row on to attention, only trying shows (`carerft.training.hidden_states.best_layout`).
    Transformers' own packing is not used: some of its models ignore it (gpt-oss attends across sequences).
    """
    config = model.config.get_text_config()
    if attends_fully(model) and config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return config._attn_implementation == NAME


def use_own_attention(model: PreTrainedModel) -> None:
    """Undo `use_packed_attention`."""
    if model.config.get_text_config()._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")


@torch.compiler.disable  # its control flow depends on the lengths in a row, and its kernels are fused already
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
    """query: (1, heads, N, D); key, value: (1, key heads, N, D). Returns (1, N, heads, D) and no attention weights.

    attention_mask: ignored if there is a `packed` row. Raises ValueError if it is the placeholder that comes with a
    packed row, but the model's layers have lost the row on the way.
    """
    if packed is None:
        if attention_mask is not None and attention_mask.shape[-1] < key.shape[-2]:
            raise ValueError(f"{type(module).__name__} was not given the packed row: it would read across sequences")
        return grouped_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, D), as the projections returned them
    kind = q.device.type
    if torch.is_autocast_enabled(kind):  # rotary embeddings are float32; SDPA would cast back to this type, too
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256:
        return _varlen(q, k, v, packed, scaling)[None], None
    return _grids(module, q, k, v, packed, scaling)[None], None


def _varlen(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    row = packed.varlen
    if row.key_index is not None:
        k, v = k.index_select(0, row.key_index), v.index_select(0, row.key_index)
    attended = varlen_attn(
        q, k, v, row.query_starts, row.key_starts, row.longest_query, row.longest_key,
        scale=scaling, window_size=(-1, 0), **(GROUPED_QUERIES if q.shape[1] != k.shape[1] else {}),
    )  # fmt: skip
    return cast(Tensor, attended)  # a tuple only with return_aux


def _grids(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, packed: Packed, scaling: float | None) -> Tensor:
    return torch.cat([_grid(module, q, k, v, grid, scaling) for grid in packed.grids])


def _grid(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scaling: float | None) -> Tensor:
    """The outputs of the grid's tokens, (n, heads, D)."""

    def rectangle(x: Tensor, index: Tensor) -> Tensor:  # (N, heads, D) -> (k, heads, T, D)
        return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)

    queries, prefix, visible = rectangle(q, grid.queries), grid.prefix, grid.visible
    width = grid.queries.shape[1] + (0 if prefix is None else prefix.shape[1])
    if prefix is not None and visible is not None and q.device.type == "cpu" and width > LONG:
        mask = torch.zeros(prefix.shape, dtype=q.dtype).masked_fill(~visible, -torch.inf)[:, None, None]
        pairs = (rectangle(x, index) for index in (prefix, grid.queries) for x in (k, v))
        out = _Merged.apply(queries, *pairs, mask, scaling).transpose(1, 2)
    else:
        index = grid.queries if prefix is None else torch.cat([prefix, grid.queries], dim=1)
        keys, values = rectangle(k, index), rectangle(v, index)
        out = sdpa_attention_forward(module, queries, keys, values, grid.mask, scaling=scaling, is_causal=True)[0]
    return out.flatten(0, 1).index_select(0, grid.valid)  # (k, T, heads, D) -> (k * T, heads, D) -> (n, heads, D)


class _Merged(torch.autograd.Function):
    """Attention to a prefix and, causally, to a segment's own tokens: two attentions that skip what a mask would hide,
    merged by their normalisers.

    The kernel's backward pass needs of the forward pass each query's output and normaliser. Given the merged ones, it
    returns each part's share of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        prefix_k: Tensor,
        prefix_v: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        scale: float | None,
    ) -> Tensor:
        """q: (R, heads, T, D); prefix_k, prefix_v: (R, key heads, T_prefix, D); k, v: (R, key heads, T, D); mask:
        (R, 1, 1, T_prefix), 0 or, for padding, -inf. Returns (R, heads, T, D)."""
        before, before_log = _flash(q, prefix_k, prefix_v, attn_mask=mask, scale=scale)
        own, own_log = _flash(q, k, v, is_causal=True, scale=scale)
        log = torch.logaddexp(before_log, own_log)
        before_share, own_share = ((part - log).exp()[..., None] for part in (before_log, own_log))
        out = (before * before_share + own * own_share).to(q.dtype)
        ctx.save_for_backward(q, prefix_k, prefix_v, k, v, mask, out, log)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, prefix_k, prefix_v, k, v, mask, out, log = ctx.saved_tensors
        common = {"dropout_p": 0.0, "scale": ctx.scale}
        before, *prefix = _flash_backward(
            gradient, q, prefix_k, prefix_v, out, log, is_causal=False, attn_mask=mask, **common
        )
        own, *rest = _flash_backward(gradient, q, k, v, out, log, is_causal=True, **common)
        return before + own, *prefix, *rest, None, None


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
