"""Files of a model that would be read wrongly: refused in a sentence, or mended, before anything is sampled."""

import copy
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.architectures import CONTEXT, EOS, VOCABULARY, tiny, tiny_tokenizer
from helpers.exactness import (
    CPU,
    NATS,
    PROMPTS,
    difference,
    make_learner,
    rollouts_of,
    saved,
)
from helpers.models import tiny_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from carerft.config.settings import ModelSettings
from carerft.errors import CareError, ConfigError, DataError
from carerft.model.export import export
from carerft.model.loading import context_length, load_model
from carerft.rollout import Sampling
from carerft.rollout.prompt_check import warn_of_absurd_loss
from carerft.rollout.transformers import TransformersWorker
from carerft.tasks.encoding import encode, text_prefix

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
