"""The chunked head against the plain computation: values, gradients, and any size of chunk."""

import pytest
import torch

from carerft.head import token_statistics
from carerft.regularizers import skew_reverse_kl

N, H, V = 23, 8, 31


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": torch.randn(N, H, generator=generator, dtype=dtype).requires_grad_(),
        "weight": torch.randn(V, H, generator=generator, dtype=dtype).requires_grad_(),
        "targets": torch.randint(V, (N,), generator=generator),
        "ref_hidden": torch.randn(N, H, generator=generator, dtype=dtype),
        "ref_weight": torch.randn(V, H, generator=generator, dtype=dtype),
    }


def divergence(log_pi: torch.Tensor, log_ref: torch.Tensor) -> torch.Tensor:
    return skew_reverse_kl(log_pi, log_ref, 0.8)


@pytest.mark.parametrize("chunk", [1, 5, 23, 1000])
def test_chunks_change_nothing(chunk: int):
    given = inputs()
    found = token_statistics(**given, divergence=divergence, chunk_elements=chunk * V)
    log_pi = (given["hidden"] @ given["weight"].T).float().log_softmax(-1)
    log_ref = (given["ref_hidden"] @ given["ref_weight"].T).float().log_softmax(-1)
    rows = torch.arange(N)
    expected = {
        "log_prob": log_pi[rows, given["targets"]],
        "entropy": torch.distributions.Categorical(logits=log_pi).entropy(),
        "ref_log_prob": log_ref[rows, given["targets"]],
        "ref_kl": skew_reverse_kl(log_pi, log_ref, 0.0),
        "divergence": divergence(log_pi, log_ref),
    }
    for name, value in expected.items():
        assert torch.allclose(getattr(found, name), value, atol=1e-5), name
    coefficients = torch.linspace(-1, 1, N)
    for name in ("log_prob", "divergence"):
        wanted = torch.autograd.grad(
            (coefficients * expected[name]).sum(), [given["hidden"], given["weight"]], retain_graph=True
        )
        got = torch.autograd.grad(
            (coefficients * getattr(found, name)).sum(), [given["hidden"], given["weight"]], retain_graph=True
        )
        for a, b in zip(got, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-5), name


def test_without_a_reference():
    given = inputs()
    found = token_statistics(given["hidden"], given["weight"], given["targets"], chunk_elements=4 * V)
    assert found.ref_log_prob is None and found.divergence is None and found.log_prob.shape == (N,)


def test_bfloat16_hidden_states_are_normalised_in_float32():
    given = inputs(torch.bfloat16)
    found = token_statistics(**given, divergence=divergence)
    logits = (given["hidden"] @ given["weight"].T).float()
    assert found.log_prob.dtype == torch.float32
    assert torch.allclose(
        found.log_prob.exp(), logits.softmax(-1).gather(1, given["targets"][:, None])[:, 0], atol=1e-6
    )
