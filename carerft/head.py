"""From hidden states to what the loss needs of each sampled token, without holding all logits at once.

At Qwen's vocabulary (151,936) the logits of one batch are gigabytes. Tokens are taken in chunks; each chunk's logits
are recomputed in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**25  # logits of one chunk: 128 MiB in float32


@dataclass
class TokenStatistics:
    """Of N sampled tokens; each (N,) float32, in nats.

    log_prob: of the token under the policy; differentiable.
    entropy: of the policy in the token's state; detached.
    ref_log_prob: of the token under the reference; None without one.
    ref_kl: KL(policy || reference) in the token's state, the exact sum, for watching; detached; None without one.
    divergence: of the policy from the reference in the token's state; differentiable; None unless asked for.
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
    divergence: Callable[[Tensor, Tensor], Tensor] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> TokenStatistics:
    """Log-probability, entropy and divergence of each token.

    hidden: (N, H) final hidden states in which the tokens were chosen; weight: (V, H) of the LM head; targets: (N,).
    ref_hidden (N, H'), ref_weight (V, H'): the reference's, no gradient. divergence: ((n, V), (n, V)) -> (n,) of
    log-probabilities. Logits are made in the inputs' precision (and autocast's) and normalised in float32.
    """

    def chunk(h: Tensor, w: Tensor, t: Tensor, rh: Tensor | None) -> tuple[Tensor | None, ...]:
        log_pi = (h @ w.T).float().log_softmax(-1)  # (n, V)
        log_prob = log_pi.gather(-1, t[:, None]).squeeze(-1)
        with torch.no_grad():
            pi = log_pi.exp()
            entropy = -(pi * log_pi).sum(-1)
            if rh is None or ref_weight is None:
                return log_prob, entropy, None, None, None
            log_ref = (rh @ ref_weight.T).float().log_softmax(-1)
            ref_log_prob = log_ref.gather(-1, t[:, None]).squeeze(-1)
            ref_kl = -entropy - (pi * log_ref).sum(-1)
        return log_prob, entropy, ref_log_prob, ref_kl, divergence(log_pi, log_ref) if divergence else None

    size = max(1, chunk_elements // weight.shape[0])
    if len(targets) <= size:
        return TokenStatistics(*chunk(hidden, weight, targets, ref_hidden))
    parts = []
    for start in range(0, len(targets), size):
        piece = slice(start, start + size)
        rh = None if ref_hidden is None else ref_hidden[piece]
        parts.append(checkpoint(chunk, hidden[piece], weight, targets[piece], rh, use_reentrant=False))
    return TokenStatistics(
        *(torch.cat(column) if column[0] is not None else None for column in zip(*parts, strict=True))
    )
