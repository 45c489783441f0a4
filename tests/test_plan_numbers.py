"""What a plan computes: memory and time against numbers computed by hand and counted by PyTorch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configurations import settings as composed_settings
from helpers.models import random_rollouts, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from carerft.config.settings import LearnerSettings, ModelSettings, RolloutSettings, VllmSettings
from carerft.errors import ConfigError
from carerft.model.casts import share_casts
from carerft.model.lora import add_lora
from carerft.objective import lm_head
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import ReverseKL
from carerft.planning import memory as planned
from carerft.planning.assumptions import GIB, Dataset, Device, load
from carerft.planning.job import Job, Measured, job
from carerft.planning.memory import activations, memory, resident, trained
from carerft.planning.seconds import decoding, learning, learning_flops, measuring, seconds
from carerft.planning.shapes import Shape, shape_from, shape_of
from carerft.training.learner import Learner
from carerft.world.bases import SHIPPED

# layer = 2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8 = 144 weights in matrices, head = 4 * 10; two norms a layer, one at the end:
# 2 * (144 + 8) + 4 + 40 = 348 parameters
SMALL = Shape(hidden=4, intermediate=8, layers=2, queries=4, keys=2, vocabulary=10, tied=True, context=64)
STATED = load()
HALF = {"learner.precision": "bfloat16"}
VLLM = VllmSettings(
    name="vllm", prompts_per_batch=8, max_tokens=16, batch_size=16, placement="colocated", gpu_memory_utilization=0.5
)


def small_job(settings: dict[str, Any] | None = None, **changes: Any) -> Job:
    """8 prompts of 6 tokens, 4 completions of 10 tokens each, two updates; with these settings and fields."""
    usual = Job(
        steps=10, samples=4, group_size=4, penalized=True, exact=True, groups=1, rounds=1,
        model=ModelSettings(name="small", path="small"), learner=LearnerSettings(tokens_per_microbatch=100),
        rollout=RolloutSettings(name="transformers", prompts_per_batch=8, max_tokens=16, batch_size=16),
        task=Dataset(questions=100, prompt=6, completion=10, max_tokens=16), benchmarks=[],
    )  # fmt: skip
    return dataclasses.replace(usual, **changes).with_settings(settings or {})


def lora(rank: int, **settings: Any) -> dict[str, Any]:
    return {"model.adapter": "lora", "model.lora_rank": rank} | settings


def device(**changes: Any) -> Device:
    """10 FLOP/s and 10 bytes/s, of which half is reached; no memory is reserved."""
    peak = {"float32": 1e-11, "bfloat16": 1e-11}
    usual = Device(
        1000 / GIB, 1e-8, peak, 0.5, 0.5, 0.5, kernel_us=0, engine_step_ms=0, reserved_gib=0, price_per_hour=1,
        engine_tokens=16, engine_sequences=4,
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


@pytest.mark.parametrize(
    ("path", "parameters"),
    # as the checkpoints have them
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
    ],
)
def test_known_shapes_have_the_parameters_of_the_models(path: str, parameters: int):
    assert shape_of(path, STATED.models).parameters == parameters


def test_the_shape_of_a_local_model_is_that_of_its_config(tmp_path: Path):
    recorded = json.loads((SHIPPED / "provenance.json").read_text())["parameters"]
    assert shape_of("world", {}).parameters == recorded == shape_of(str(SHIPPED), {}).parameters
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(ConfigError, match="num_attention_heads"):
        shape_of(str(tmp_path), {})
    with pytest.raises(ConfigError, match="shape of org/unknown is unknown"):
        shape_of("org/unknown", STATED.models)


@pytest.mark.parametrize("rank", [0, 32])
def test_activations_are_what_autograd_keeps(rank: int):
    config = Qwen2Config(
        vocab_size=64, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=256, max_position_embeddings=512,
    )  # fmt: skip
    model, shape = Qwen2ForCausalLM(config).train(), shape_from(config.to_dict())
    if rank:
        add_lora(model, ModelSettings(lora_rank=rank), seed=0)
    share_casts(model)
    tokens = torch.randint(0, 64, (8, 128))

    def kept(precision: str) -> int:
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        copies = {parameter.shape for parameter in model.parameters() if parameter.ndim == 2}
        sizes = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and not {tensor.shape, tensor.shape[::-1]} & copies:
                sizes[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other takes its place
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            model.model(input_ids=tokens, use_cache=False)
        return sum(size for size, _ in sizes.values())

    for precision in ("float32", "bfloat16"):
        settings = {"learner.precision": precision, "learner.tokens_per_microbatch": tokens.numel()}
        wanted = small_job(settings | (lora(rank) if rank else {}))
        assert activations(wanted, shape) == pytest.approx(kept(precision), rel=0.05)


def test_checkpointed_activations_are_the_layers_inputs_and_one_layer():
    one = activations(small_job(), dataclasses.replace(SMALL, layers=1))
    assert one == 100 * (24 * 4 + 16 * 4 + 16 * 8)
    assert activations(small_job({"learner.gradient_checkpointing": True}), SMALL) == one + 100 * 2 * 4 * 4
    # A sequence that is longer than the budget, 6 + 16 tokens, goes alone.
    one, longest = (small_job({"learner.tokens_per_microbatch": n}) for n in (1, 22))
    assert activations(one, SMALL) == pytest.approx(activations(longest, SMALL))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rank", [0, 4])
def test_learning_has_the_operations_that_pytorch_counts(
    exact: bool, kept: bool, rank: int, monkeypatch: pytest.MonkeyPatch
):
    """Prompts of 6 tokens and completions of 9, without padding, read separately in one microbatch."""
    chunk = lm_head.CHUNK_ELEMENTS if kept else 100
    monkeypatch.setattr(lm_head, "CHUNK_ELEMENTS", chunk)
    model, rollouts = tiny_model(vocabulary=300), random_rollouts(prompts=3, group=4)
    rollouts.prompt_lengths[:], rollouts.lengths[:] = 6, 9
    if rank:
        add_lora(model, ModelSettings(lora_rank=rank), seed=0)
    learner = Learner(
        model,
        Algorithm(
            name="grpo", group_size=4, clip_low=0.2, clip_high=0.2,
            ratio="token", aggregation="token", advantage_std="none",
        ),
        ReverseKL(beta=0.1, estimator="exact" if exact else "k3"),
        LearnerSettings(learning_rate=0.0, share_prompts=False),
        steps=1,
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        learner.gradient(rollouts, torch.ones(12))
    settings = {"learner.updates_per_batch": 1, "learner.share_prompts": False, "learner.tokens_per_microbatch": 10_000}
    settings |= {"rollout.prompts_per_batch": 3} | (lora(rank) if rank else {})
    wanted = small_job(settings, exact=exact, task=Dataset(questions=100, prompt=6, completion=9, max_tokens=16))
    # Nothing before the first layer learns beside an adapter: no gradient comes to the input of its q, k and v and of
    # their A, at 12 x 15 tokens. That counts in a model of two layers.
    skipped = 2 * 180 * (32 * (32 + 16 + 16) + 3 * 4 * 32) if rank else 0
    # Attention is a small part of it: PyTorch counts all of its square where the plan takes half.
    assert learning_flops(wanted, shape_from(model.config.to_dict())) == pytest.approx(
        counter.get_total_flops() + skipped, rel=0.05
    )


def test_the_learner_holds_sixteen_bytes_a_weight_and_four_while_it_learns():
    held = resident(small_job(), SMALL)
    assert sum(held.values()) == 16 * 348  # weights 4, moments 8, reference 4
    unmonitored = small_job({"learner.monitor_reference": False}, penalized=False)
    assert sum(resident(unmonitored, SMALL).values()) == 12 * 348
    four = {"learner.processes": 4}
    assert sum(resident(small_job(four, rollout=VLLM), SMALL).values()) == 4 * 348
    offloaded = small_job(four | {"learner.reference_offload": True}, rollout=VLLM)
    assert sum(resident(offloaded, SMALL).values()) == 3 * 348
    # Our own sampler takes the learner's weights, or, where each process has but a part, a copy of all.
    assert sum(resident(small_job(four), SMALL).values()) == (4 + 4) * 348
    assert memory(small_job(), SMALL, device()).uses["learner, learning"]["gradients, float32"] == 4 * 348
    assert planned.learning(small_job(HALF), SMALL)["weights, bfloat16 copies"] == 2 * 348


def test_moments_in_8_bits_are_two_bytes_a_weight_and_their_scales():
    real, eight = shape_of("Qwen/Qwen2.5-3B", STATED.models), small_job({"learner.optimizer": "adamw_8bit"})
    held = resident(eight, real)["Adam's moments, 8 bits"]
    assert held == pytest.approx((2 + 8 / 128) * 3_085_938_688)
    # of the paper's model 2.06 bytes a weight, 5.9 GiB, instead of 8, 23.0 GiB
    assert held / GIB == pytest.approx(5.93, abs=0.01)
    assert resident(eight.with_settings({"learner.processes": 4}), real)["Adam's moments, 8 bits"] == held / 4
    assert resident(small_job(), real)["Adam's moments, float32"] / GIB == pytest.approx(22.99, abs=0.01)


def test_with_an_adapter_only_its_weights_have_gradients_and_moments():
    # A and B of rank 3: q and o 4 + 4, k and v 4 + 2, gate, up and down 4 + 8; 2 layers x 3 x (16 + 12 + 36) = 384.
    three = small_job(lora(3))
    assert resident(three, SMALL) == {
        "weights, float32": 4 * 348, "adapter, float32": 4 * 384, "Adam's moments, float32": 8 * 384
    }  # fmt: skip
    assert planned.learning(three, SMALL)["gradients, float32"] == 4 * 384
    assert planned.head(small_job(), SMALL) - planned.head(three, SMALL) == 4 * 40  # the head's gradient
    halves = resident(small_job(lora(3, **{"learner.processes": 2}), rollout=VLLM), SMALL)
    assert sum(halves.values()) == 2 * 348 + 6 * 384
    # Frozen matrices, 2 x 144 weights, are in bfloat16 for good: no copies. An untied head, 40, as well.
    rounded, untied = small_job(lora(3) | HALF), dataclasses.replace(SMALL, tied=False)
    assert resident(rounded, SMALL)["weights, mostly bfloat16"] == 4 * 348 - 2 * 288
    assert "weights, bfloat16 copies" not in planned.learning(rounded, SMALL)
    assert planned.head(rounded, SMALL) - planned.head(rounded, untied) == 2 * 2 * 40
    shared = rounded.with_settings({"learner.processes": 2})
    assert resident(shared, SMALL)["weights, float32"] == 2 * 348
    assert planned.learning(shared, SMALL)["weights, bfloat16 copies"] == 2 * (144 + 40)


def test_a_plan_reads_the_adapter_from_the_configuration():
    wanted = job(composed_settings("model=qwen2.5-7b", "task=math", "model.adapter=lora", "model.lora_rank=16"), STATED)
    # The adapter of rank 16 that peft makes of Qwen2.5-7B has 40,370,176 weights.
    assert trained(wanted, shape_of("Qwen/Qwen2.5-7B", STATED.models)) == 40_370_176


def test_in_bfloat16_the_reference_is_half_and_checkpointing_needs_no_copies():
    """348 weights, 288 of them in the layers' matrices and 40 in a head that is the embedding."""
    half = small_job(HALF)
    assert resident(half, SMALL)["reference, mostly bfloat16"] == 4 * 348 - 2 * 288
    untied = dataclasses.replace(SMALL, tied=False)
    assert resident(half, untied)["reference, mostly bfloat16"] == 4 * 388 - 2 * (288 + 40)
    assert resident(half.with_settings({"learner.processes": 2}), SMALL)["reference, float32"] == 2 * 348
    checkpointed = half.with_settings({"learner.gradient_checkpointing": True})
    assert planned.learning(checkpointed, SMALL)["weights, bfloat16 copies"] == 2 * 144
    # A head in bfloat16 already is not copied for its products.
    assert planned.head(half, SMALL) - planned.head(half, untied) == 2 * 40


def test_in_bfloat16_our_own_sampler_holds_a_copy_of_each_float32_matrix():
    def copies(settings: dict[str, object], shape: Shape = SMALL) -> float:
        found = memory(small_job(settings), shape, device()).uses["learner, sampling"]
        return found.get("weights, bfloat16 copies", 0.0)

    untied = dataclasses.replace(SMALL, tied=False)
    assert copies({}) == 0.0
    assert copies(HALF) == copies(HALF, untied) == 2 * (288 + 40)
    # Beside an adapter the layers are in bfloat16 already, and so is a head of its own.
    assert copies(lora(3) | HALF) == 2 * 40 and copies(lora(3) | HALF, untied) == 0.0


def test_a_chunk_of_logits_is_all_that_the_head_holds():
    # Qwen's vocabulary: two chunks and one in bfloat16, four tiles of 32 MiB, a float32 head and two in bfloat16.
    shape = dataclasses.replace(SMALL, hidden=2048, vocabulary=151_936)
    found = planned.head(small_job(HALF | {"learner.tokens_per_microbatch": 16384}), shape)
    assert found == (256 + 256 + 128 + 4 * 32) * 2**20 + (4 + 2 + 2) * 2048 * 151_936


def test_an_engine_takes_its_share_and_must_hold_one_whole_sequence():
    one, large = small_job(rollout=VLLM), device(memory_gib=9000 / GIB)
    found = memory(one, SMALL, large)
    # 16 tokens at once, each 2 x 4 + 3 x 8 numbers: 2,048 bytes. 16 sequences' logits, 4 x 10 bytes each, are fewer.
    parts = {"engine's weights": 4 * 348, "engine's forward pass": 2048, "engine's keys and values": 4500 - 1392 - 2048}
    assert parts.items() <= found.uses["learner, sampling"].items()
    # 64 tokens, the model's context, of 2 layers, keys and values of 2 numbers, 4 bytes: 2,048 bytes beside the others
    assert found.shortage == 1392 + 2048 + 2048 - 4500 and not found.fits
    assert memory(one.with_settings({"rollout.max_model_len": 8}), SMALL, large).shortage == 0
    assert memory(one.with_settings({"rollout.kv_cache_gib": 2048 / GIB}), SMALL, large).shortage == 0
    logits = memory(one, SMALL, dataclasses.replace(large, engine_tokens=4)).uses["learner, sampling"]
    assert logits["engine's forward pass"] == 16 * 4 * 10
    # Left open: as many sequences as vLLM takes on this device, 4; and of our own sampler 256.
    assert one.with_settings({"rollout.batch_size": None}).side_by_side(large) == 4
    assert small_job({"rollout.batch_size": None}).side_by_side(large) == 256
    # Two devices share weights, MLPs and cache, not the residual stream: 16 x (8 + 12) x 4.
    two = memory(one.with_settings({"rollout.tensor_parallel_size": 2}), SMALL, large).uses["learner, sampling"]
    assert (two["engine's weights"], two["engine's forward pass"]) == (2 * 348, 1280)
    apart = one.with_settings({"rollout.placement": "dedicated"})
    assert list(memory(apart, SMALL, large).uses) == ["learner, learning", "engine, sampling"]
    assert (one.devices, apart.devices, apart.with_settings({"rollout.tensor_parallel_size": 4}).devices) == (1, 2, 5)


def test_seconds_of_a_step_by_hand():
    """16 completions of 10 tokens in a step, of which 9 are read, and 4 prompts of 6: 168 tokens."""
    # body: 168 tokens * 2 layers * (2 * 144 + 2 * 4 * 16) * (3 + the reference); head: 2 * 40 * 160 * (3 + 1)
    flops = 168 * 2 * (288 + 128) * 4 + 2 * 40 * 160 * 4
    assert learning_flops(small_job(), SMALL) == flops
    assert learning(small_job(), SMALL, device()) == pytest.approx(flops / 5)
    assert learning(small_job({"learner.processes": 2}), SMALL, device()) == pytest.approx(flops / 10)


def test_sampling_takes_steps_of_the_longest_or_as_many_as_the_tokens_need():
    """32 completions of 10 tokens, 16 at a time. The host's 1 s a step is all that costs anything."""
    free = device(kernel_us=1e6 / 20 / 2, engine_step_ms=1e3, bandwidth=1e30, peak={"float32": 1e30})

    def sampled(job: Job) -> float:
        return decoding(job, SMALL, free, job.task, prompts=8, group=4)

    assert sampled(small_job()) == pytest.approx(2 * 16)
    assert sampled(small_job(rollout=VLLM)) == pytest.approx(2 * 10 + 6)
    # Two engines, or the engines of two processes, sample 16 completions each.
    assert sampled(small_job({"learner.processes": 2}, rollout=VLLM)) == pytest.approx(10 + 6)
    two = {"rollout.placement": "dedicated", "rollout.engines": 2}
    assert sampled(small_job(two, rollout=VLLM)) == pytest.approx(10 + 6)


def test_likelihoods_of_choices_take_their_tokens_and_each_prompt_once():
    """10 questions of 20 tokens, of which 15 begin all of them, with 3 choices of 4 tokens. A token costs 2 layers *
    (2 * 144 + 2 * 4 * 24) and, where it gets a probability, 2 * 40 operations, of which 5 are done in a second."""
    data = Dataset(questions=10, prompt=20, completion=9, max_tokens=0, choices=3, choice=4, shared=15)
    once = Measured([data], samples=4)
    body, head = 2 * (288 + 192), 2 * 40
    own = measuring(small_job(), SMALL, device(), once)
    assert own == pytest.approx(10 * ((5 + 12) * body + 12 * head) / 5)
    engine = measuring(small_job(rollout=VLLM), SMALL, device(), once)
    assert engine == pytest.approx(10 * 3 * 24 * (body + head) / 5)
    stated = dataclasses.replace(STATED, start_s={"transformers": 7.0}, disk=1e30)
    three = dataclasses.replace(once, times=3)
    assert seconds(small_job(validation=three), SMALL, device(), stated).rest == pytest.approx(7.0 + 3 * own)
    # What is sampled comes on top: one token of one sequence at a time, and each prompt.
    sampled = dataclasses.replace(once, benchmarks=[dataclasses.replace(data, max_tokens=16)])
    alone = dataclasses.replace(once, benchmarks=[dataclasses.replace(data, max_tokens=16, choices=0)])
    both, less = (measuring(small_job(), SMALL, device(), each) for each in (sampled, alone))
    assert both == pytest.approx(less + own)


def test_what_is_measured_follows_the_settings():
    """A benchmark's own limit and the evaluation's, and other numbers while it learns."""
    wanted = composed_settings(
        "task=arithmetic", "benchmark=small", "steps=32", "samples=4", "evaluation.limit=200", "evaluation.every=8",
        "evaluation.during.limit=50", "evaluation.during.samples=1",
    )  # fmt: skip
    found = job(wanted, STATED)
    sizes = [100, 100, 200, 200, 200]  # arithmetic to 20 and to 99, SelfAware (300), TruthfulQA twice
    assert sorted(data.questions for data in found.benchmarks) == sizes and found.samples == 4
    assert [data.questions for data in found.validation.benchmarks] == [50] * 5
    assert (found.validation.samples, found.validation.times) == (1, 5)  # before the first step, after 8, 16, 24, 32
    assert job(composed_settings("task=arithmetic"), STATED).validation.times == 0


def test_lookahead_hides_the_shorter_of_sampling_and_learning():
    stated = dataclasses.replace(STATED, start_s={"transformers": 7.0}, disk=1e30)
    one = seconds(small_job(), SMALL, device(), stated)
    assert one.rest == pytest.approx(7.0)
    assert one.total == 5 * one.sampling + 10 * one.learning + one.rest
    ahead = seconds(small_job({"rollout.lookahead": 1}), SMALL, device(), stated)
    assert ahead.training == max(5 * one.sampling, 10 * one.learning)
    # Engines of their own are sent 348 weights of 4 bytes, at 174 bytes a second.
    apart, slow = (
        small_job({"rollout.placement": "dedicated"}, rollout=VLLM),
        dataclasses.replace(STATED, transfer=174e-9),
    )
    by_nccl = seconds(apart.with_settings({"rollout.weight_transfer": "nccl"}), SMALL, device(), slow)
    assert seconds(apart, SMALL, device(), slow).sampling == pytest.approx(by_nccl.sampling + 8)
