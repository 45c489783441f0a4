"""From hidden states to what the loss needs of each sampled token, without materialising all logits.

At Qwen's vocabulary (151,936) the logits of one batch are gigabytes. The forward pass computes them for a chunk of
tokens at a time and keeps a few numbers of each token. The backward pass computes them again, for all tokens and a
block of the vocabulary at a time: each block of the weight's gradient is then one matrix product, rounded once, with
nothing to accumulate. If all logits fit into one chunk, they are kept instead of recomputed.

Between the matrix products everything is elementwise arithmetic in float32 or better, on tiles that fit into a cache
or, if `fused`, by torch.compile: some hundred passes over memory become a few.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from carerft.objective.regularizers import Regularizer

CHUNK_ELEMENTS = 2**26  # logits of one chunk, of policy and reference each: 256 MiB in float32
TILE_ELEMENTS = {"cpu": 2**18, "cuda": 2**23}
CPU_COLUMNS = 8192  # of a matrix in half precision, copied to float32 at a time


class TokenStatistics(NamedTuple):
    """Statistics of N sampled tokens; each (N,), in nats, float32 (float64 if the hidden states are).

    log_prob: log-probability of the token under the policy; differentiable.
    entropy: entropy of the policy in the token's state; differentiable.
    ref_log_prob: log-probability of the token under the reference; None without a reference.
    ref_kl: exact KL(policy || reference) in the token's state, for monitoring; None without a reference.
    divergence: exact divergence of the policy from the reference in the token's state; differentiable; None unless
        requested.
    """

    log_prob: Tensor
    entropy: Tensor
    ref_log_prob: Tensor | None = None
    ref_kl: Tensor | None = None
    divergence: Tensor | None = None


def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ref_hidden: Tensor | None = None,
    ref_weight: Tensor | None = None,
    divergence: Regularizer | None = None,
    fused: bool = False,
) -> TokenStatistics:
    """Log-probability, entropy and divergence of each token.

    hidden: (N, H) final hidden states that predict the tokens; weight: (V, H) of the LM head; targets: (N,) tokens.
    ref_hidden (N, H'), ref_weight (V, H'): the reference's, without gradient. divergence: its `summand_and_slope` is
    summed over the vocabulary. fused: compile the elementwise arithmetic, which takes seconds for each shape and
    divergence.

    Operands of matrix products have the hidden states' precision (autocast's, within autocast); products and all that
    follows are float32 or better.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):  # autocast would round the products, too
        return TokenStatistics(*_Head.apply(hidden, weight, targets, ref_hidden, ref_weight, divergence, fused, dtype))


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ref_hidden: Tensor | None,
        ref_weight: Tensor | None,
        divergence: Regularizer | None,
        fused: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        tokens, vocabulary = len(targets), len(weight)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        rows = max(1, min(tokens, CHUNK_ELEMENTS // vocabulary))
        keep = needs_grad and tokens <= rows
        # The weights are cast once here, not once for every chunk.
        models = [(hidden, weight.to(dtype))]
        if ref_hidden is not None and ref_weight is not None:
            models.append((ref_hidden, ref_weight.to(dtype)))
        logits = [_logits_buffer(hidden, rows, vocabulary, dtype) for _ in models]
        tile = _fused(_forward_tile) if fused else _forward_tile
        tiles = []
        for start in range(0, tokens, rows):
            chunk = slice(start, min(start + rows, tokens))
            for out, (h, w) in zip(logits, models, strict=True):
                _write_logits(out, h[chunk], w, dtype)
            for r in _tiles(chunk.stop - start, vocabulary, hidden.device.type):
                tiles.append(tile(targets[chunk][r], divergence, needs_grad, keep, *(out[r] for out in logits)))
        columns = [None if parts[0] is None else torch.cat(parts) for parts in zip(*tiles, strict=True)]
        log_prob, entropy, normaliser, ref_log_prob, ref_kl, ref_normaliser, value, slope_sum = columns
        ctx.kept = logits if keep else None  # by now log-probabilities and slopes: see _forward_tile
        ctx.divergence, ctx.dtype, ctx.fused = divergence, dtype, fused
        ctx.save_for_backward(
            hidden, weight, targets, ref_hidden, ref_weight, entropy, normaliser, ref_normaliser, slope_sum
        )
        ctx.mark_non_differentiable(*(x for x in (ref_log_prob, ref_kl) if x is not None))
        return log_prob, entropy, ref_log_prob, ref_kl, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, ref_hidden, ref_weight, entropy, normaliser, ref_normaliser, slope_sum = (
            ctx.saved_tensors
        )
        g_log_prob, g_entropy, _, _, g_divergence = gradients
        models = [(hidden, weight)] if g_divergence is None else [(hidden, weight), (ref_hidden, ref_weight)]
        tokens, vocabulary = len(targets), len(weight)
        # d loss / d logit = g_log_prob (1[target] - pi) - g_entropy pi (log pi + entropy)
        #                    + g_divergence (slope - pi sum slope)
        constant = torch.zeros_like(entropy)
        if g_log_prob is not None:
            constant -= g_log_prob
        if g_entropy is not None:
            constant -= g_entropy * entropy
        if g_divergence is not None:
            constant -= g_divergence * slope_sum
        kept = ctx.kept is not None
        columns = vocabulary if kept else max(1, min(vocabulary, CHUNK_ELEMENTS // tokens))
        logits = ctx.kept or [_logits_buffer(hidden, tokens, columns, ctx.dtype) for _ in models]
        z = logits[0]
        grad_hidden = torch.zeros_like(hidden, dtype=z.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        tile = _fused(_backward_tile) if ctx.fused else _backward_tile
        for start in range(0, vocabulary, columns):
            block = slice(start, min(start + columns, vocabulary))
            width = block.stop - start
            if not kept:
                for out, (h, w) in zip(logits, models, strict=True):
                    _write_logits(out, h, w[block], ctx.dtype)
            for r in _tiles(tokens, width, hidden.device.type):
                slopes = None if g_divergence is None else (logits[1][r, :width], ref_normaliser[r], g_divergence[r])
                g_entropy_tile = None if g_entropy is None else g_entropy[r]
                tile(z[r, :width], normaliser[r], constant[r], g_entropy_tile, slopes, ctx.divergence, kept)
            if g_log_prob is not None:
                inside = torch.nonzero((targets >= start) & (targets < block.stop)).squeeze(-1)
                z.index_put_((inside, targets[inside] - start), g_log_prob[inside], accumulate=True)
            grad_logits = z[:tokens, :width].to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden += _product(grad_logits, weight[block].to(ctx.dtype))
            if grad_weight is not None:
                grad_weight[block] = _product(grad_logits.T, hidden.to(ctx.dtype))
        ctx.kept = None
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _forward_tile(
    targets: Tensor, divergence: Regularizer | None, needs_grad: bool, keep: bool, z: Tensor, y: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """The statistics of n tokens from their logits z (n, V) and the reference's y (n, V).

    z becomes the policy's log-probabilities, y the reference's or, with `keep`, the divergence's slope, which is all
    that the backward pass needs of the reference.
    """
    normaliser = z.logsumexp(-1)
    log_pi = z.sub_(normaliser[:, None])
    pi = log_pi.exp()
    log_prob = log_pi.gather(-1, targets[:, None]).squeeze(-1)
    entropy = -torch.linalg.vecdot(pi, log_pi)
    if y is None:
        return log_prob, entropy, normaliser, None, None, None, None, None
    ref_normaliser = y.logsumexp(-1)
    log_ref = y.sub_(ref_normaliser[:, None])
    ref_log_prob = log_ref.gather(-1, targets[:, None]).squeeze(-1)
    ref_kl = -entropy - torch.linalg.vecdot(pi, log_ref)
    value = slope_sum = None
    if divergence is not None and needs_grad:
        summand, slope = divergence.summand_and_slope(log_pi, log_ref)
        value, slope_sum = summand.sum(-1), slope.sum(-1)
        if keep:
            log_ref.copy_(slope)
    elif divergence is not None:
        value = divergence.summand(log_pi, log_ref).sum(-1)
    return log_prob, entropy, normaliser, ref_log_prob, ref_kl, ref_normaliser, value, slope_sum


def _backward_tile(
    z: Tensor,
    normaliser: Tensor,
    constant: Tensor,
    g_entropy: Tensor | None,
    slopes: tuple[Tensor, Tensor, Tensor] | None,
    divergence: Regularizer | None,
    kept: bool,
) -> None:
    """Turn z (n, columns) into the gradient with respect to the logits, without log_prob's part at the targets.

    z: the logits or, if `kept`, the log-probabilities. slopes: the reference's logits or, if `kept`, the divergence's
    slope (n, columns); the reference's normaliser (n,); the gradient with respect to the divergence (n,).
    """
    log_pi = z if kept else z.sub_(normaliser[:, None])
    if slopes is None and g_entropy is None:
        log_pi.exp_().mul_(constant[:, None])
        return
    grad = constant[:, None]
    if g_entropy is not None:
        grad = torch.addcmul(grad, log_pi, g_entropy[:, None], value=-1)
    grad = log_pi.exp() * grad
    if slopes is not None and divergence is not None:
        slope, ref_normaliser, g_divergence = slopes
        if not kept:
            _, slope = divergence.summand_and_slope(log_pi, slope - ref_normaliser[:, None])
        grad.addcmul_(slope, g_divergence[:, None])
    log_pi.copy_(grad)


@cache
def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def _logits_buffer(hidden: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)


def _write_logits(out: Tensor, hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """Write hidden @ weight.T, with operands in `dtype`, to the upper left corner of `out`."""
    _product(hidden.to(dtype), weight.to(dtype).T, out[: len(hidden), : len(weight)])


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in float32 or better; the operands may be in half precision."""
    if a.dtype in (torch.float32, torch.float64):
        return torch.mm(a, b, out=out)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    # On a CPU torch has no such product; parts of the operands are copied to float32. Where they are multiplied in
    # bfloat16 and added up in float32, nothing is rounded that was not rounded before.
    out = torch.empty(len(a), b.shape[1], device=a.device) if out is None else out
    with _bfloat16_factors(a.dtype == torch.bfloat16):
        for start in range(0, b.shape[1], CPU_COLUMNS):
            block = slice(start, start + CPU_COLUMNS)
            out[:, block] = a.float() @ b[:, block].float()
    return out


@contextmanager
def _bfloat16_factors(enabled: bool) -> Iterator[None]:
    """Let a CPU that can multiply the factors of float32 products in bfloat16, twice as fast. The setting is the whole
    process's: no other thread may multiply meanwhile."""
    setting: Any = cast(Any, torch.backends.mkldnn).matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16" if enabled else before
    try:
        yield
    finally:
        setting.fp32_precision = before


def _tiles(rows: int, columns: int, device: str) -> Iterator[slice]:
    """Rows of equal tiles, an eighth larger than TILE_ELEMENTS rather than that a few rows are left to another."""
    size = max(1, TILE_ELEMENTS.get(device, TILE_ELEMENTS["cuda"]) // columns)
    size = math.ceil(rows / math.ceil(rows / (size + size // 8)))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
