"""learner.tokens_per_microbatch=null: as many tokens as fit into the machine's memory, found once and kept."""

import json
from pathlib import Path

import pytest
import torch
from helpers.configurations import composed, settings
from helpers.models import tiny_model
from helpers.runs import run
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from carerft.config.identity import config_hash, differences
from carerft.config.settings import MOST_TOKENS
from carerft.planning import microbatch
from carerft.planning.assumptions import GIB, load
from carerft.planning.job import job
from carerft.planning.memory import learning, resident
from carerft.planning.microbatch import LEAST_TOKENS, fitted, tokens_per_microbatch
from carerft.planning.shapes import shape_of, shape_of_model

CPU = torch.device("cpu")


def of_135m() -> LlamaConfig:
    """SmolLM2-135M."""
    return LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip


def on_meta(config) -> "AutoModelForCausalLM":
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("gib", [4, 8, 15.5, 23, 64, 512])
def test_a_model_of_135m_parameters_fits_into_half_of_the_memory(gib: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(microbatch, "machine_memory", lambda: gib * GIB)
    wanted, policy = settings(), on_meta(of_135m())
    tokens = tokens_per_microbatch(wanted, policy, CPU)  # type: ignore[arg-type]
    shape = shape_of_model(policy)  # type: ignore[arg-type]
    assert shape.parameters == sum(weight.numel() for weight in policy.parameters())  # type: ignore[attr-defined]
    chosen = job(wanted, load()).with_settings({"learner.tokens_per_microbatch": tokens})
    need = sum(resident(chosen, shape).values()) + sum(learning(chosen, shape).values())
    assert tokens in (LEAST_TOKENS, 512, 1024, 2048, 4096, 8192, MOST_TOKENS)
    assert need <= gib * GIB / 2 or tokens == LEAST_TOKENS
    doubled = chosen.with_settings({"learner.tokens_per_microbatch": 2 * tokens})
    assert tokens == MOST_TOKENS or need + sum(learning(doubled, shape).values()) > gib * GIB / 2


def test_the_built_in_model_keeps_16384(monkeypatch: pytest.MonkeyPatch):
    from carerft.config.settings import ModelSettings
    from carerft.model.loading import load_model

    monkeypatch.setattr(microbatch, "machine_memory", lambda: 4 * GIB)
    policy, _ = load_model(ModelSettings(name="tiny", path="world"), CPU)
    assert tokens_per_microbatch(settings(), policy, CPU) == MOST_TOKENS
    assert shape_of_model(policy) == shape_of("world", {})


def test_on_a_gpu_and_where_it_is_given_nothing_is_computed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(microbatch, "machine_memory", lambda: 1)
    policy = tiny_model()
    assert tokens_per_microbatch(settings(), policy, torch.device("cuda")) == MOST_TOKENS
    assert tokens_per_microbatch(settings("learner.tokens_per_microbatch=77"), policy, CPU) == 77
    assert tokens_per_microbatch(settings(), policy, CPU) == LEAST_TOKENS


def test_a_configuration_with_other_names_for_its_sizes():
    config = GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=100)
    shape = shape_of_model(on_meta(config))  # type: ignore[arg-type]
    assert (shape.hidden, shape.intermediate, shape.layers, shape.queries, shape.keys) == (64, 256, 3, 64, 64)


def test_a_plan_counts_with_it():
    shape, wanted = shape_of("Qwen/Qwen2.5-0.5B", load().models), job(settings(), load())
    large, small = fitted(wanted, shape, 4096 * GIB), fitted(wanted, shape, 32 * GIB)
    assert large.learner.tokens_per_microbatch == MOST_TOKENS
    assert LEAST_TOKENS < small.microbatch_tokens < MOST_TOKENS == wanted.microbatch_tokens
    assert fitted(small, shape, 1) is small


def test_runs_with_the_earlier_default_are_the_same_runs():
    earlier, now = composed("learner.tokens_per_microbatch=16384", "rollout.batch_size=256"), composed()
    assert now["learner"]["tokens_per_microbatch"] is now["rollout"]["batch_size"] is None
    assert config_hash(earlier) == config_hash(now) and differences(earlier, now) == []
    assert differences(now, composed("learner.tokens_per_microbatch=99")) == [
        "learner.tokens_per_microbatch: None -> 99"
    ]


def test_a_run_writes_it_down_and_is_continued_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from carerft.training.learner import Learner

    used = []
    monkeypatch.setattr(microbatch, "machine_memory", lambda: 1)
    step = Learner.step

    def stopped(self: Learner, *arguments, **options):
        used.append(self.settings.tokens_per_microbatch)
        if len(used) == 2:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    monkeypatch.setattr(Learner, "step", stopped)
    words = ["benchmark=none", "learner.checkpoint_every=1", "learner.updates_per_batch=1"]
    assert run(tmp_path / "run", *words) == 130
    assert json.loads((tmp_path / "run/manifest.json").read_text())["tokens_per_microbatch"] == LEAST_TOKENS
    monkeypatch.setattr(microbatch, "machine_memory", lambda: 4096 * GIB)
    assert run(tmp_path / "run", *words) == 0
    assert set(used) == {LEAST_TOKENS} and len(used) >= 3
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["tokens_per_microbatch"] == LEAST_TOKENS
    assert manifest["config"]["learner"]["tokens_per_microbatch"] is None
