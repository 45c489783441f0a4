"""Decoding, and what it saves: the lean step, keys that are shared, beginnings that are read once. All of it exact."""

import pytest
import torch
from helpers.sampling import PROMPTS, completions, randomized, teacher_forced
from helpers.small_models import EOS, MODELS, SHAPE, VOCABULARY, qwen2
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

from carerft.rollout import Sampling
from carerft.rollout import decoding as decoding_module
from carerft.rollout import transformers as transformers_module
from carerft.rollout.decoding import Decoder, LeanDecoder, common_beginning, decoder_for
from carerft.rollout.transformers import TransformersWorker
from carerft.training.attention import use_packed_attention


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


def test_under_autocast_a_weight_is_rounded_once_a_call_and_not_at_every_step():
    model, rounded = qwen2(), []
    weights = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}

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


@pytest.mark.parametrize("name", ["qwen2 tied", "gpt2"])
def test_under_autocast_keys_are_rounded_when_they_are_kept_and_nothing_else_changes(name, monkeypatch):
    """Rotary embeddings leave keys in float32: attention rounded all of them again at every step."""
    model, kept = MODELS[name](), []
    worker = TransformersWorker(model, [EOS], 0, dtype=torch.bfloat16)
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, *arguments, **options):
        kept.append(key.dtype)
        return attention(query, key, *arguments, **options)

    def measured():
        kept.clear()
        rollouts = worker.sample(PROMPTS, 2, Sampling(6, ignore_eos=True), seed=0)
        scores = worker.log_likelihood([PROMPTS[0], PROMPTS[0], PROMPTS[3]], [[3, 4, 5], [6], [7, 8]])
        return [*rollouts.tokens.flatten().tolist(), *rollouts.log_probs.flatten().tolist(), *scores], kept[-1]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    rounded = measured()
    monkeypatch.setattr(decoding_module, "attention_dtype", lambda model: None)
    assert rounded == (measured()[0], torch.bfloat16)
    assert name == "gpt2" or kept[-1] == torch.float32


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
    assert worker.shares_beginnings
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
    worker, beginning = TransformersWorker(model, [EOS], 0), [2] * 30 + [9] * 10
    prompts = [[*beginning, 5], [*beginning, 5, 7, 1, 9]]
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


def test_the_head_reads_the_scored_tokens_alone(monkeypatch):
    """The last state of each prompt, and the state after each token but the last of a continuation: no padding. Batches
    are of as many tokens as their logits may take, or of one continuation."""
    model = qwen2()
    worker, prompts = TransformersWorker(model, [EOS], 0), [PROMPTS[0]] * 3 + [PROMPTS[1]] * 2
    continuations = [[4], [8, 1, 3], [11, 0, 0, 9, 5, 6, 1, 1, 4], [], [2, 2]]
    expected, read = worker.log_likelihood(prompts, continuations), []
    model.lm_head.register_forward_hook(lambda _, states, logits: read.append(logits[..., 0].numel()))
    assert worker.log_likelihood(prompts, continuations) == expected and read == [2, 2 + 8 + 1]
    monkeypatch.setattr(transformers_module, "LOGITS", 4 * model.config.vocab_size)
    assert sorted(worker.likelihood_batches(prompts, continuations)) == [[1], [2], [3, 4, 0]]
    assert worker.log_likelihood(prompts, continuations) == pytest.approx(expected, rel=1e-5)
