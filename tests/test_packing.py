"""Packed rows: what is in them, that nothing crosses from one sequence to another, and how a batch is cut."""

import copy
import heapq
import inspect
import itertools
import random
from collections.abc import Callable

import pytest
import torch
from helpers.models import VOCABULARY, random_rollouts, tiny_model
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from carerft.rollout import Rollouts
from carerft.training import attention, packing
from carerft.training.attention import use_packed_attention
from carerft.training.hidden_states import best_layout, completion_states
from carerft.training.packing import Grid, Layout, _parts, microbatches, pack

CPU = torch.device("cpu")


def batch(prompts: list[list[int]], completions: list[list[int]]) -> Rollouts:
    def padded(rows: list[list[int]]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    lengths = torch.tensor([len(row) for row in completions])
    tokens = padded(completions)
    return Rollouts(
        padded(prompts), torch.tensor([len(row) for row in prompts]), tokens, lengths,
        torch.zeros(tokens.shape), torch.ones(len(tokens), dtype=torch.bool),
    )  # fmt: skip


TWO = batch([[1, 2, 3], [4]], [[11, 12, 13], [21], [31, 32], [41, 42]])


def test_a_row_of_sequences():
    """Two of prompt 1 2 3 and one of prompt 4, without the last token of each: `1 2 3 11 12`, `1 2 3`, `4 31`."""
    row = pack(TWO, torch.tensor([0, 1, 2]), "separate", CPU)
    assert row.tokens.tolist() == [1, 2, 3, 11, 12, 1, 2, 3, 4, 31]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert row.starts.tolist() == [0, 5, 8, 10] and row.prefixes.tolist() == [-1, -1, -1]
    assert row.predictors.tolist() == [2, 3, 4, 7, 8, 9]
    assert row.varlen.key_index is None and row.varlen.query_starts.tolist() == row.varlen.key_starts.tolist() == [
        0,
        5,
        8,
        10,
    ]


def test_a_row_in_which_each_prompt_is_read_once():
    """The prompts `1 2 3` and `4`, then what is read of completions: `11 12` after the first, `31` after the second;
    sequence 1 is of one token, chosen in its prompt's last state."""
    row = pack(TWO, torch.tensor([0, 1, 2]), "shared", CPU)
    assert row.tokens.tolist() == [1, 2, 3, 4, 11, 12, 31]
    assert row.positions.tolist() == [0, 1, 2, 0, 3, 4, 1]
    assert row.starts.tolist() == [0, 3, 4, 6, 7] and row.prefixes.tolist() == [-1, -1, 0, 1]
    assert row.predictors.tolist() == [2, 4, 5, 2, 3, 6]
    assert row.varlen.query_starts.tolist() == [0, 3, 4, 6, 7] and row.varlen.key_starts.tolist() == [0, 3, 4, 9, 11]
    assert row.varlen.key_index.tolist() == [0, 1, 2, 3, 0, 1, 2, 4, 5, 3, 6]
    assert (row.varlen.longest_query, row.varlen.longest_key) == (3, 5)


def test_no_token_is_read_that_is_not_needed():
    """Prompts once each, and every completion without its last token: no padding goes through the layers."""
    rollouts, read = random_rollouts(3, 4), []
    model = tiny_model()
    use_packed_attention(model)
    model.get_input_embeddings().register_forward_hook(lambda module, arguments, out: read.append(arguments[0].numel()))
    completion_states(model, rollouts, torch.arange(12), "shared")
    assert read == [int(rollouts.prompt_lengths.sum() + (rollouts.lengths - 1).sum())]


SMALL = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128, "head_dim": 8, "pad_token_id": None,
}  # fmt: skip
OURS = {"llama": LlamaConfig(**SMALL), "qwen3": Qwen3Config(**SMALL)}
# Windows shorter than the sequences, a soft cap, sinks: what the functions here are not for.
THEIRS = {
    "mistral": MistralConfig(**SMALL, sliding_window=4),
    "gemma2": Gemma2Config(**SMALL, sliding_window=4, query_pre_attn_scalar=8),
    "gpt_oss": GptOssConfig(**SMALL, sliding_window=4, num_local_experts=2, num_experts_per_tok=1),
}
MODELS = OURS | THEIRS


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return tiny_model() if name == "qwen2" else AutoModelForCausalLM.from_config(copy.deepcopy(MODELS[name])).eval()


def alone(model: PreTrainedModel, rollouts: Rollouts, index: Tensor) -> Tensor:
    """The states of each sequence read by itself, by the model's own forward pass."""
    found = []
    for i in index.tolist():
        owner = i // rollouts.group_size
        prompt, n = rollouts.prompt_tokens[owner, : rollouts.prompt_lengths[owner]], int(rollouts.lengths[i])
        ids = torch.cat([prompt, rollouts.tokens[i, :n]])[None]
        found.append(model.get_decoder()(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1])
    return torch.cat(found)


def close(found: Tensor, expected: Tensor) -> bool:
    """Within float32's rounding over some tens of sums."""
    return torch.allclose(
        found, expected, rtol=0, atol=100 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    )


def segment_by_segment(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int, **options: object
) -> Tensor:
    """What `varlen_attn` is documented to do with a window of (-1, 0): a segment's last query sees its last key."""
    grouped = attention.GROUPED_QUERIES if q.shape[1] != k.shape[1] else {}
    assert options == {"scale": options["scale"], "window_size": (-1, 0), **grouped}
    assert longest_q == int(cu_q.diff().max()) and longest_k == int(cu_k.diff().max())
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    parts = []
    for i in range(len(cu_q) - 1):
        own, seen = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        scores = torch.einsum("qhd,khd->hqk", q[own], k[seen]) * options["scale"]
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + scores.shape[2] - scores.shape[1])
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v[seen]))
    return torch.cat(parts)


def by_kernel_for_segments(module, query, key, value, mask, packed=None, scaling=None, **kwargs):
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attention._varlen(q, k, v, packed, scaling)[None], None


@pytest.mark.parametrize(
    ("layout", "kernel"),
    [(layout, kernel) for layout in ("shared", "separate") for kernel in ("rectangles", "segments")]
    + [("shared", "long rectangles")],
)
@pytest.mark.parametrize("name", ["qwen2", *OURS])
def test_packed_is_alone(name: str, layout: Layout, kernel: str, monkeypatch: pytest.MonkeyPatch):
    """States, and the gradient through them, of sequences of uneven and of even lengths."""
    if kernel == "long rectangles":
        monkeypatch.setattr(attention, "LONG", 0)
        monkeypatch.setattr(Grid, "mask", property(lambda grid: None if grid.prefix is None else pytest.fail("a mask")))
    if kernel == "segments":  # which needs a GPU: here with its documentation written out in its place
        monkeypatch.setattr(attention, "varlen_attn", segment_by_segment)
        monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, by_kernel_for_segments)
    model = made(name)
    for rollouts, index in ((random_rollouts(3, 4), [0, 2, 3, 5, 8, 9, 10, 11]), (even(), [1, 2, 3, 6, 7])):
        chosen = torch.tensor(index)
        expected = alone(model, rollouts, chosen)
        weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
        (expected * weights).sum().backward()
        wanted = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        assert use_packed_attention(model)
        found = completion_states(model, rollouts, chosen, layout)
        assert close(found, expected)
        (found * weights).sum().backward()
        parameters = dict(model.named_parameters())
        assert all(close(parameters[key].grad, gradient) for key, gradient in wanted.items())
        model.zero_grad()
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize(("tokens", "merged"), [(attention.LONG, False), (attention.LONG + 1, True)])
def test_short_rows_round_as_ever_and_long_ones_are_read_without_a_mask(tokens: int, merged: bool, monkeypatch):
    """A prompt of 12 tokens, and completions of which the longest is read up to so many tokens with it."""
    rollouts = batch([[1 + i % 7 for i in range(12)]], [[2, 3, 4], [5 + i % 11 for i in range(tokens - 12 + 1)]])
    model = made("qwen3")
    use_packed_attention(model)
    model.config.max_position_embeddings = 1024
    found = completion_states(model, rollouts, torch.arange(2), "shared")
    monkeypatch.setattr(attention, "LONG", 10_000)
    with_mask = completion_states(model, rollouts, torch.arange(2), "shared")
    assert torch.equal(found, with_mask) is not merged and close(found, with_mask)


def even() -> Rollouts:
    """Four prompts of 5 tokens and two completions of 7 each."""
    generator = torch.Generator().manual_seed(7)
    draw: Callable[[int, int], list[list[int]]] = lambda n, length: torch.randint(  # noqa: E731
        1, VOCABULARY, (n, length), generator=generator
    ).tolist()
    return batch(draw(4, 5), draw(8, 7))


@pytest.mark.parametrize("name", list(THEIRS))
def test_a_model_of_another_kind_reads_rows_of_their_own(name: str):
    model, rollouts, chosen = made(name), random_rollouts(3, 4), torch.tensor([0, 2, 3, 5, 8, 11])
    assert best_layout(model, share_prompts=True) == "padded"
    assert close(completion_states(model, rollouts, chosen, "padded"), alone(model, rollouts, chosen))


def test_a_row_is_refused_by_a_model_that_would_read_across_it():
    with pytest.raises(ValueError, match="use_packed_attention"):
        completion_states(tiny_model(), random_rollouts(3, 4), torch.arange(12), "shared")


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_nothing_crosses(layout: Layout):
    """Other tokens in one completion leave the states of all others as they were, to the last bit."""
    model, rollouts = tiny_model().eval(), random_rollouts(3, 4)
    use_packed_attention(model)
    before = completion_states(model, rollouts, torch.arange(12), layout)
    changed = 5
    rollouts.tokens[changed] = (rollouts.tokens[changed] + 7) % VOCABULARY
    after = completion_states(model, rollouts, torch.arange(12), layout)
    own = torch.repeat_interleave(torch.arange(12), rollouts.lengths) == changed
    assert torch.equal(before[~own], after[~own]) and not torch.equal(before[own], after[own])


def test_under_autocast_kernels_are_given_half_precision(monkeypatch: pytest.MonkeyPatch):
    """The kernel for segments takes nothing else, and rotary embeddings in float32 would make queries float32."""
    given, plain = [], attention._grids

    def watched(module, *rest):
        given.extend(x.dtype for x in rest[:3])
        return plain(module, *rest)

    monkeypatch.setattr(attention, "_grids", watched)
    model = tiny_model()
    use_packed_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        completion_states(model, random_rollouts(3, 4), torch.arange(12), "shared")
    assert len(given) == 3 * model.config.num_hidden_layers and set(given) == {torch.bfloat16}


def test_the_kernel_for_segments_takes_what_it_is_given():
    """Its arguments, in the installed version; what it computes needs a GPU."""
    inspect.signature(varlen_attn).bind(*range(7), scale=1.0, window_size=(-1, 0), **attention.GROUPED_QUERIES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_both_kernels_agree_on_a_gpu():
    model, rollouts = tiny_model().to("cuda", torch.bfloat16).eval(), random_rollouts(3, 4)
    expected = alone(model.float(), rollouts, torch.arange(12)).float()
    use_packed_attention(model.bfloat16())
    for layout in ("shared", "separate"):
        found = completion_states(model, rollouts, torch.arange(12), layout).float()
        assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_a_batch_is_cut_within_the_budget():
    """Six sequences of 6, 41, 8, 8, 13 and 4 tokens, prompts of one token included: 80 in all, four microbatches of 24.
    The longest first, to where there is least: 41 (more than the budget, alone), 13, 8, 8, then 6 and 4."""
    rollouts = batch([[1]] * 6, [[2] * n for n in (5, 40, 7, 7, 12, 3)])
    cut = microbatches(rollouts, 24, "separate")
    sizes = [sorted((rollouts.lengths[part] + 1).tolist(), reverse=True) for part in cut]
    assert sizes == [[41], [8, 6], [13], [8, 4]]
    assert sorted(torch.cat(cut).tolist()) == list(range(6))


def test_a_shared_prompt_counts_once():
    """Two prompts of 10 tokens with three completions of 5: 25 tokens each, of which 50 take both; 25 without sharing
    hold one sequence of 15."""
    rollouts = batch([[1] * 10] * 2, [[2] * 5] * 6)
    assert [part.tolist() for part in microbatches(rollouts, 50, "shared")] == [[0, 1, 2, 3, 4, 5]]
    assert [part.tolist() for part in microbatches(rollouts, 25, "shared")] == [[3, 4, 5], [0, 1, 2]]
    assert len(microbatches(rollouts, 25, "separate")) == 6
    # 20 hold a prompt and two completions: a group is then cut in two.
    assert [part.tolist() for part in microbatches(rollouts, 20, "shared")] == [[3, 4], [0, 1], [5], [2]]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_every_sequence_once_within_budget_and_balanced(processes: int, layout: Layout):
    """Sixteen prompts of eight completions, log-normal in length. Where each process has one microbatch, none is longer
    than another by more than the longest part, which is what greedy sharing guarantees."""
    generator = torch.Generator().manual_seed(3)
    lengths = (4 + torch.randn(128, generator=generator)).exp().long().clamp(1, 400).tolist()
    rollouts = batch([[1] * (5 + i) for i in range(16)], [[2] * n for n in lengths])
    for budget in (300, 2000, 100_000):
        cut = microbatches(rollouts, budget, layout, processes)
        assert sorted(torch.cat(cut).tolist()) == list(range(128)) and len(cut) % processes == 0
        loads = [len(pack(rollouts, part, layout, CPU).tokens) + len(part) if len(part) else 0 for part in cut]
        assert all(load <= budget or len(part) == 1 for load, part in zip(loads, cut, strict=True))
        if budget == 100_000:
            assert len(cut) == processes
            longest = max(len(pack(rollouts, part[:1], layout, CPU).tokens) for part in cut)
            assert max(loads) - min(loads) <= max(longest, max(lengths) + 20)


def test_padding_counts_as_tokens():
    """Three sequences of 10, 4 and 3 tokens are three of 10 where they are padded."""
    rollouts = batch([[1]] * 3, [[2] * 9, [2] * 3, [2] * 2])
    assert [part.tolist() for part in microbatches(rollouts, 20, "padded")] == [[0, 2], [1]]


def test_few_sequences_leave_processes_without_any():
    rollouts = batch([[1, 1]], [[2, 2], [2, 2, 2]])
    assert [part.tolist() for part in microbatches(rollouts, 100, "shared", 4)] == [[1], [0], [], []]


def cut_step_by_step(rollouts: Rollouts, token_budget: int, layout: Layout, processes: int) -> list[Tensor]:
    """The rule written out: one number of microbatches after another, until one is enough."""
    parts = sorted(_parts(rollouts, token_budget, layout, processes), key=lambda part: -part[0])
    count = processes * max(1, -(-sum(size for size, _ in parts) // (token_budget * processes)))
    while True:
        loads = [(0, number, []) for number in range(count)]
        for size, sequences in parts:
            load, number, assigned = loads[0]
            heapq.heapreplace(loads, (load + size, number, [*assigned, sequences]))
        if all(load <= token_budget or len(assigned) < 2 for load, _, assigned in loads):
            chained = (itertools.chain.from_iterable(assigned) for _, _, assigned in sorted(loads, reverse=True))
            return [torch.tensor(sorted(sequences), dtype=torch.int64) for sequences in chained]
        count += processes


@pytest.mark.parametrize("layout", ["shared", "separate", "padded"])
def test_the_number_of_microbatches_is_the_smallest(layout: Layout):
    """What is found by halving is what is found by trying one number after another: 300 random batches, of lengths that
    are even, just over half of the budget, or anything."""
    draw = random.Random(0)
    for _ in range(300):
        budget, group, prompts = draw.randint(8, 60), draw.randint(1, 6), draw.randint(1, 12)
        low, high = draw.choice([(1, budget), (budget // 2, budget // 2 + 3), (budget // 3, budget // 3 + 2), (5, 5)])
        rollouts = batch(
            [[1] * draw.randint(1, draw.choice([1, 9])) for _ in range(prompts)],
            [[2] * draw.randint(low, high) for _ in range(prompts * group)],
        )
        processes = draw.choice([1, 1, 2, 3, 8])
        found = microbatches(rollouts, budget, layout, processes)
        expected = cut_step_by_step(rollouts, budget, layout, processes)
        assert [part.tolist() for part in found] == [part.tolist() for part in expected]


def test_many_sequences_over_half_of_the_budget_are_cut_after_few_attempts(monkeypatch: pytest.MonkeyPatch):
    """4,096 sequences of which no two share a microbatch, where 2,049 microbatches would be the least by their sum."""
    attempts, greedy = [], packing._greedy
    monkeypatch.setattr(packing, "_greedy", lambda *rest: attempts.append(rest[1]) or greedy(*rest))
    cut = microbatches(batch([[1]] * 4096, [[2] * 8] * 4096), 17, "separate")
    assert len(cut) == 4096 and len(attempts) <= 13


def test_the_mask_of_some_completions_is_that_part_of_all():
    rollouts, index = random_rollouts(3, 4), torch.tensor([1, 4, 7])
    width = int(rollouts.lengths[index].max())
    assert torch.equal(rollouts.mask(index), rollouts.mask()[index, :width]) and width < rollouts.tokens.shape[1]
