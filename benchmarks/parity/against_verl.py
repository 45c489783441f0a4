"""CARE-RFT's penalty inside verl's own loss, as docs/integrations.md puts it there.

    python benchmarks/parity/against_verl.py

Runs verl's `ppo_loss` on random log-probabilities and compares its KL loss and that part of its gradient with the
skew reverse KL written out. Needs verl (tested: 0.9.1; `pip install --no-deps verl tensordict codetiming` suffices
beside carerft). Prints the largest differences; exits with 1 if one is above rounding.
"""

import sys
from unittest.mock import patch

import torch

try:
    import verl
    import verl.workers.utils.losses as losses
    from tensordict import TensorDict
    from verl.trainer.ppo.core_algos import kl_penalty as verls_own
    from verl.workers.config import FSDPActorConfig
except ImportError as error:
    raise SystemExit(f"{error}\npip install --no-deps verl tensordict codetiming") from error

from carerft.integrations.penalty import srkl_penalty

ALPHA, BETA, SHAPE = 0.8, 0.5, (6, 11)


def kl_loss_and_gradient(penalty, log_pi, data) -> tuple[float, torch.Tensor]:
    """verl's logged KL loss, and the gradient of its whole loss less that of the loss without penalty. (B, T)."""
    gradients, value = [], 0.0
    for use in (True, False):
        leaf = log_pi.clone().requires_grad_()
        config = FSDPActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, use_kl_loss=use, kl_loss_coef=BETA
        )
        batch = TensorDict({**data, "old_log_probs": log_pi.clone()}, batch_size=SHAPE[0])  # a batch's first step
        for name, given in {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None}.items():
            batch.set_non_tensor(name, given)
        with (
            patch.object(losses, "kl_penalty", penalty),
            patch.object(losses, "no_padding_2_padding", lambda tensor, _: tensor),
            patch.object(TensorDict, "to_padded_tensor", lambda self, *_: self, create=True),
        ):
            loss, metrics = losses.ppo_loss(config, {"log_probs": leaf}, batch)
        loss.backward()
        gradients.append(leaf.grad)
        value = float(metrics["kl_loss"].aggregate()) if use else value
    return value, gradients[0] - gradients[1]


def main() -> None:
    torch.manual_seed(0)
    log_pi, log_ref = (-3 + 0.5 * torch.randn(SHAPE) for _ in range(2))
    mask = torch.arange(SHAPE[1])[None, :] < torch.randint(3, SHAPE[1] + 1, (SHAPE[0], 1))
    data = {
        "response_mask": mask.long(),
        "ref_log_prob": log_ref,
        "advantages": torch.randn(SHAPE[0], 1).expand(SHAPE).clone(),
    }

    def written_out(alpha: float) -> tuple[float, torch.Tensor]:
        leaf = log_pi.double().requires_grad_()
        log_m = torch.log(alpha * leaf.exp() + (1 - alpha) * log_ref.double().exp())
        penalty = torch.exp(leaf - leaf.detach()) * (torch.exp(log_m - leaf) - 1 - (log_m - leaf))
        mean = penalty[mask].mean()
        (BETA * mean).backward()
        return float(mean.detach()), leaf.grad

    print(f"verl {verl.__version__}, mean over tokens, beta {BETA}: largest differences from the formula")
    failed = False
    for alpha in (ALPHA, 0.0):

        def care(logprob, ref_logprob, kl_penalty, alpha=alpha):
            return srkl_penalty(logprob, ref_logprob, alpha)

        value, gradient = kl_loss_and_gradient(care, log_pi, data)
        expected, slope = written_out(alpha)
        difference, steepest = abs(value - expected), float((gradient - slope).abs().max())
        failed |= not max(difference, steepest) < 1e-6
        print(f"  alpha {alpha}: KL loss {value:.6f}, off by {difference:.1e}; gradient off by {steepest:.1e}")
    own, _ = kl_loss_and_gradient(verls_own, log_pi, data)
    print(f"  verl's own penalty (kl_loss_type=low_var_kl): {own:.6f}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
