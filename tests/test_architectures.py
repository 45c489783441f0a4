"""Whatever causal language model a user brings: exact, or refused in a sentence before anything is sampled.

Exact: the log-probabilities of sampler and learner are within 1e-4 nats, and the learner's gradient within a
thousandth, of a plain float32 forward pass of one unpadded sequence. Each type of the installed transformers is tried
with a tiny random model of its own configuration class, whose windows and chunks are shorter than the sequences and
whose dropout and router noise are on; all types by `-m slow`, which prints the table of docs/models.md.
"""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.architectures import EOS, TYPES, tiny
from helpers.exactness import (
    NATS,
    NOT_TRIED,
    PROMPTS,
    Measured,
    completions,
    difference,
    make_learner,
    measure,
    rollouts_of,
    row,
    summary,
    table,
)
from helpers.models import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.errors import ConfigError
from carerft.model.casts import share_casts
from carerft.model.lora import add_lora
from carerft.model.modes import recompute_activations, silence
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import ReverseKL
from carerft.rollout import Sampling
from carerft.rollout.transformers import TransformersWorker
from carerft.training import hidden_states
from carerft.training.attention import use_packed_attention
from carerft.training.hidden_states import best_layout, completion_states
from carerft.training.learner import Learner

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
# One of each kind: plain; noisy; that lose the row; with a mask of their own; of several parts; with chunks, with
# convolutions, with selected keys; experts; prompts of one length at a time; and refused for its head, as recurrent.
DOZEN = [
    "qwen2", "llama", "gpt2", "opt", "stablelm", "nemotron", "doge", "gemma3", "llama4", "lfm2", "deepseek_v32",
    "mixtral", "bart", "gemma2", "mamba",
]  # fmt: skip


@pytest.mark.parametrize("model_type", DOZEN)
def test_a_type_is_exact_or_refused(model_type: str, tmp_path: Path):
    assert row(measure(model_type, tmp_path, adapters=True)) in PAGE.splitlines()


@pytest.mark.slow
def test_every_type_is_exact_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    measured: list[Measured] = [measure(name, tmp_path / name, adapters=True) for name in TYPES]
    with capsys.disabled():
        print("", summary(measured), "", table(measured), sep="\n")
    assert {found.model_type for found in measured if found.unbuilt} == set(NOT_TRIED)
    assert summary(measured).endswith(" 0 wrong.") and summary(measured) in PAGE
    assert table(measured) in PAGE


def test_the_page_has_a_row_for_every_type():
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE) == TYPES


WINDOW_OFF = {"mistral": {"sliding_window": None}, "phi3": {"sliding_window": None}, "falcon": {"alibi": True}}


@pytest.mark.parametrize("model_type", WINDOW_OFF)
def test_a_variant_of_a_type_is_exact_as_well(model_type: str, tmp_path: Path):
    found = measure(model_type, tmp_path, **WINDOW_OFF[model_type])
    assert found.exact, found


# --- packed rows ---


def test_a_model_whose_layers_lose_the_row_reads_padded_rows():
    model = tiny("stablelm")
    assert use_packed_attention(model)  # nothing in its configuration says that it cannot
    assert best_layout(model, share_prompts=True) == "padded"
    assert model.config._attn_implementation == "sdpa"


def test_the_placeholder_mask_never_reaches_an_attention_that_has_no_row():
    model = tiny("stablelm")
    use_packed_attention(model)
    with pytest.raises(ValueError, match="was not given the packed row"):
        completion_states(model, rollouts_of((3, 4), (2, 5)), torch.arange(2), "separate")
    tokens = torch.arange(4, 12)[None]
    with torch.no_grad():
        packed = model(tokens).logits  # without a row it is the usual attention
        model.set_attn_implementation("sdpa")
        assert torch.equal(packed, model(tokens).logits)


def test_rows_that_differ_anywhere_are_not_used(monkeypatch: pytest.MonkeyPatch):
    """A layout whose positions are wrong in the second sequence alone."""
    pack = hidden_states.pack

    def misplaced(*arguments):
        packed = pack(*arguments)
        packed.positions[-1] += 1
        return packed

    assert best_layout(tiny_model(), True) == "shared"
    monkeypatch.setattr(hidden_states, "pack", misplaced)
    assert best_layout(tiny_model(), True) == "padded"


def test_a_learner_that_cannot_be_exact_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    states = hidden_states._padded_states
    monkeypatch.setattr(hidden_states, "_padded_states", lambda *arguments: 1.1 * states(*arguments))
    with pytest.raises(ConfigError, match=r"StableLmForCausalLM \(model_type=stablelm\) cannot be trained.*nats"):
        make_learner(tiny("stablelm"))


# --- noise ---


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", ["gpt2", "opt", "phimoe"])
def test_the_policy_that_learns_is_the_policy_that_sampled(model_type: str, checkpointing: bool):
    model = tiny(model_type)
    plain = copy.deepcopy(model)
    if checkpointing:
        recompute_activations(model)
    rollouts = TransformersWorker(model, [EOS], 0).sample(PROMPTS, 2, Sampling(8), seed=0)
    algorithm = Algorithm("grpo", 2, 0.2, 0.2, "token", "sequence", "sample", 1e-6)
    learner = Learner(model, algorithm, ReverseKL(0.1), LearnerSettings(1e-3), 3)
    model.train()  # which nobody here does, and which changes nothing
    metrics = learner.gradient(rollouts, torch.tensor([1.0, -1.0] * len(PROMPTS)))
    assert metrics["rollout/mismatch_max"] < NATS and metrics["policy/kl_to_reference"] < 1e-6
    assert difference(rollouts, learner.log_probs(rollouts), plain) < NATS


def test_layers_are_still_recomputed_in_the_backward_pass():
    """Each once more, without noise and with the mode that it had, also after a sampler has used the model."""
    model = tiny("gpt2")
    recompute_activations(model)
    learner = make_learner(model)
    layers, calls = model.transformer.h, []
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, *rest: calls.append(any(m.training for m in module.modules())))
    TransformersWorker(model, [EOS], 0)
    calls.clear()
    learner.score(rollouts_of((3, 4), (2, 5)), torch.arange(2)).log_prob.sum().backward()
    assert calls == [False] * 2 * len(layers)
    silence(model)  # a second time changes nothing
    assert [layer.training for layer in layers] == [True] * len(layers)
    assert not any(part.training for layer in layers for part in layer.children())


# --- bfloat16 ---


class Casts(TorchDispatchMode):
    """Counts them."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.number += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))


# In each of two layers one for three (q, k, v) and one for two (gate, up); an expert's are not linear layers.
@pytest.mark.parametrize(
    ("model_type", "fewer"), [("qwen2", 6), ("llama", 6), ("gemma2", 6), ("mixtral", 4), ("gpt2", 0)]
)
def test_layers_that_read_the_same_states_share_their_cast(model_type: str, fewer: int):
    """Forward to the last bit; a gradient is as far from float32's as without."""
    tokens, logits, casts, gradients = torch.arange(4, 60).view(4, 14), [], [], []
    for half, shared in ((False, False), (True, False), (True, True)):
        model = tiny(model_type)
        if shared:
            share_casts(model)
        with Casts() as counted, torch.autocast("cpu", torch.bfloat16, half, cache_enabled=False):
            logits.append(model(input_ids=tokens, use_cache=False).logits)
        logits[-1].float().log_softmax(-1)[..., 5].mean().backward()
        casts.append(counted.number)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(logits[1], logits[2]) and casts[1] - casts[2] == fewer
    plain, ours = (float((gradient - gradients[0]).norm()) for gradient in gradients[1:])
    assert ours < 1.05 * plain


# --- adapters ---


def adapted(model_type: str, targets) -> None:
    settings = ModelSettings(name="tiny", path=".", adapter="lora", lora_rank=2, lora_targets=targets)
    add_lora(tiny(model_type), settings, seed=0)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "phimoe", "deepseek_v3"])
def test_the_advice_for_adapters_in_mixtures_of_experts_works(model_type: str):
    with pytest.raises(ConfigError) as refusal:
        adapted(model_type, "all-linear")
    advice = re.fullmatch(r"write model.lora_targets=\[([\w,]+)\]", refusal.value.remedy)
    assert advice
    adapted(model_type, advice[1].split(","))


# --- samplers ---


def test_a_model_that_ignores_padding_samples_prompts_of_one_length_at_a_time():
    model = tiny("bart")
    worker = TransformersWorker(model, [EOS], 0, batch_size=3)
    assert not worker.mixes_lengths
    rollouts = worker.sample(PROMPTS, 2, Sampling(6), seed=0)
    assert difference(rollouts, rollouts.log_probs, model) < NATS
    scored = worker.log_likelihood([PROMPTS[i // 2] for i in range(8)], completions(rollouts))
    torch.testing.assert_close(torch.tensor(scored), (rollouts.log_probs * rollouts.mask()).sum(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("model_type", "change"), [("minimax", {}), ("openai-gpt", {}), ("cpmant", {})])
def test_a_sampler_that_cannot_be_exact_is_refused_by_name(model_type: str, change: dict):
    with pytest.raises(ConfigError, match=rf"cannot sample from \w+ \(model_type={model_type}\): with cached keys"):
        TransformersWorker(tiny(model_type, **change), [EOS], 0)


def test_a_model_that_reads_ahead_is_refused():
    model = tiny("llama")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM .*with cached keys and values log-probabilities differ"):
        TransformersWorker(model, [EOS], 0)
