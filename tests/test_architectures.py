"""Whatever causal language model a user brings: exact, or refused in a sentence before anything is sampled.

Exact: the log-probabilities of sampler and learner are within 1e-4 nats, and the learner's gradient within a
thousandth, of a plain float32 forward pass of one unpadded sequence. Each type of the installed transformers is tried
with a tiny random model of its own configuration class, whose windows and chunks are shorter than the sequences and
whose dropout and router noise are on; all types by `-m slow`, which prints the table of docs/models.md.
"""

import copy
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.architectures import CONTEXT, EOS, TYPES, VOCABULARY, tiny, tiny_tokenizer
from helpers.exactness import (
    CPU,
    NATS,
    NOT_TRIED,
    PROMPTS,
    Measured,
    completions,
    difference,
    make_learner,
    measure,
    row,
    saved,
    summary,
    table,
)
from helpers.models import tiny_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch.utils._python_dispatch import TorchDispatchMode

from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.errors import CareError, ConfigError, DataError
from carerft.model.casts import share_casts
from carerft.model.export import export
from carerft.model.loading import context_length, load_model
from carerft.model.lora import add_lora
from carerft.model.modes import recompute_activations, silence
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import ReverseKL
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.prompt_check import warn_of_absurd_loss
from carerft.rollout.transformers import TransformersWorker
from carerft.tasks.encoding import encode, text_prefix
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


def rollouts_of(*lengths: tuple[int, int]) -> Rollouts:
    """Random sequences of these lengths, of prompt and completion."""
    generator = torch.Generator().manual_seed(0)
    prompts, rows = (
        [torch.randint(4, VOCABULARY - 4, (pair[part],), generator=generator) for pair in lengths] for part in (0, 1)
    )
    zeros = [torch.zeros(len(tokens)) for tokens in rows]
    return Rollouts.from_rows([p.tolist() for p in prompts], rows, zeros, torch.ones(len(rows), dtype=torch.bool))


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


# --- lengths ---


def longrope(original: int) -> dict:
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": parameters | {"original_max_position_embeddings": original},
    }


LIMITED = {
    "phi3": longrope(16),
    "llama": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "max_position_embeddings": 16,
    },
    "deepseek_v32": {"index_topk": 16},
    "doge": {"keep_window_size": 16},
}  # fmt: skip
"""Types that read a token in another way beyond 16 tokens, by what is read beside it or by rounding."""


@pytest.mark.parametrize("model_type", LIMITED)
def test_lengths_beyond_which_a_model_reads_otherwise_are_refused(model_type: str):
    model = tiny(model_type, **LIMITED[model_type])
    plain, worker = copy.deepcopy(model), TransformersWorker(model, [EOS], 0)
    assert worker.context == context_length(model) == 16
    with pytest.raises(ConfigError, match=r"max_tokens=8 after a prompt of 9 tokens.*beyond it"):
        worker.sample(PROMPTS, 1, Sampling(8), seed=0)
    rollouts = worker.sample(PROMPTS, 1, Sampling(7, ignore_eos=True), seed=0)
    assert difference(rollouts, rollouts.log_probs, plain) < NATS
    learner = make_learner(model)
    assert difference(rollouts, learner.log_probs(rollouts), plain) < NATS
    with pytest.raises(DataError, match=r"17 tokens, more than .* can learn from: 16"):
        learner.log_probs(rollouts_of((9, 8), (3, 4)))


def test_rotary_factors_that_are_fixed_limit_nothing():
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    assert context_length(tiny("llama", rope_parameters=yarn)) == CONTEXT


# --- files ---


def changed(directory: Path, change) -> ModelSettings:
    """A model's directory, with its weights changed."""
    settings = saved(tiny_model(vocabulary=VOCABULARY, tied=True), directory)
    weights = change(load_file(directory / "model.safetensors"))
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return settings


QUERY = "model.layers.0.self_attn.q_proj.weight"
UNFIT = {
    "compiled": (
        lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
        r"26 missing \(model.embed_tokens.weight, .*26 unexpected \(_orig",
    ),
    "wrapped": (lambda w: {f"module.{k}": v for k, v in w.items()}, r"26 missing .*26 unexpected \(module.model"),
    "one missing": (lambda w: {k: v for k, v in w.items() if k != QUERY}, rf"1 missing \({QUERY}\)$"),
    "another shape": (lambda w: w | {QUERY: w[QUERY][:8]}, rf"1 of another shape \({QUERY}\)$"),
    "more layers": (lambda w: w | {k.replace(".1.", ".2."): v.clone() for k, v in w.items()}, r"12 unexpected \("),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_that_do_not_fit_are_refused(kind: str, tmp_path: Path):
    change, says = UNFIT[kind]
    with pytest.raises(CareError, match=r"the weights of .* are not those of the model") as refusal:
        load_model(changed(tmp_path, change), CPU)
    assert re.search(says, refusal.value.what) and "save_pretrained" in refusal.value.remedy


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "vision_model.patches.weight"])
def test_tied_weights_old_buffers_and_parts_for_images_are_not_refused(name: str, tmp_path: Path):
    load_model(changed(tmp_path, lambda w: w | {name: torch.ones(4)}), CPU)


@pytest.mark.parametrize("model_type", ["gemma3", "gemma4"])
def test_a_soft_cap_in_a_nested_configuration_is_refused(model_type: str, tmp_path: Path):
    settings = saved(tiny(model_type, final_logit_softcapping=30.0), tmp_path)
    with pytest.raises(CareError, match=rf"LM head .*model_type={model_type}.* is not a plain matrix"):
        load_model(settings, CPU)


@pytest.mark.parametrize(
    ("model_type", "change"), [("granite", {"logits_scaling": 4.0}), ("phi", {}), ("minicpm3", {})]
)
def test_a_head_that_is_more_than_a_matrix_is_refused(model_type: str, change: dict, tmp_path: Path):
    with pytest.raises(CareError, match="is not a plain matrix"):
        load_model(saved(tiny(model_type, **change), tmp_path), CPU)


def test_a_cap_that_no_configuration_names_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = saved(tiny("qwen2"), tmp_path)
    forward = type(tiny("qwen2")).forward

    def capped(self, *arguments, **options):
        output = forward(self, *arguments, **options)
        output.logits = 50 * torch.tanh(output.logits / 50)
        return output

    monkeypatch.setattr(type(tiny("qwen2")), "forward", capped)
    with pytest.raises(CareError, match="is not a plain matrix"):
        load_model(settings, CPU)


def test_a_generation_config_that_cannot_be_saved_is_mended_when_the_model_is_loaded(tmp_path: Path, caplog):
    settings = saved(tiny_model(vocabulary=VOCABULARY), tmp_path / "base")
    contradiction = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [3, 5], "pad_token_id": 0}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(contradiction))
    policy, tokenizer = load_model(settings, CPU)
    assert "generation config" in caplog.text and "temperature" in caplog.text
    export(policy, tokenizer, tmp_path / "saved")
    kept = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert kept["eos_token_id"] == [3, 5] and kept["pad_token_id"] == 0 and "temperature" not in kept


def test_a_soft_cap_of_the_attention_is_not_left_out(tmp_path: Path):
    model = tiny("gemma2", final_logit_softcapping=None, attn_logit_softcapping=0.5)
    settings = saved(model, tmp_path)
    with pytest.raises(CareError, match=r"model_type=gemma2.*caps its attention's scores") as refusal:
        load_model(settings, CPU)
    assert refusal.value.remedy == "write model.attention=eager"
    capped, _ = load_model(replace(settings, attention="eager"), CPU)
    worker = TransformersWorker(capped, [EOS], 0)
    rollouts = worker.sample(PROMPTS, 1, Sampling(8), seed=0)
    assert difference(rollouts, rollouts.log_probs, capped) < NATS
    assert difference(rollouts, make_learner(capped).log_probs(rollouts), capped) < NATS


def test_a_model_without_this_attention_is_told_of_the_setting(tmp_path: Path):
    tiny("gpt_oss").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CareError, match="scaled_dot_product_attention") as refusal:
        load_model(ModelSettings(name="tiny", path=str(tmp_path)), CPU)
    assert refusal.value.remedy == "write model.attention=eager"
    load_model(ModelSettings(name="tiny", path=str(tmp_path), attention="eager"), CPU)


# --- tokenizers ---


def beginning_with(*words: str):
    tokenizer = tiny_tokenizer()
    template = " ".join([*words, "$A"])
    ids = [(word, int(word[1:])) for word in words]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def test_what_a_tokenizer_puts_before_a_text_is_kept():
    assert encode(["w7 w8", "w9"], tiny_tokenizer()) == [[7, 8], [9]]
    bos, two = beginning_with("w1"), beginning_with("w40", "w41")  # as Llama; as GLM, neither of which is its BOS
    assert text_prefix(bos) == [1] and text_prefix(two) == [40, 41]
    assert encode(["w7 w8", "w1 w9"], bos) == [[1, 7, 8], [1, 9]]
    assert encode(["w7 w8", "w40 w41 w9", "w40 w9"], two) == [[40, 41, 7, 8], [40, 41, 9], [40, 41, 40, 9]]
    assert encode([], two) == []


class Fixed:
    """A worker whose every token costs as much."""

    def __init__(self, nats: float):
        self.nats = nats

    def log_likelihood(self, prompts, continuations):
        return [-self.nats * len(tokens) for tokens in continuations]


@pytest.mark.parametrize(
    ("nats", "tokenizer", "says"),
    [
        (6.5, tiny_tokenizer(), "6.5 nats a token.*w1, and does not put it there.*add_bos_token"),
        (6.5, beginning_with("w1"), "6.5 nats a token.*may be those of another model"),
        (5.9, tiny_tokenizer(), None),
    ],
)
def test_a_model_that_cannot_read_its_prompts_is_warned_of(nats: float, tokenizer, says: str | None, caplog):
    caplog.set_level(logging.INFO)
    prompts = encode(["w7 w8 w9", "w9 w10", "w4"], tokenizer)
    assert warn_of_absurd_loss(Fixed(nats), prompts, tokenizer) == pytest.approx(nats)
    assert bool(re.search(says, caplog.text)) if says else not caplog.records


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
