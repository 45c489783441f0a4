"""The transformers rollout worker: the contract of `Rollouts`, exact probabilities, exact distributions, seeds."""

import pytest
import torch
from helpers.sampling import PROMPTS, completions, equal, exact_distribution, randomized, teacher_forced
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
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
from carerft.rollout import decoding as decoding_module
from carerft.rollout import transformers as transformers_module
from carerft.rollout.decoding import Decoder, LeanDecoder, common_beginning, decoder_for
from carerft.rollout.transformers import TransformersWorker, draw, nucleus
from carerft.training.attention import use_packed_attention

VOCABULARY, EOS, OTHER_EOS, CONTEXT = 24, 3, 7, 400
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}


def qwen2(**changes) -> PreTrainedModel:
    return randomized(Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "tie_word_embeddings": True, **changes})))


MODELS = {
    "qwen2 tied": qwen2,
    "qwen2 untied": lambda: qwen2(tie_word_embeddings=False),
    "qwen2 sliding window": lambda: qwen2(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "llama tied": lambda: randomized(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))),
    "llama untied": lambda: randomized(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))),
    "gpt2": lambda: randomized(
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT))
    ),
}


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


@pytest.mark.parametrize("name", ["qwen2 tied", "gpt2"])
def test_log_probs_stay_exact_where_the_cache_has_to_grow(name):
    model, steps = MODELS[name](), decoding_module.BLOCK + 20
    rollouts = TransformersWorker(model, [EOS], 0).sample(PROMPTS[:2], 1, Sampling(steps, ignore_eos=True), seed=0)
    for row, tokens in enumerate(completions(rollouts)):
        assert len(tokens) == steps
        torch.testing.assert_close(
            rollouts.log_probs[row], teacher_forced(model, PROMPTS[row], tokens), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0], PROMPTS[3]]], ids=["unequal", "equal"])
@pytest.mark.parametrize("name", ["qwen2 untied", "llama tied"])
def test_the_lean_step_equals_the_models_own(name, prompts):
    model = MODELS[name]().eval()
    rows = torch.arange(len(prompts)).repeat_interleave(2)
    steps = torch.randint(VOCABULARY, (4, len(rows)), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        lean = decoder_for(model)(prompts, rows, 4, 0)
        own = Decoder(model, prompts, rows, 4, 0)
        assert type(lean) is LeanDecoder
        going = torch.tensor([0, 3])
        for step in range(4):
            if step == 2:
                lean.keep(going)
                own.keep(going)
                steps = steps[:, going]
            torch.testing.assert_close(lean.step(steps[step]), own.step(steps[step]), atol=1e-5, rtol=1e-5)


def test_the_lean_step_is_left_alone_where_it_would_not_be_exact(monkeypatch):
    adapted = qwen2()
    adapted.model.layers[0].mlp.add_module("adapter", torch.nn.Linear(2, 2))
    others = [
        MODELS["gpt2"](),
        MODELS["qwen2 sliding window"](),
        adapted,
        qwen2().to(torch.bfloat16),
        qwen2(hidden_act="gelu"),
        qwen2(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        LlamaForCausalLM(LlamaConfig(**SHAPE, mlp_bias=True)),
    ]
    for model in others:
        assert decoder_for(model).func is Decoder
    model = qwen2()
    assert decoder_for(model).func is LeanDecoder
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decoder_for(model).func is Decoder
    monkeypatch.setattr(decoding_module, "LEAN_PARAMETERS", model.num_parameters() - 1)
    assert decoder_for(model).func is Decoder


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


def test_under_autocast_a_weight_is_rounded_once_a_call_and_not_at_every_step(model):
    weights, rounded = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and tuple(args[0].shape) in weights:
                rounded.append(args[0].data_ptr())
            return function(*args, **(kwargs or {}))

    worker = TransformersWorker(model, [EOS], 0, dtype=torch.bfloat16)
    with Watch():
        worker.sample(PROMPTS, 3, Sampling(10, ignore_eos=True), seed=0)
    linear = [m.weight.data_ptr() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(rounded.count(pointer) == 1 for pointer in linear)


@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0], PROMPTS[3]]], ids=["unequal", "equal"])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("name", ["qwen2 tied", "qwen2 sliding window", "llama tied"])
def test_a_step_reads_each_key_head_once_for_the_queries_that_share_it(name, learns, prompts, monkeypatch):
    """Without the lean step; with the attention of a model that learns, and of one that is measured."""
    monkeypatch.setattr(decoding_module, "LEAN_PARAMETERS", 0)
    model, plain, heads = MODELS[name](), torch.nn.functional.scaled_dot_product_attention, []

    def watched(query, key, *rest, **options):
        heads.append((query.shape[1], query.shape[2], key.shape[1]))
        return plain(query, key, *rest, **options)

    expected_model = MODELS[name]()
    if learns:
        use_packed_attention(model)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    rollouts = TransformersWorker(model, [EOS], 0).sample(prompts, 3, Sampling(10, ignore_eos=True), seed=0)
    assert heads.count((2, 2, 2)) >= 9 * 2  # 9 steps after the first token, 2 layers: 4 heads on 2 key heads
    for i, tokens in enumerate(completions(rollouts)):
        expected = teacher_forced(expected_model, prompts[i // 3], tokens)
        assert torch.allclose(rollouts.log_probs[i, : len(tokens)], expected, atol=2e-5)


@pytest.mark.parametrize("ends", [[[5], [7, 1, 9]], [[5], [7]]], ids=["unequal", "equal"])
@pytest.mark.parametrize("name", [name for name in MODELS if "window" not in name])
def test_a_long_beginning_of_all_prompts_is_read_once(name, ends):
    model, beginning, read = MODELS[name](), [2 + i % 20 for i in range(40)], []
    prompts, choices = [beginning + end for end in ends], [[4, 8, 1], [2]]
    pairs = [(prompt, choice) for prompt in prompts for choice in choices]
    worker = TransformersWorker(model, [EOS], 0)
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape))
    rollouts = worker.sample(prompts, 3, Sampling(6, ignore_eos=True), seed=0)
    found = worker.log_likelihood(*zip(*pairs, strict=True))
    assert read.count((1, 40)) == 2  # by the samples and by the likelihoods
    assert all(shape == (1, 40) or shape[1] <= 3 for shape in read)
    for i, tokens in enumerate(completions(rollouts)):
        expected = teacher_forced(model, prompts[i // 3], tokens)
        assert torch.allclose(rollouts.log_probs[i, : len(tokens)], expected, atol=2e-5)
    for (prompt, choice), total in zip(pairs, found, strict=True):
        assert total == pytest.approx(float(teacher_forced(model, prompt, choice).sum()), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["qwen2 tied", "gpt2"])
def test_no_keys_are_copied_for_a_single_token(name, monkeypatch):
    monkeypatch.setattr(decoding_module, "spread", lambda *_: pytest.fail("keys were copied"))
    model = MODELS[name]()
    with monkeypatch.context() as trusting:
        trusting.setattr(transformers_module, "probe", lambda _: None)
        worker = TransformersWorker(model, [EOS], 0)
    rollouts = worker.sample(PROMPTS, 3, Sampling(1), seed=0)
    for i, tokens in enumerate(completions(rollouts)):
        assert torch.allclose(rollouts.log_probs[i], teacher_forced(model, PROMPTS[i // 3], tokens), atol=2e-5)


def test_prompts_with_one_beginning_go_by_what_follows_them():
    """Two prompts with long continuations and two with short ones, which differ in their last token."""
    beginning = [2 + i % 20 for i in range(40)]
    prompts = [[*beginning, end] for end in (5, 6, 7, 8) for _ in range(2)]
    continuations = [[1] * n for n in (9, 3, 2, 1, 8, 4, 1, 2)]
    worker = TransformersWorker(qwen2(), [EOS], 0, batch_size=4)
    batches = worker.likelihood_batches(prompts, continuations)
    assert [sorted(batch) for batch in batches] == [[2, 3, 6, 7], [0, 1, 4, 5]]
    expected = [float(teacher_forced(worker.model, *pair).sum()) for pair in zip(prompts, continuations, strict=True)]
    assert worker.log_likelihood(prompts, continuations) == pytest.approx(expected, rel=1e-5)
    assert worker.likelihood_batches([[2]] * 3, [[1], [1, 2], []]) == [[0, 1, 2]]  # what fits into one batch is one


@pytest.mark.parametrize("name", ["qwen2", "gpt_neo"])
def test_a_window_sees_no_padding_between_the_beginning_and_the_rest(name):
    """It would look less far back, by as many tokens as a prompt is shorter: here in rows of 44 and a window of 42,
    which too few tokens show when a model is tried. GPT-Neo's is named by no key that others have."""
    model, read = qwen2(use_sliding_window=True, sliding_window=42, max_window_layers=1), []
    if name == "gpt_neo":
        shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
        config = GPTNeoConfig(**shape, attention_types=[[["global", "local"], 1]], window_size=42)
        model = randomized(GPTNeoForCausalLM(config))
    worker, prompts = (
        TransformersWorker(model, [EOS], 0),
        [[2] * 30 + [9] * 10 + [5], [2] * 30 + [9] * 10 + [5, 7, 1, 9]],
    )
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape))
    rollouts = worker.sample(prompts, 1, Sampling(6, ignore_eos=True), seed=0)
    assert read[0] == (2, 44)
    for prompt, tokens, log_probs in zip(prompts, completions(rollouts), rollouts.log_probs, strict=True):
        assert torch.allclose(log_probs, teacher_forced(model, prompt, tokens), atol=2e-5)


def test_the_beginning_of_prompts():
    assert common_beginning([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9]]) == 2
    assert common_beginning([[1, 2], [1, 2, 3]]) == 1  # a token is left of each, which the first one sampled follows
    assert common_beginning([(1, 2, 3), (1, 2, 3)]) == 2
    assert common_beginning([(5,)]) == common_beginning([(1, 2), (3,)]) == 0


@pytest.mark.parametrize("name", ["qwen2 tied", "gpt2"])
@pytest.mark.parametrize("batch_size", [256, 2])
def test_log_likelihood_is_the_sum_over_the_continuation_alone(name, batch_size):
    model = MODELS[name]()
    continuations = [[4, 8, 1], [2], [], [11, 0, 0, 9, 5, 6, 1]]
    found = TransformersWorker(model, [EOS], 0, batch_size=batch_size).log_likelihood(PROMPTS, continuations)
    for prompt, continuation, total in zip(PROMPTS, continuations, found, strict=True):
        assert total == pytest.approx(float(teacher_forced(model, prompt, continuation).sum()), abs=1e-4)


@pytest.mark.parametrize("batch_size", [256, 5])
@pytest.mark.parametrize("name", MODELS)
def test_continuations_that_share_a_prompt_score_as_each_by_itself(name, batch_size, monkeypatch):
    model = MODELS[name]()
    choices = [[4, 8, 1], [2], [11, 0, 0, 9, 5, 6, 1, 1, 4], [], [4, 8]]
    pairs = [(prompt, choice) for choice in choices for prompt in PROMPTS]  # no two of a prompt side by side
    read = []
    monkeypatch.setattr(
        transformers_module,
        "Decoder",
        lambda model, prompts, *rest: read.extend(prompts) or Decoder(model, prompts, *rest),
    )
    found = TransformersWorker(model, [EOS], 0, batch_size=batch_size).log_likelihood(*zip(*pairs, strict=True))
    for (prompt, choice), total in zip(pairs, found, strict=True):
        assert total == pytest.approx(float(teacher_forced(model, prompt, choice).sum()), rel=1e-5, abs=1e-5)
    assert sorted(read) == sorted(map(tuple, PROMPTS))  # each prompt was read once


def test_the_head_reads_the_scored_tokens_alone(model, worker, monkeypatch):
    """The last state of each prompt, and the state after each token but the last of a continuation: no padding. Batches
    are of as many tokens as their logits may take, or of one continuation."""
    prompts = [PROMPTS[0]] * 3 + [PROMPTS[1]] * 2
    continuations = [[4], [8, 1, 3], [11, 0, 0, 9, 5, 6, 1, 1, 4], [], [2, 2]]
    expected, read = worker.log_likelihood(prompts, continuations), []
    watched = model.lm_head.register_forward_hook(lambda _, states, logits: read.append(logits[..., 0].numel()))
    assert worker.log_likelihood(prompts, continuations) == expected and read == [2, 2 + 8 + 1]
    monkeypatch.setattr(transformers_module, "LOGITS", 4 * model.config.vocab_size)
    assert sorted(worker.likelihood_batches(prompts, continuations)) == [[1], [2], [3, 4, 0]]
    assert worker.log_likelihood(prompts, continuations) == pytest.approx(expected, rel=1e-5)
    watched.remove()


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
