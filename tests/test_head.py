"""The chunked head against the plain computation: values, gradients, precision, and any size of chunk."""

import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from carerft.objective import lm_head
from carerft.objective.lm_head import TokenStatistics, token_statistics
from carerft.objective.regularizers import ForwardKL, JensenShannon, Regularizer, ReverseKL, SkewReverseKL

N, H, V = 23, 8, 31
DIVERGENCES = [SkewReverseKL(), SkewReverseKL(alpha=0.0), ReverseKL(), ForwardKL(), JensenShannon()]
DIFFERENTIABLE = ("log_prob", "entropy", "divergence")


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": torch.randn(N, H, generator=generator, dtype=dtype).requires_grad_(),
        "weight": torch.randn(V, H, generator=generator, dtype=dtype).requires_grad_(),
        "targets": torch.randint(V, (N,), generator=generator),
        "ref_hidden": torch.randn(N, H, generator=generator, dtype=dtype),
        "ref_weight": torch.randn(V, H, generator=generator, dtype=dtype),
    }


def plain(given: dict[str, torch.Tensor], divergence: Regularizer, dtype: torch.dtype) -> TokenStatistics:
    """The same from full logits, in `dtype`, by automatic differentiation throughout."""
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    log_pi = (cast["hidden"] @ cast["weight"].T).log_softmax(-1)
    log_ref = (cast["ref_hidden"] @ cast["ref_weight"].T).log_softmax(-1)
    rows = torch.arange(N)
    pi = log_pi.exp()
    return TokenStatistics(
        log_prob=log_pi[rows, given["targets"]],
        entropy=-(pi * log_pi).sum(-1),
        ref_log_prob=log_ref[rows, given["targets"]],
        ref_kl=(pi * (log_pi - log_ref)).sum(-1),
        divergence=divergence.divergence(log_pi, log_ref),
    )


def gradients(given: dict[str, torch.Tensor], found: TokenStatistics, names: tuple[str, ...]) -> list[torch.Tensor]:
    """Of a loss that weighs each token, and each of the named statistics, differently."""
    loss = sum((torch.linspace(-1, 1 + i, N).double() * getattr(found, name)).sum() for i, name in enumerate(names))
    return list(torch.autograd.grad(loss, [given["hidden"], given["weight"]], retain_graph=True))


@pytest.mark.parametrize("chunk", [V, 5 * V, 7 * N, 10**6], ids=["one row", "five rows", "seven columns", "kept"])
@pytest.mark.parametrize("tile", [1, 64, 10**6])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: f"{type(d).__name__}{getattr(d, 'alpha', '')}")
def test_chunks_and_tiles_change_nothing(monkeypatch, chunk: int, tile: int, divergence: Regularizer):
    monkeypatch.setitem(lm_head.TILE_ELEMENTS, "cpu", tile)
    monkeypatch.setattr(lm_head, "CHUNK_ELEMENTS", chunk)
    given = inputs()
    found = token_statistics(**given, divergence=divergence)
    expected = plain(given, divergence, torch.float64)
    for name, value in expected._asdict().items():
        assert getattr(found, name).dtype == torch.float64
        assert torch.allclose(getattr(found, name), value, atol=1e-13), name
    for names in [*((name,) for name in DIFFERENTIABLE), DIFFERENTIABLE, ("log_prob", "divergence")]:
        wanted = gradients(given, expected, names)
        for _ in range(2):  # a second pass over the same graph must not find what the first has overwritten
            for a, b in zip(gradients(given, found, names), wanted, strict=True):
                assert torch.allclose(a, b, atol=1e-12), names


def test_gradient_by_finite_differences():
    given = inputs()
    differentiable = (given["hidden"], given["weight"])

    def statistics(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = token_statistics(**{**given, "hidden": hidden, "weight": weight}, divergence=SkewReverseKL())
        return found.log_prob, found.entropy, found.divergence

    assert torch.autograd.gradcheck(statistics, differentiable, atol=1e-7)


@pytest.mark.parametrize("chunk", [4 * V, 10**6])
def test_without_a_reference(monkeypatch, chunk: int):
    monkeypatch.setattr(lm_head, "CHUNK_ELEMENTS", chunk)
    given = inputs()
    found = token_statistics(given["hidden"], given["weight"], given["targets"])
    assert found.ref_log_prob is None and found.ref_kl is None and found.divergence is None
    expected = plain(given, SkewReverseKL(), torch.float64)
    for a, b in zip(gradients(given, found, ("log_prob",)), gradients(given, expected, ("log_prob",)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_the_reference_gets_no_gradient():
    given = inputs()
    given["ref_hidden"].requires_grad_()
    given["ref_weight"].requires_grad_()
    found = token_statistics(**given, divergence=SkewReverseKL())
    (found.log_prob + found.divergence).sum().backward()
    assert given["ref_hidden"].grad is None and given["ref_weight"].grad is None
    assert not found.ref_log_prob.requires_grad and not found.ref_kl.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [5 * V, 10**6])
def test_half_precision_operands_are_multiplied_and_normalised_in_float32(monkeypatch, dtype: torch.dtype, chunk: int):
    monkeypatch.setattr(lm_head, "CHUNK_ELEMENTS", chunk)
    given = inputs(dtype)
    found = token_statistics(**given, divergence=SkewReverseKL())
    expected = plain(given, SkewReverseKL(), torch.float64)  # of the very same rounded operands
    for name, value in expected._asdict().items():
        assert getattr(found, name).dtype == torch.float32
        assert torch.allclose(getattr(found, name).double(), value, atol=2e-6), name
    for a, b in zip(gradients(given, found, DIFFERENTIABLE), gradients(given, expected, DIFFERENTIABLE), strict=True):
        assert a.dtype == dtype
        # d logits and the result are each rounded once to the operands' precision
        assert (a - b).norm() < 2 * torch.finfo(dtype).eps * b.norm()


def test_a_large_product_of_half_precision_operands_is_a_float32_one(monkeypatch):
    """Large enough for kernels that multiply in bfloat16. What they add up is float32: rounding the sums to bfloat16
    would be a thousand times as wrong as this. The setting that chooses them is put back."""
    monkeypatch.setattr(lm_head, "CPU_COLUMNS", 600)
    before = torch.backends.mkldnn.matmul.fp32_precision
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((300, 512), (512, 1000)))
    found, expected = lm_head._product(a, b), a.double() @ b.double()
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) < 2e-6 * float(expected.abs().max())
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_autocast_decides_the_operands_precision():
    given = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_statistics(**given, divergence=SkewReverseKL())
    rounded = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.items()}
    expected = token_statistics(**rounded, divergence=SkewReverseKL())
    assert torch.equal(found.log_prob, expected.log_prob) and torch.equal(found.divergence, expected.divergence)
    found.log_prob.sum().backward()
    assert given["weight"].grad.dtype == torch.float32


def test_large_logits_stay_finite():
    """Logits in the hundreds: probabilities of exactly 0 and 1, log-ratios far beyond +-80."""
    given = inputs(torch.float32)
    with torch.no_grad():
        given["hidden"] *= 100
        given["ref_hidden"] *= -100
    for divergence in DIVERGENCES:
        found = token_statistics(**given, divergence=divergence)
        assert all(torch.isfinite(value).all() for value in found._asdict().values()), divergence
        for gradient in gradients(given, found, DIFFERENTIABLE):
            assert torch.isfinite(gradient).all(), divergence
    skewed = token_statistics(**given, divergence=SkewReverseKL(alpha=0.8)).divergence
    # A logit of size x leaves a log-probability with a rounding error of x eps.
    rounding = torch.finfo(torch.float32).eps * float((given["hidden"] @ given["weight"].T).detach().abs().max())
    assert skewed.max() <= math.log(1 / 0.8) + rounding


def test_no_tensor_of_all_logits_is_kept_or_made(monkeypatch):
    """Neither saved for the backward pass nor allocated on the way: nothing reaches N * V elements."""
    given, largest = inputs(), []
    write = lm_head._write_logits

    def watched(out: torch.Tensor, *operands: object) -> None:
        largest.append(out.numel())
        write(out, *operands)

    monkeypatch.setattr(lm_head, "_write_logits", watched)
    monkeypatch.setattr(lm_head, "CHUNK_ELEMENTS", 5 * V)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        largest.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        found = token_statistics(**given, divergence=SkewReverseKL())
    (found.log_prob + found.divergence).sum().backward()
    assert max(largest) <= max(5 * V, V * H) < N * V


def test_a_summand_of_ones_own_needs_no_slope(monkeypatch):
    monkeypatch.setattr(lm_head, "CHUNK_ELEMENTS", 5 * V)

    class Hellinger(Regularizer):
        def summand(self, log_pi: torch.Tensor, log_ref: torch.Tensor) -> torch.Tensor:
            return 0.5 * ((log_pi / 2).exp() - (log_ref / 2).exp()).square()

    given = inputs()
    found = token_statistics(**given, divergence=Hellinger())
    expected = plain(given, Hellinger(), torch.float64)
    assert torch.allclose(found.divergence, expected.divergence, atol=1e-13)
    for a, b in zip(gradients(given, found, DIFFERENTIABLE), gradients(given, expected, DIFFERENTIABLE), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 54, 55, 56, 61, 62, 111, 440, 441])
def test_no_tile_is_left_with_a_few_rows(rows: int):
    """At Qwen's vocabulary a tile of 2^23 logits has 55 rows, and a chunk of 2^26 has 441, one more than eight."""
    assert (lm_head.TILE_ELEMENTS["cuda"] // 151_936, lm_head.CHUNK_ELEMENTS // 151_936) == (55, 441)
    tiles = list(lm_head._tiles(rows, 151_936, "cuda"))
    sizes = [tile.stop - tile.start for tile in tiles]
    assert [row for tile in tiles for row in range(rows)[tile]] == list(range(rows))
    assert max(sizes) <= 61 and sizes[-1] >= min(rows, 0.5 * max(sizes)) and (rows != 441 or len(tiles) == 8)
