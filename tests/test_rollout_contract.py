"""What every rollout worker must do, on each of them: the same tests, the same model, the same numbers.

vLLM's engine is real, on this CPU. Where vllm isn't installed its cases are skipped, and say so.
"""

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from helpers.engines import (
    CONTEXT,
    EOS,
    OTHER_EOS,
    VOCABULARY,
    letters,
    needs_ray,
    needs_vllm,
    options,
    perturb,
    save_model,
)
from helpers.sampling import PROMPTS, completions, equal, exact_distribution, teacher_forced
from scipy.stats import chisquare
from transformers import PreTrainedModel

from carerft.errors import CareError, ConfigError, DataError, NonFiniteError
from carerft.model.lora import merged_weights
from carerft.rollout import Rollouts, RolloutWorker, Sampling
from carerft.rollout.transformers import TransformersWorker

LONG = [(7 * i) % VOCABULARY for i in range(300)]  # two full blocks of vLLM's prefix cache


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def policy(directory) -> PreTrainedModel:
    return save_model(directory)


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=needs_vllm)])
def worker(request, policy, directory) -> RolloutWorker:
    if request.param == "transformers":
        yield TransformersWorker(policy, [EOS, OTHER_EOS], 0, tokenizer=letters())
        return
    from carerft.rollout.vllm import VllmWorker

    worker = VllmWorker(options(directory))
    worker.sync(policy)
    yield worker
    worker.close()


def assert_true(policy: PreTrainedModel, prompts: list[list[int]], rollouts: Rollouts) -> None:
    """The sampler's log-probabilities are those of a float32 teacher-forced pass."""
    for row, tokens in enumerate(completions(rollouts)):
        expected = teacher_forced(policy, prompts[row // rollouts.group_size], tokens)
        torch.testing.assert_close(rollouts.log_probs[row, : len(tokens)], expected, atol=2e-5, rtol=0)


def test_shapes_lengths_and_masks(worker):
    rollouts = worker.sample(PROMPTS, 5, Sampling(12), seed=0)
    assert rollouts.prompt_lengths.tolist() == [5, 1, 9, 5]
    for i, prompt in enumerate(PROMPTS):
        assert rollouts.prompt_tokens[i].tolist() == prompt + [0] * (9 - len(prompt))
    assert rollouts.group_size == 5 and len(rollouts.finished) == 20
    assert rollouts.tokens.dtype == rollouts.lengths.dtype == torch.int64
    assert rollouts.log_probs.dtype == torch.float32 and rollouts.finished.dtype == torch.bool
    assert rollouts.tokens.shape == rollouts.log_probs.shape == (20, int(rollouts.lengths.max()))
    mask = rollouts.mask()
    assert (rollouts.tokens[~mask] == 0).all() and (rollouts.log_probs[~mask] == 0).all()
    assert (rollouts.log_probs[mask] < 0).all()


def test_a_completion_ends_with_an_end_of_sequence_token_of_ours_or_is_marked_as_cut(worker):
    rollouts = worker.sample(PROMPTS, 25, Sampling(16), seed=0)
    ends, endings = {EOS, OTHER_EOS}, set()
    for tokens, finished in zip(completions(rollouts), rollouts.finished, strict=True):
        assert not ends & set(tokens[:-1])
        assert (tokens[-1] in ends) == bool(finished)
        assert finished or len(tokens) == 16
        endings.add(tokens[-1] if finished else None)
    assert endings == {EOS, OTHER_EOS, None}
    # The generation_config's further ends of sequence are none.
    assert any(t in (11, 12) for tokens in completions(rollouts) for t in tokens[:-1])


def test_an_end_of_sequence_token_as_the_last_one_allowed_is_an_end(worker):
    rollouts = worker.sample(PROMPTS, 50, Sampling(1), seed=0)
    ended = torch.isin(rollouts.tokens[:, 0], torch.tensor([EOS, OTHER_EOS]))
    assert ended.any() and not ended.all()
    assert torch.equal(rollouts.finished, ended)


def test_end_of_sequence_can_be_ignored_and_changes_nothing_before_it(worker):
    free, forced = (worker.sample(PROMPTS, 6, Sampling(16, ignore_eos=i), seed=0) for i in (False, True))
    assert forced.lengths.tolist() == [16] * 24 and not forced.finished.any()
    for short, long in zip(completions(free), completions(forced), strict=True):
        assert long[: len(short)] == short
    assert free.lengths.min() < 16


def test_stop_strings_end_a_completion_with_the_token_that_completes_one(worker):
    stop = ("ab", "c", "xxxx", "mlk")
    free, stopped = (worker.sample(PROMPTS, 40, Sampling(16, stop=s), seed=0) for s in ((), stop))
    ends = {True: 0, False: 0}
    for row, tokens in enumerate(completions(free)):
        text = "".join(chr(ord("a") + t) if t != EOS else "" for t in tokens)  # special tokens are no text
        cut = next((i for i in range(1, len(tokens) + 1) if any(s in text[:i] for s in stop)), None)
        assert completions(stopped)[row] == tokens[:cut]
        assert bool(stopped.finished[row]) == (cut is not None or bool(free.finished[row]))
        ends[cut is not None] += 1
    assert ends[True] > 20 and ends[False] > 20
    forced = worker.sample(PROMPTS, 5, Sampling(16, ignore_eos=True, stop=("c",)), seed=0)
    for tokens, finished in zip(completions(forced), forced.finished, strict=True):
        assert 2 not in tokens[:-1] and bool(finished) == (tokens[-1] == 2)


def test_a_prompt_does_not_take_part_in_a_stop_string(worker):
    prompts, sampling = [[*PROMPTS[0], 0]], Sampling(4, ignore_eos=True)
    free = completions(worker.sample(prompts, 10, sampling, seed=0))
    first = next(tokens for tokens in free if tokens[0] not in (0, EOS))
    across = "a" + chr(ord("a") + first[0])  # from the prompt's last token to the completion's first
    stopped = worker.sample(prompts, 10, replace(sampling, stop=(across,)), seed=0)
    assert first in completions(stopped)


def test_log_probs_are_those_of_a_teacher_forced_pass(worker, policy):
    assert_true(policy, PROMPTS, worker.sample(PROMPTS, 6, Sampling(40), seed=0))


def test_after_a_sync_samples_and_log_probs_are_those_of_the_new_weights(worker, policy):
    prompts = [LONG, PROMPTS[0]]
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    old = worker.sample(prompts, 4, Sampling(20, ignore_eos=True), seed=0)
    assert_true(policy, prompts, old)
    for seed in (1, 2):
        perturb(policy, seed)
        worker.sleep()
        worker.sync(policy)
        new = worker.sample(prompts, 4, Sampling(20, ignore_eos=True), seed=0)
        assert_true(policy, prompts, new)  # with keys of the old weights, LONG's would differ
        assert not equal(old, new)
    policy.load_state_dict(before)
    worker.sync(policy)
    again = worker.sample(prompts, 4, Sampling(20, ignore_eos=True), seed=0)
    assert equal(again, old)


def test_the_seed_alone_decides(worker):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = worker.sample(PROMPTS, 4, Sampling(12), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert equal(first, worker.sample(PROMPTS, 4, Sampling(12), seed=5))
    assert not equal(first, worker.sample(PROMPTS, 4, Sampling(12), seed=6))


def test_a_prompts_samples_do_not_depend_on_what_is_sampled_beside_them(worker):
    together = worker.sample(PROMPTS, 6, Sampling(20), seed=3)
    for i, prompt in enumerate(PROMPTS):
        assert completions(worker.sample([prompt], 2, Sampling(20), seed=3)) == completions(together)[6 * i : 6 * i + 2]
    reverse = worker.sample(PROMPTS[::-1], 6, Sampling(5), seed=3).prompts(torch.arange(3, -1, -1))
    assert completions(reverse) == [tokens[:5] for tokens in completions(together)]


def test_samples_of_one_prompt_differ_also_where_a_prompt_is_given_twice(worker):
    rollouts = worker.sample([PROMPTS[0], PROMPTS[1], PROMPTS[0]], 6, Sampling(12, ignore_eos=True), seed=0)
    assert len({tuple(tokens) for tokens in completions(rollouts)}) == 18


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (0.8, 0.9)])
def test_tokens_follow_the_exact_distribution(worker, policy, temperature, top_p):
    """The generation_config (temperature 0.01, top_k 1, top_p 0.5, a repetition penalty) has no part in it."""
    n = 2000
    rollouts = worker.sample([PROMPTS[0]], n, Sampling(1, temperature, top_p), seed=0)
    expected = torch.tensor(exact_distribution(policy, PROMPTS[0], temperature, top_p), dtype=torch.float64)
    counts = torch.bincount(rollouts.tokens[:, 0], minlength=VOCABULARY).double()
    assert (counts[expected == 0] == 0).all()
    common = n * expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([n * expected[common], n * expected[~common].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert len(wanted) > 3
    assert chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3
    log_probs = expected.log()[rollouts.tokens[:, 0]].float()
    torch.testing.assert_close(rollouts.log_probs[:, 0], log_probs, atol=2e-5, rtol=0)


def test_log_likelihood_is_the_sum_over_the_continuation_alone(worker, policy):
    prompts = [*PROMPTS, LONG]
    continuations = [[4, 8, 1], [2], [], [11, 0, 0, 9, 5, 6, 1], LONG[: CONTEXT - 300]]  # the last fills the context
    found = worker.log_likelihood(prompts, continuations)
    for prompt, continuation, total in zip(prompts, continuations, found, strict=True):
        assert total == pytest.approx(float(teacher_forced(policy, prompt, continuation).sum()), abs=1e-3)


def test_bad_input_is_refused_by_name(worker):
    def refused(error: type[Exception], message: str, prompts=PROMPTS, n=1, sampling=Sampling(4)):  # noqa: B008
        with pytest.raises(error, match=message):
            worker.sample(prompts, n, sampling, seed=0)

    refused(DataError, "no prompts", prompts=[])
    refused(DataError, "prompt 1 .* has no tokens", prompts=[[1], []])
    refused(DataError, f"prompt 1 .* too long: {CONTEXT} tokens", prompts=[[1], [1] * CONTEXT])
    refused(ConfigError, "max_tokens=392 after a prompt of 9 .*\n.*max_tokens=391", sampling=Sampling(CONTEXT - 8))
    refused(ConfigError, "max_tokens=0", sampling=Sampling(0))
    refused(ConfigError, "temperature=0", sampling=Sampling(4, temperature=0.0))
    refused(ConfigError, "top_p=0", sampling=Sampling(4, top_p=0.0))
    refused(ConfigError, "0 samples", n=0)
    refused(ConfigError, "stop string is empty", sampling=Sampling(4, stop=("",)))
    filled = worker.sample([PROMPTS[2]], 1, Sampling(CONTEXT - 9, ignore_eos=True), seed=0)
    assert filled.lengths.tolist() == [CONTEXT - 9]  # to the context's last slot
    with pytest.raises(DataError, match="too long: 401 tokens"):
        worker.log_likelihood([[1] * 398], [[1, 2, 3]])


def test_probabilities_that_are_not_numbers_are_an_error(worker, policy):
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    with torch.no_grad():
        policy.model.norm.weight.fill_(float("nan"))
    worker.sync(policy)
    with pytest.raises(NonFiniteError, match="not finite"):
        worker.sample(PROMPTS, 2, Sampling(4), seed=0)
    policy.load_state_dict(before)
    worker.sync(policy)
    assert_true(policy, PROMPTS, worker.sample(PROMPTS, 2, Sampling(8), seed=0))


# What only an engine with weights of its own can get wrong.


@needs_vllm
@pytest.mark.parametrize(("dtype", "how"), [("float32", "up to"), ("bfloat16", "a mean of")])
def test_a_sync_that_does_not_arrive_is_an_error(policy, directory, monkeypatch, dtype, how):
    from carerft.rollout.engine import Engine
    from carerft.rollout.vllm import VllmWorker

    worker = VllmWorker(options(directory, dtype=dtype), verify_sync=True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "load", lambda self, weights: None)
            with pytest.raises(CareError, match=rf"differ from the policy's by {how} \d"):  # the engine's are random
                worker.sync(policy)
        worker.sync(policy)
        with monkeypatch.context() as patch:
            load = Engine.load
            patch.setattr(Engine, "load", lambda self, w: load(self, [(k, t) for k, t in w if "layers.1" not in k]))
            changed = type(policy)(policy.config)
            with pytest.raises(CareError, match="differ from the policy's"):
                worker.sync(changed)
    finally:
        worker.close()


@needs_vllm
def test_a_sync_never_holds_more_weights_than_a_layer_has(policy, directory):
    """Whole ones, gathered from several processes or merged with an adapter, would be a second model on the device."""
    from carerft.rollout.engine import Engine

    given: list[weakref.ref] = []
    held: list[int] = []

    def whole():
        for name, tensor in policy.state_dict().items():
            held.append(sum(ref() is not None for ref in given))
            copy = tensor.clone()
            given.append(weakref.ref(copy))
            yield name, copy

    engine = Engine(options(directory))
    try:
        engine.load(whole())
        assert len(given) == len(policy.state_dict())
        # q, k and v are one layer of the engine's, with a weight and a bias each
        assert max(held) <= 6 < len(given)
    finally:
        engine.close()


@needs_ray
def test_weights_travel_in_the_engines_precision(policy, directory):
    """Rounded before the way, half of the bytes; the engine has what it would have made of the float32 ones."""
    from carerft.rollout.dedicated import EngineProcess, as_array

    here, other = EngineProcess(), copy.deepcopy(policy)
    here.start(options(directory, dtype="bfloat16"))
    try:
        asked = ([PROMPTS[0]], 3, Sampling(12, ignore_eos=True), 0)
        here.load(merged_weights(policy))
        expected = here.sample(*asked)
        perturb(other, seed=2)
        here.load(merged_weights(other))
        assert not equal(here.sample(*asked), expected)
        arrays = {name: as_array(weight, torch.bfloat16) for name, weight in merged_weights(policy)}
        here.load_arrays(arrays)
        assert equal(here.sample(*asked), expected)
    finally:
        here.close()
    assert sum(array.nbytes for array in arrays.values()) == sum(
        (2 if weight.dim() > 1 else 4) * weight.numel() for _, weight in merged_weights(policy)
    )
