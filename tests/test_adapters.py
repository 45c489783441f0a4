"""LoRA: what learns, what it is compared with, and what leaves the run as a plain model or as peft's adapter."""

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configurations import refused, settings
from helpers.engines import needs_vllm, options, save_model
from helpers.models import random_rollouts, tiny_model
from helpers.runs import TWO, check_equal, finish, lines, logged, start, train, wait_for
from peft import PeftModel
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM, PreTrainedModel

from carerft.config.checks import check_evaluate, check_train
from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.errors import ConfigError
from carerft.model.lora import adapted_layers, adapter_off, add_lora, merged_weights
from carerft.model.modes import recompute_activations
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import SkewReverseKL
from carerft.rollout.transformers import TransformersWorker
from carerft.sweeps.cells import cells
from carerft.sweeps.folders import experiment
from carerft.training.attention import use_packed_attention
from carerft.training.learner import Learner
from carerft.world.bases import SHIPPED

GROUP = 4
ALGORITHM = Algorithm("grpo", GROUP, 0.2, 0.2, "token", "sequence", "sample")


def with_lora(model: PreTrainedModel, **changes: Any) -> PreTrainedModel:
    add_lora(model, ModelSettings(**{"lora_rank": 4, "lora_alpha": 8, **changes}), seed=0)
    return model


def moved(model: PreTrainedModel) -> PreTrainedModel:
    """With an adapter that does something: neither A nor B is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def made(model: PreTrainedModel, **settings: Any) -> Learner:
    usual = {"learning_rate": 1e-2, "tokens_per_microbatch": 110}
    return Learner(model, ALGORITHM, SkewReverseKL(beta=0.5, alpha=0.5), LearnerSettings(**usual | settings), 4)


def learned(learner: Learner, steps: int) -> list[dict[str, float]]:
    return [learner.step(random_rollouts(4, GROUP, seed), torch.linspace(-1.5, 1.5, 16)) for seed in range(steps)]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(2, 26).view(2, 12)).logits


def run_weights(directory: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(directory / name) for name in ("model/model.safetensors", "adapter/adapter_model.safetensors")]


@pytest.mark.parametrize("settings", [{}, {"share_prompts": False}, {"precision": "bfloat16"}], ids=str)
def test_at_first_the_policy_is_its_reference_to_the_last_bit(settings: dict):
    learner, batch = made(with_lora(tiny_model()), **settings), random_rollouts(4, GROUP)
    before = learner.score(batch, torch.arange(16), learner.regularizer)
    assert torch.equal(before.log_prob, before.ref_log_prob)
    learned(learner, 2)
    after = learner.score(batch, torch.arange(16), learner.regularizer)
    assert torch.equal(after.ref_log_prob, before.ref_log_prob)
    assert (after.log_prob - after.ref_log_prob).abs().max() > 1e-2


def test_the_adapter_learns_what_it_would_beside_a_copy_of_the_base_model():
    shared, copied = (made(moved(with_lora(tiny_model()))) for _ in range(2))
    assert shared.reference is shared.policy
    copied.reference = tiny_model().requires_grad_(False)
    use_packed_attention(copied.reference)
    assert learned(shared, 3) == learned(copied, 3)
    for ours, theirs in zip(shared.policy.parameters(), copied.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_adapter_learns(checkpointing: bool):
    base, learner = tiny_model().state_dict(), made(with_lora(tiny_model()))
    if checkpointing:
        recompute_activations(learner.policy)
    first = {name: tensor.clone() for name, tensor in learner.policy.state_dict().items()}
    learned(learner, 2)  # at the first step A's gradient is zero, because B is
    for name, tensor in learner.policy.state_dict().items():
        assert torch.equal(tensor, first[name]) != (".lora_" in name), name
    with adapter_off(learner.policy):
        assert torch.equal(logits(learner.policy), logits(tiny_model()))
    # Each of two layers has A (4, in) and B (out, 4) beside q, k, v, o, gate, up and down, in and out being
    # 32-32, 32-16, 32-16, 32-32, 32-64, 32-64, 64-32: 4 x (64 + 48 + 48 + 64 + 96 + 96 + 96) = 2,048 numbers.
    held = [p for group in learner.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == 2 * 2048
    assert {p.dtype for p in held} == {torch.float32}
    assert base.keys() == dict(merged_weights(learner.policy)).keys()


@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "plain"])
def test_a_base_that_bfloat16_holds_is_held_in_it(checkpointing: bool, monkeypatch: pytest.MonkeyPatch):
    """To the last bit what float32 gives, which autocast rounds at each use; merged weights are float32 in both."""
    found = []
    for rounded in (True, False):
        if not rounded:
            monkeypatch.setattr("carerft.training.learner.round_matrices", lambda *which, **how: None)
        model = with_lora(tiny_model(tied=False).bfloat16().float())
        if checkpointing:
            recompute_activations(model)
        learner = made(model, precision="bfloat16")
        held = torch.bfloat16 if rounded else torch.float32
        frozen = [layer.base_layer.weight.dtype for layer in adapted_layers(model).values()]
        assert {*frozen, model.lm_head.weight.dtype} == {held}
        assert model.get_input_embeddings().weight.dtype == torch.float32
        found.append((learned(learner, 3), dict(merged_weights(model))))
    (metrics, merged), (expected_metrics, expected) = found
    assert metrics == expected_metrics and merged.keys() == expected.keys()
    assert all(w.dtype == torch.float32 and torch.equal(w, expected[name]) for name, w in merged.items())


def test_beginnings_are_shared_beside_a_base_that_is_held_in_bfloat16():
    """A worker tries it when the first such prompts come: the learner then holds the base's layers rounded."""
    model = with_lora(tiny_model(tied=False).bfloat16().float())
    worker = TransformersWorker(model, [0], 0, dtype=torch.bfloat16)
    made(model, precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
    assert worker.shares_beginnings


def test_a_base_that_bfloat16_would_round_stays_as_it_is():
    learner = made(with_lora(tiny_model()), precision="bfloat16")
    assert {layer.base_layer.weight.dtype for layer in adapted_layers(learner.policy).values()} == {torch.float32}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], r".*layers\.1.*(q|k|v)_proj"], ids=str)
def test_merged_weights_are_the_policy(targets: Any):
    policy = moved(with_lora(tiny_model().double(), lora_targets=targets))
    plain = tiny_model().double()
    assert (logits(policy) - logits(plain)).abs().max() > 0.1
    plain.load_state_dict(dict(merged_weights(policy)))
    torch.testing.assert_close(logits(plain), logits(policy), rtol=0, atol=1e-12)
    counts = {"all-linear": 14, "['q_proj', 'down_proj']": 4}
    assert len(adapted_layers(policy)) == counts.get(str(targets), 3)


def test_what_is_merged_is_alpha_over_rank_times_b_a():
    policy, name = with_lora(tiny_model(), lora_rank=1, lora_alpha=6), "model.layers.1.mlp.up_proj"
    layer = adapted_layers(policy)[name]
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(0.5)
        layer.lora_B["default"].weight.copy_(torch.arange(64)[:, None])
    added = dict(merged_weights(policy))[f"{name}.weight"] - layer.base_layer.weight
    expected = (6 * 0.5 * torch.arange(64))[:, None].expand(64, 32)
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-4)


def test_an_adapter_begins_alike_whatever_was_drawn_before():
    first = with_lora(tiny_model())
    second = tiny_model()
    torch.manual_seed(77)
    state = torch.get_rng_state()
    with_lora(second)
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_holds_the_adapter_alone_and_continues_bit_identical(tmp_path: Path):
    whole, half, rest = (made(with_lora(tiny_model())) for _ in range(3))
    learned(whole, 4)
    learned(half, 2)
    half.save(tmp_path / "tensors")
    kept = FileSystemReader(tmp_path / "tensors").read_metadata().state_dict_metadata
    assert len(kept) == 28 * 4 and all(".lora_" in name for name in kept)  # A and B of 14 layers: weight, step, moments
    rest.load(tmp_path / "tensors")
    rest.load_state(half.state())
    metrics = [rest.step(random_rollouts(4, GROUP, seed), torch.linspace(-1.5, 1.5, 16)) for seed in (2, 3)]
    assert metrics == learned(made(with_lora(tiny_model())), 4)[2:]
    for ours, theirs in zip(rest.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


LORA = [
    "model.adapter=lora",
    "model.lora_rank=4",
    "learner.learning_rate=3e-3",
    "steps=4",
    "learner.updates_per_batch=2",
]
MEASURED = ["learner.adam_eps=1e-3", "benchmark=world", "evaluation.limit=4", "samples=2", "evaluation.bootstrap=20"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("lora") / "run"
    train(directory, *LORA, *MEASURED)
    return directory


def test_a_run_leaves_a_plain_model_and_an_adapter_that_are_one(finished: Path):
    assert lines(finished)[0]["policy/kl_to_reference"] == pytest.approx(0, abs=1e-6)
    assert lines(finished)[-1]["policy/kl_to_reference"] > 1e-5
    base, plain = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (SHIPPED, finished / "model"))
    assert load_file(finished / "model" / "model.safetensors").keys() == load_file(SHIPPED / "model.safetensors").keys()
    before = logits(base)
    loaded = PeftModel.from_pretrained(base, finished / "adapter")
    torch.testing.assert_close(logits(loaded), logits(plain), rtol=0, atol=1e-4)
    assert (logits(plain) - before).abs().max() > 1e-2
    described = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["peft_type"]) == (4, 64, "LORA")
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["benchmarks"]["world_truth"]["n"] == 4


@pytest.mark.slow  # tests/test_resume.py has runs without an adapter, whose checkpoints are made the same way
def test_an_interrupted_run_continues_bit_identical(finished: Path, tmp_path: Path):
    directory = tmp_path / "run"
    process = start(directory, *LORA, *MEASURED)
    wait_for(lambda: logged(directory) >= 1, process)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert 1 <= logged(directory) < 4
    train(directory, *LORA, *MEASURED)
    assert lines(directory) == lines(finished)
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (directory / file).read_bytes() == (finished / file).read_bytes()


@pytest.mark.slow  # tests/test_processes.py has their gradients, tests/test_torchrun.py whole runs without an adapter
def test_two_processes_end_where_one_does(finished: Path, tmp_path: Path):
    directory = tmp_path / "run"
    train(directory, TWO, *LORA, *MEASURED)
    check_equal(directory, finished)
    for found, expected in zip(run_weights(directory), run_weights(finished), strict=True):
        assert found.keys() == expected.keys()
        assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-4


@needs_vllm
def test_an_engine_samples_from_the_merged_weights(tmp_path: Path):
    from carerft.rollout import Sampling
    from carerft.rollout.sync_check import teacher_forced
    from carerft.rollout.vllm import VllmWorker

    policy = with_lora(save_model(tmp_path))
    worker = VllmWorker(options(tmp_path), verify_sync=True)
    try:
        worker.sync(policy)
        worker.sync(moved(policy))  # and prove it
        rollouts = worker.sample([[5, 6, 7]], 4, Sampling(12, ignore_eos=True), seed=0)
    finally:
        worker.close()
    prompts = rollouts.prompt_tokens.expand(4, -1)
    expected = teacher_forced(policy, prompts, rollouts.tokens, "float32")
    torch.testing.assert_close(rollouts.log_probs, expected, rtol=0, atol=1e-4)
    with adapter_off(policy):
        without = teacher_forced(policy, prompts, rollouts.tokens, "float32")
    assert (expected - without).abs().max() > 0.1


@pytest.mark.parametrize(
    ("overrides", "names", "remedy"),
    [
        ("model.adapter=dora", "model.adapter=dora: must be lora or null", "model.adapter=lora"),
        ("model.adapter=lora model.lora_rank=0", "model.lora_rank=0: must be at least 1", "1 or more"),
        ("model.adapter=lora model.lora_alpha=-1", "model.lora_alpha=-1: must be at least 1", "1 or more"),
        ("model.adapter=lora model.lora_targets=[]", "model.lora_targets=[]: there would be nothing", "all-linear"),
        ("model.adapter=lora learner.reference_offload=true", "takes no memory", "learner.reference_offload=false"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(overrides: str, names: str, remedy: str):
    refused(overrides, names, remedy)


def test_without_peft_a_run_says_how_to_get_it(monkeypatch):
    check_train(settings("model.adapter=lora"))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    refused("model.adapter=lora", "model.adapter=lora needs peft", 'pip install "carerft[lora]"')
    check_train(settings("model.adapter=lora"), here=False)


def test_an_evaluation_has_no_adapter_to_train():
    with pytest.raises(ConfigError, match="measures a model as it is"):
        check_evaluate(settings("model.adapter=lora", verb="evaluate"))


def test_the_base_model_of_an_experiment_is_measured_once_and_without_adapter():
    given = ["model=tiny", "model.adapter=lora", "model.lora_rank=4,8", "seed=0", "algorithm=grpo"]
    base, *trained = cells(experiment("table1"), given)
    assert base.command == "evaluate" and base.settings.model.adapter is None
    assert base.settings == cells(experiment("table1"), [*given[:1], *given[3:]])[0].settings
    assert sorted(cell.settings.model.lora_rank for cell in trained) == [4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["absent_proj"], "absent_proj"),
        (["q_proj", "lm_head"], "lm_head is not a linear layer inside the decoder"),
        (["embed_tokens"], "embed_tokens is not a linear layer inside the decoder"),
        (["input_layernorm"], "Qwen2RMSNorm"),
        ("(q_proj", "missing \\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.")
def test_targets_that_the_model_does_not_have_are_named(targets: Any, said: str):
    with pytest.raises(ConfigError, match=said) as raised:
        with_lora(tiny_model(), lora_targets=targets)
    assert "model.lora_targets=" in raised.value.what
