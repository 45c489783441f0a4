"""The transformers rollout worker: the contract of `Rollouts`, exact probabilities, exact distributions, seeds."""

import pytest
import torch
from helpers.sampling import PROMPTS, completions, equal, exact_distribution, randomized, teacher_forced
from helpers.small_models import CONTEXT, EOS, MODELS, SHAPE, VOCABULARY, qwen2
from scipy.stats import chisquare
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from carerft.errors import ConfigError, DataError, NonFiniteError
from carerft.rollout import Sampling
from carerft.rollout.transformers import TransformersWorker, draw, nucleus

OTHER_EOS = 7


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return qwen2()


@pytest.fixture
def worker(model: PreTrainedModel) -> TransformersWorker:
    return TransformersWorker(model, [EOS, OTHER_EOS], pad_token_id=0)


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_a_forward_pass_at_unequal_prompts(name):
    model = MODELS[name]()
    rollouts = TransformersWorker(model, [EOS], 0).sample(PROMPTS, 3, Sampling(30), seed=0)
    for row, tokens in enumerate(completions(rollouts)):
        expected = teacher_forced(model, PROMPTS[row // 3], tokens)
        torch.testing.assert_close(rollouts.log_probs[row, : len(tokens)], expected, atol=1e-5, rtol=0)


def test_rollouts_have_the_shapes_and_the_order_that_they_promise(worker):
    rollouts = worker.sample(PROMPTS, 5, Sampling(12), seed=0)
    assert rollouts.prompt_lengths.tolist() == [5, 1, 9, 5]
    for row, prompt in zip(rollouts.prompt_tokens, PROMPTS, strict=True):
        assert row.tolist() == prompt + [0] * (9 - len(prompt))
    assert rollouts.group_size == 5 and len(rollouts.tokens) == len(rollouts.finished) == 20
    assert rollouts.tokens.dtype == torch.int64 and rollouts.log_probs.dtype == torch.float32
    assert rollouts.tokens.shape == rollouts.log_probs.shape == (20, int(rollouts.lengths.max()))
    mask = rollouts.mask()
    assert mask.sum(1).tolist() == rollouts.lengths.tolist()
    assert (rollouts.tokens[~mask] == 0).all() and (rollouts.log_probs[~mask] == 0).all()
    assert (rollouts.log_probs[mask] < 0).all()
    alone = worker.sample([PROMPTS[2]], 5, Sampling(12), seed=0)
    assert equal(rollouts.prompts(torch.tensor([2])), alone)  # the five of a prompt are neighbours


def test_the_seed_alone_decides(worker):
    sampling = Sampling(12)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = worker.sample(PROMPTS, 4, sampling, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert equal(first, worker.sample(PROMPTS, 4, sampling, seed=5))
    assert torch.equal(first.log_probs, worker.sample(PROMPTS, 4, sampling, seed=5).log_probs)
    assert not equal(first, worker.sample(PROMPTS, 4, sampling, seed=6))


def test_samples_of_one_prompt_differ_also_where_a_prompt_is_given_twice(worker):
    rollouts = worker.sample([PROMPTS[0], PROMPTS[1], PROMPTS[0]], 6, Sampling(12, ignore_eos=True), seed=0)
    assert len({tuple(tokens) for tokens in completions(rollouts)}) == 18


def test_a_prompts_samples_do_not_depend_on_what_is_sampled_beside_them(model, worker):
    together = worker.sample(PROMPTS, 6, Sampling(20), seed=3)
    for batch_size in (1, 4, 7):  # 4 and 7 also cut a prompt's samples apart
        small = TransformersWorker(model, [EOS, OTHER_EOS], 0, batch_size=batch_size)
        assert equal(together, small.sample(PROMPTS, 6, Sampling(20), seed=3))
    for i, prompt in enumerate(PROMPTS):
        alone = worker.sample([prompt], 2, Sampling(20), seed=3)
        assert completions(alone) == completions(together)[6 * i : 6 * i + 2]
    shorter = worker.sample(PROMPTS[::-1], 6, Sampling(5), seed=3).prompts(torch.arange(3, -1, -1))
    assert completions(shorter) == [tokens[:5] for tokens in completions(together)]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.7, 1.0), (1.0, 0.7), (0.8, 0.9)])
def test_tokens_follow_the_exact_distribution(model, worker, temperature, top_p):
    n = 5000
    rollouts = worker.sample([PROMPTS[0]], n, Sampling(1, temperature, top_p), seed=0)
    expected = torch.tensor(exact_distribution(model, PROMPTS[0], temperature, top_p), dtype=torch.float64)
    counts = torch.bincount(rollouts.tokens[:, 0], minlength=VOCABULARY).double()
    assert (counts[expected == 0] == 0).all()
    common = n * expected >= 5  # the test's approximation needs as many; the rest are one class
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([n * expected[common], n * expected[~common].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert len(wanted) > 3
    assert chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3
    log_probs = expected.log()[rollouts.tokens[:, 0]].float()
    torch.testing.assert_close(rollouts.log_probs[:, 0], log_probs, atol=1e-5, rtol=0)


def test_draw_inverts_the_cumulative_distribution():
    logits = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25, 0.0]).log().expand(7, 6)
    uniform = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 0.99, 1 - 2**-53], dtype=torch.float64)
    tokens, log_probs = draw(logits, uniform, temperature=1.0, top_p=1.0)
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4, 4]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]))
    # Half the temperature squares the odds: 1/2, 1/4, 1/4 become 4/6, 1/6, 1/6.
    tokens, log_probs = draw(logits[:2], torch.tensor([0.66, 0.67], dtype=torch.float64), temperature=0.5, top_p=1.0)
    assert tokens.tolist() == [1, 3]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([4 / 6, 1 / 6]))


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p():
    log_probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    torch.testing.assert_close(nucleus(log_probs, 0.75).exp(), torch.tensor([[0.0, 0.625, 0.0, 0.375]]))
    torch.testing.assert_close(nucleus(log_probs, 0.85).exp(), torch.tensor([[3 / 19, 10 / 19, 0.0, 6 / 19]]))
    torch.testing.assert_close(nucleus(log_probs, 0.01).exp(), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_the_generation_config_is_never_read():
    plain, trapped = qwen2(), qwen2()
    trapped.generation_config.update(do_sample=True, temperature=0.01, top_k=1, max_new_tokens=2, eos_token_id=[1, 2])
    a, b = (TransformersWorker(m, [EOS], 0).sample(PROMPTS, 4, Sampling(12), seed=0) for m in (plain, trapped))
    assert equal(a, b) and torch.equal(a.log_probs, b.log_probs)


def test_modes_are_put_back_and_dropout_is_off():
    model = randomized(LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=0.5)))
    worker = TransformersWorker(model, [EOS], 0)
    model.train()
    model.model.norm.eval()
    before = [module.training for module in model.modules()]
    rollouts = worker.sample(PROMPTS[:1], 1, Sampling(8), seed=0)
    score = worker.log_likelihood([PROMPTS[0]], [completions(rollouts)[0]])
    assert [module.training for module in model.modules()] == before
    expected = teacher_forced(model, PROMPTS[0], completions(rollouts)[0])
    torch.testing.assert_close(rollouts.log_probs[0], expected, atol=1e-5, rtol=0)
    assert score[0] == pytest.approx(float(expected.sum()), abs=1e-4)


def test_modes_are_put_back_after_an_error():
    model = qwen2().train()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        TransformersWorker(model, [EOS], 0).sample(PROMPTS, 2, Sampling(4), seed=0)
    assert all(module.training for module in model.modules())


def test_rollouts_can_enter_a_differentiated_loss(worker):
    rollouts = worker.sample(PROMPTS, 2, Sampling(4), seed=0)
    scale = torch.ones((), requires_grad=True)
    (scale * rollouts.log_probs).sum().backward()
    torch.testing.assert_close(scale.grad, rollouts.log_probs.sum())


def test_samples_follow_the_weights_as_they_change():
    model = qwen2()
    worker = TransformersWorker(model, [EOS], 0)
    old = worker.sample(PROMPTS, 2, Sampling(8, ignore_eos=True), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.9
    worker.sync(model)
    new = worker.sample(PROMPTS, 2, Sampling(8, ignore_eos=True), seed=0)
    for row, tokens in enumerate(completions(new)):
        expected = teacher_forced(model, PROMPTS[row // 2], tokens)
        torch.testing.assert_close(new.log_probs[row], expected, atol=1e-5, rtol=0)
    assert not torch.equal(old.log_probs, new.log_probs)


def test_sync_copies_from_another_module():
    policy, held = qwen2(), Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))
    worker = TransformersWorker(held, [EOS], 0)
    worker.sync(policy)
    expected = TransformersWorker(policy, [EOS], 0).sample(PROMPTS, 3, Sampling(8), seed=0)
    found = worker.sample(PROMPTS, 3, Sampling(8), seed=0)
    assert equal(found, expected) and torch.equal(found.log_probs, expected.log_probs)
    with torch.no_grad():
        policy.model.embed_tokens.weight.zero_()
    assert torch.equal(worker.sample(PROMPTS, 3, Sampling(8), seed=0).log_probs, expected.log_probs)  # a copy


def test_autocast_samples_in_bfloat16_near_the_float32_probabilities(model):
    worker = TransformersWorker(model, [EOS], 0, dtype=torch.bfloat16)
    rollouts = worker.sample(PROMPTS, 3, Sampling(10, ignore_eos=True), seed=0)
    assert rollouts.log_probs.dtype == torch.float32
    expected = torch.stack([teacher_forced(model, PROMPTS[i // 3], t) for i, t in enumerate(completions(rollouts))])
    difference = (rollouts.log_probs - expected).abs()
    assert 1e-4 < difference.max() < 0.5  # bfloat16 keeps 8 bits: it differs, and not by much


@pytest.mark.parametrize("name", ["qwen2 tied", "gpt2"])
@pytest.mark.parametrize("batch_size", [256, 2])
def test_log_likelihood_is_the_sum_over_the_continuation_alone(name, batch_size):
    model = MODELS[name]()
    continuations = [[4, 8, 1], [2], [], [11, 0, 0, 9, 5, 6, 1]]
    found = TransformersWorker(model, [EOS], 0, batch_size=batch_size).log_likelihood(PROMPTS, continuations)
    for prompt, continuation, total in zip(PROMPTS, continuations, found, strict=True):
        assert total == pytest.approx(float(teacher_forced(model, prompt, continuation).sum()), abs=1e-4)


def test_log_likelihood_of_samples_is_the_samplers_own(worker):
    rollouts = worker.sample(PROMPTS, 3, Sampling(9), seed=0)
    scores = worker.log_likelihood([PROMPTS[i // 3] for i in range(12)], completions(rollouts))
    torch.testing.assert_close(torch.tensor(scores), rollouts.log_probs.sum(1), atol=1e-4, rtol=0)


DEFAULTS = Sampling(4)


def test_bad_input_is_refused_by_name(model, worker):
    def refused(error: type[Exception], message: str, prompts=PROMPTS, n=1, sampling=DEFAULTS):
        with pytest.raises(error, match=message):
            worker.sample(prompts, n, sampling, seed=0)

    refused(DataError, "no prompts", prompts=[])
    refused(DataError, "prompt 1 .* has no tokens", prompts=[[1], []])
    refused(DataError, f"prompt 1 .* too long: {CONTEXT} tokens", prompts=[[1], [1] * CONTEXT])
    refused(ConfigError, "max_tokens=392 after a prompt of 9 .*\n.*max_tokens=391", sampling=Sampling(CONTEXT - 8))
    refused(ConfigError, "max_tokens=0", sampling=Sampling(0))
    refused(ConfigError, "temperature=0", sampling=Sampling(4, temperature=0.0))
    refused(ConfigError, "top_p=0", sampling=Sampling(4, top_p=0.0))
    refused(ConfigError, "top_p=1.1", sampling=Sampling(4, top_p=1.1))
    refused(ConfigError, "0 samples", n=0)
    worker.sample([PROMPTS[2]], 1, Sampling(CONTEXT - 9), seed=0)  # to the context's last slot
    with pytest.raises(DataError, match="too long: 401 tokens"):
        worker.log_likelihood([[1] * 398], [[1, 2, 3]])
    with pytest.raises(ConfigError, match="batch_size=0"):
        TransformersWorker(model, [EOS], 0, batch_size=0)
    with pytest.raises(ConfigError, match="MambaForCausalLM"):
        TransformersWorker(MambaForCausalLM(MambaConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1)), [EOS], 0)
