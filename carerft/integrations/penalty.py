"""CARE-RFT's penalty as one function, for trainers that take such a function: docs/integrations.md."""

from torch import Tensor

from carerft.objective.regularizers import SkewReverseKL


def srkl_penalty(logprob: Tensor, ref_logprob: Tensor, alpha: float = 0.8, old_logprob: Tensor | None = None) -> Tensor:
    """The skew reverse KL's per-token penalty, >= 0, to be averaged and multiplied by beta (arXiv 2602.00085).

    logprob, ref_logprob, old_logprob: (...) log-probabilities (nats) of the sampled tokens under the policy, the
    reference, and the policy that sampled them; None: the policy itself, as in the first step of a batch. The gradient
    flows through logprob alone, and its mean over sampled tokens is the divergence's (docs/method.md, `unbiased`).
    alpha: the policy's share of the mixture; 0 is reverse KL.
    """
    penalty = SkewReverseKL(alpha=alpha, estimator="unbiased")
    return penalty.estimate(logprob, ref_logprob.detach(), logprob if old_logprob is None else old_logprob)
