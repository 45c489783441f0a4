"""Plans: the arithmetic against numbers computed by hand, and against what PyTorch itself counts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.configurations import composed
from helpers.models import random_rollouts, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.errors import ConfigError
from carerft.model.lora import add_lora
from carerft.objective import lm_head as head
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import ReverseKL
from carerft.planning import memory as planned_memory
from carerft.planning.assumptions import GIB, Hardware, assumptions, hardware
from carerft.planning.estimate import wall
from carerft.planning.job import Job, job
from carerft.planning.memory import activations, engine, memory, resident, wanting
from carerft.planning.seconds import decoding, learning, learning_flops, seconds
from carerft.planning.shapes import Shape, shape_from, shape_of
from carerft.training.learner import Learner
from carerft.world.bases import SHIPPED

# layer = 2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8 = 144 weights in matrices, head = 4 * 10
SMALL = Shape(hidden=4, intermediate=8, layers=2, queries=4, keys=2, vocabulary=10, tied=True, context=64)
STATED = assumptions([])


def small_job(**changes: Any) -> Job:
    """8 prompts of 6 tokens, 4 completions of 10 tokens each, two updates; changed where said."""
    usual = Job(
        steps=10, updates=2, epochs=1, prompts=8, group=4, prompt=6, completion=10, longest=16, grading_s=0, groups=1,
        rounds=1, samples=4, benchmarks=(), precision="float32", optimizer="adamw", microbatch=100, checkpointing=False,
        shared=True, reference=True, exact=True, checkpoints=1, aside=False, processes=1, vllm=False, sequences=16,
        dedicated=False, engines=1, tensor_parallel=1, utilization=0.4, cache_gib=None, context=None, lookahead=False,
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


def device(**changes: Any) -> Hardware:
    """10 FLOP/s and 10 bytes/s, of which half is reached; 1,000 bytes."""
    usual = Hardware("toy", 1, 1000.0, 10.0, {"float32": 10.0, "bfloat16": 10.0}, 0.5, 0.5, 0.5, 0, 0, 0, 1.0)
    return dataclasses.replace(usual, **changes)


@pytest.mark.parametrize(
    ("path", "parameters"),
    # as the checkpoints have them
    [("Qwen/Qwen2.5-0.5B", 494_032_768), ("Qwen/Qwen2.5-3B", 3_085_938_688), ("Qwen/Qwen2.5-7B", 7_615_616_512)],
)
def test_the_shapes_that_are_known_have_the_parameters_of_the_models(path: str, parameters: int):
    assert shape_of(path, STATED["models"]).parameters == parameters


def test_a_local_models_shape_is_its_config_jsons(tmp_path: Path):
    recorded = json.loads((SHIPPED / "provenance.json").read_text())["parameters"]
    assert shape_of("world", {}).parameters == recorded == shape_of(str(SHIPPED), {}).parameters
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(ConfigError, match="num_attention_heads"):
        shape_of(str(tmp_path), {})
    with pytest.raises(ConfigError, match="org/unknown is not known here"):
        shape_of("org/unknown", STATED["models"])


@pytest.mark.parametrize("rank", [0, 32])
def test_activations_are_what_autograd_keeps(rank: int):
    config = Qwen2Config(
        vocab_size=64, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=256, max_position_embeddings=512,
    )  # fmt: skip
    model, shape = Qwen2ForCausalLM(config).train(), shape_from(config.to_dict())
    if rank:
        add_lora(model, ModelSettings(lora_rank=rank), seed=0)
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
        wanted = small_job(precision=precision, microbatch=tokens.numel(), rank=rank)
        assert activations(wanted, shape) == pytest.approx(kept(precision), rel=0.05)


def test_checkpointed_activations_are_the_layers_inputs_and_one_layer():
    whole = small_job(microbatch=100)
    one = activations(whole, dataclasses.replace(SMALL, layers=1))
    assert one == 100 * (24 * 4 + 16 * 4 + 16 * 8)
    assert activations(dataclasses.replace(whole, checkpointing=True), SMALL) == one + 100 * 2 * 4 * 4
    # A sequence that is longer than the budget, 6 + 16 tokens, goes alone.
    assert activations(small_job(microbatch=1), SMALL) == pytest.approx(activations(small_job(microbatch=22), SMALL))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rank", [0, 4])
def test_learning_has_the_operations_that_pytorch_counts(
    exact: bool, kept: bool, rank: int, monkeypatch: pytest.MonkeyPatch
):
    """Prompts of 6 tokens and completions of 9, without padding, read separately in one microbatch."""
    chunk = head.CHUNK_ELEMENTS if kept else 100
    monkeypatch.setattr(head.token_statistics, "__defaults__", (None, None, None, chunk, False))
    monkeypatch.setattr("carerft.planning.seconds.CHUNK", chunk)
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
    wanted = small_job(
        updates=1, prompts=3, group=4, prompt=6, completion=9, shared=False, exact=exact, microbatch=10_000, rank=rank
    )  # fmt: skip
    # Nothing before the first layer learns beside an adapter: no gradient comes to the input of its q, k and v and of
    # their A, at 12 x 15 tokens. That counts in a model of two layers.
    skipped = 2 * 180 * (32 * (32 + 16 + 16) + 3 * 4 * 32) if rank else 0
    # Attention is a small part of it: PyTorch counts all of its square where the plan takes half.
    assert learning_flops(wanted, shape_from(model.config.to_dict())) == pytest.approx(
        counter.get_total_flops() + skipped, rel=0.05
    )


def test_the_learner_holds_sixteen_bytes_a_weight_and_four_while_it_learns():
    held = resident(small_job(), SMALL)
    assert sum(held.values()) == 16 * SMALL.parameters  # weights 4, moments 8, reference 4
    assert sum(resident(small_job(reference=False), SMALL).values()) == 12 * SMALL.parameters
    assert sum(resident(small_job(processes=4, vllm=True), SMALL).values()) == 4 * SMALL.parameters
    # Our own sampler takes the learner's weights, or, where each process has but a part, a copy of all.
    assert sum(resident(small_job(processes=4), SMALL).values()) == (4 + 4) * SMALL.parameters
    (learner,) = memory(small_job(), SMALL, device())
    assert learner.phases["learning"]["gradients, float32"] == 4 * SMALL.parameters
    copies = planned_memory.learning(small_job(precision="bfloat16"), SMALL)["weights, bfloat16 copies"]
    assert copies == 2 * SMALL.parameters


def test_moments_in_8_bits_are_two_bytes_a_weight_and_their_scales():
    """Rows of 128 are a block: of the projections to 64 queries and 32 keys, the MLP's two of 96 rows, the embedding.
    Those of 64 and 96, of the output's and the MLP's last, are none."""
    shape = Shape(hidden=128, intermediate=96, layers=2, queries=64, keys=32, vocabulary=50, tied=True, context=64)
    blocked = 2 * (64 * 128 + 2 * 32 * 128 + 2 * 96 * 128) + 50 * 128
    assert blocked == 2 * (8192 + 8192 + 24576) + 6400 == 88_320
    rest = 2 * (128 * 64 + 128 * 96 + 2 * 128) + 128  # with two norms in each, and the last
    assert shape.parameters == blocked + rest and rest == 41_600
    eight = small_job(optimizer="adamw_8bit")
    held = resident(eight, shape)["Adam's moments, 8 bits"]
    assert held == 2 * 88_320 + 2 * 4 * 690 + 8 * 41_600  # 88,320 / 128 = 690 blocks
    assert resident(dataclasses.replace(eight, processes=4), shape)["Adam's moments, 8 bits"] == held / 4
    # of the paper's model 2.06 bytes a weight, 5.9 GiB, instead of 8, 23.0 GiB
    real = shape_of("Qwen/Qwen2.5-3B", STATED["models"])
    assert resident(eight, real)["Adam's moments, 8 bits"] / GIB == pytest.approx(5.93, abs=0.01)
    assert resident(small_job(), real)["Adam's moments, float32"] / GIB == pytest.approx(22.99, abs=0.01)


def test_a_checkpoint_that_is_written_aside_is_copied_into_the_cpus_memory():
    """4 bytes a weight and 8 of moments."""

    def learner(kind: str) -> dict[str, float]:
        (found,) = memory(small_job(aside=True), SMALL, device(kind=kind))
        return found.phases["learning"]

    assert learner("cpu") == learner("toy") | {"copy to be written": 12 * 348}


def test_with_an_adapter_only_its_weights_have_gradients_and_moments():
    # A and B of rank 3: q and o 4 + 4, k and v 4 + 2, gate, up and down 4 + 8; 2 layers x 3 x (16 + 12 + 36) = 384.
    lora = small_job(rank=3)
    assert resident(lora, SMALL) == {
        "weights, float32": 4 * SMALL.parameters, "adapter, float32": 4 * 384, "Adam's moments, float32": 8 * 384
    }  # fmt: skip
    assert planned_memory.learning(lora, SMALL)["gradients, float32"] == 4 * 384
    assert planned_memory.head(small_job(), SMALL) - planned_memory.head(lora, SMALL) == 4 * 40  # the head's gradient
    halves = resident(small_job(rank=3, processes=2, vllm=True), SMALL)
    assert sum(halves.values()) == 2 * SMALL.parameters + 6 * 384
    only = small_job(rank=3, targets=("q_proj", "v_proj"))
    assert resident(only, SMALL)["adapter, float32"] == 4 * 2 * 3 * (8 + 6)
    # Frozen matrices, 2 x 144 weights, are in bfloat16 for good: no copies. An untied head, 40, as well.
    rounded, untied = small_job(rank=3, precision="bfloat16"), dataclasses.replace(SMALL, tied=False)
    assert resident(rounded, SMALL)["weights, mostly bfloat16"] == 4 * 348 - 2 * 288
    assert "weights, bfloat16 copies" not in planned_memory.learning(rounded, SMALL)
    assert planned_memory.head(rounded, SMALL) - planned_memory.head(rounded, untied) == 2 * 2 * 40
    shared = dataclasses.replace(rounded, processes=2)
    assert resident(shared, SMALL)["weights, float32"] == 2 * 348
    assert planned_memory.learning(shared, SMALL)["weights, bfloat16 copies"] == 2 * (144 + 40)


def test_a_plan_reads_the_adapter_from_the_configuration():
    config = composed("model=qwen2.5-7b", "task=math", "model.adapter=lora", "model.lora_rank=16")
    planned = job(config, STATED)
    assert (planned.rank, planned.targets) == (16, ()) and job(composed(), STATED).rank == 0
    # The adapter of rank 16 that peft makes of Qwen2.5-7B has 40,370,176 weights.
    assert planned_memory.trained(planned, shape_of("Qwen/Qwen2.5-7B", STATED["models"])) == 40_370_176
    named = composed("model.adapter=lora", "model.lora_targets=[q_proj,v_proj]")
    assert job(named, STATED).targets == ("q_proj", "v_proj")


def test_in_bfloat16_the_reference_is_half_and_checkpointing_needs_no_copies():
    """348 weights, 288 of them in the layers' matrices and 40 in a head that is the embedding."""
    half = small_job(precision="bfloat16")
    assert resident(half, SMALL)["reference, mostly bfloat16"] == 4 * 348 - 2 * 288
    untied = dataclasses.replace(SMALL, tied=False)
    assert resident(half, untied)["reference, mostly bfloat16"] == 4 * 388 - 2 * (288 + 40)
    assert resident(dataclasses.replace(half, processes=2), SMALL)["reference, float32"] == 2 * 348
    checkpointed = dataclasses.replace(half, checkpointing=True)
    assert planned_memory.learning(checkpointed, SMALL)["weights, bfloat16 copies"] == 2 * 144
    # A head in bfloat16 already is not copied for its products.
    assert planned_memory.head(half, SMALL) - planned_memory.head(half, untied) == 2 * 40


def test_a_chunk_of_logits_is_all_that_the_head_holds():
    assert head.CHUNK_ELEMENTS == planned_memory.CHUNK and head.TILE_ELEMENTS["cuda"] == planned_memory.TILE
    # Qwen's vocabulary: two chunks and one in bfloat16, four tiles of 32 MiB, a float32 head and two in bfloat16.
    shape = dataclasses.replace(SMALL, hidden=2048, vocabulary=151_936)
    found = planned_memory.head(small_job(precision="bfloat16", microbatch=16384), shape)
    assert found == (256 + 256 + 128 + 4 * 32) * 2**20 + (4 + 2 + 2) * 2048 * 151_936


def test_an_engine_takes_its_share_and_must_hold_one_whole_sequence():
    one = small_job(vllm=True, precision="float32", utilization=0.5)
    assert SMALL.parameters == 2 * (144 + 8) + 4 + 40 == 348  # layers with two norms each, a norm, the tied head
    weights = 4 * 348
    assert engine(one, SMALL, 4000.0) == {"engine's weights": weights, "engine's keys and values": 2000 - weights}
    # 64 tokens of 2 layers, keys and values of 2 numbers, 4 bytes: 2,048 bytes, beside the weights
    assert wanting(one, SMALL, 4000.0) == weights + 2048 - 2000
    assert wanting(dataclasses.replace(one, context=8), SMALL, 4000.0) == 0
    assert wanting(dataclasses.replace(one, cache_gib=2048 / GIB), SMALL, 4000.0) == 0
    apart = memory(dataclasses.replace(one, dedicated=True, utilization=0.9), SMALL, device(memory=4000.0))
    assert [(found.device, list(found.phases)) for found in apart] == [
        ("learner", ["learning"]),
        ("engine", ["sampling"]),
    ]


def test_seconds_of_a_step_by_hand():
    """16 completions of 10 tokens in a step, of which 9 are read, 4 prompts of 6: 168, in two microbatches of 100."""
    wanted, toy = small_job(), device(kernel_s=0.001)
    # body: 168 tokens * 2 layers * (2 * 144 + 2 * 4 * 16) * (3 + the reference); head: 2 * 40 * 160 * (3 + 1)
    flops = 168 * 2 * (288 + 128) * 4 + 2 * 40 * 160 * 4
    assert learning_flops(wanted, SMALL) == flops
    host, optimizer = 2 * 2 * 120 * 0.001, 40 * 348 / 5
    assert learning(wanted, SMALL, toy) == pytest.approx(flops / 5 + host + optimizer)


def test_sampling_takes_steps_of_the_longest_or_as_many_as_the_tokens_need():
    """32 completions of 10 tokens, 16 at a time. The host's 1 s a step is all that costs anything."""
    free = device(kernel_s=1 / 20 / 2, engine_step_s=1.0, bandwidth=1e30, peak={"float32": 1e30})
    text = dict(prompts=8, group=4, prompt=6, completion=10, longest=16)
    assert decoding(small_job(), SMALL, free, 1, **text) == pytest.approx(2 * 16)
    assert decoding(small_job(vllm=True), SMALL, free, 1, **text) == pytest.approx(2 * 10 + 6)
    two = small_job(vllm=True, dedicated=True, engines=2)  # 16 completions each
    assert decoding(two, SMALL, free, 1, **text) == pytest.approx(10 + 6)


def test_lookahead_hides_the_shorter_of_sampling_and_learning():
    one = seconds(small_job(), SMALL, device(), 1, start=7.0, disk=1e30)
    assert one.fixed == pytest.approx(7.0)
    assert one.total == 5 * one.sampling + 10 * one.learning + one.rest
    ahead = seconds(small_job(lookahead=True), SMALL, device(), 1, start=7.0, disk=1e30)
    assert ahead.training == max(5 * one.sampling, 10 * one.learning)


def test_hardware_is_a_number_and_a_kind():
    eight = hardware("8xh100", STATED)
    assert (eight.count, eight.kind, eight.title) == (8, "h100", "8 x h100")
    assert eight.peak["bfloat16"] == 989e12 and eight.memory == pytest.approx(79.6 * GIB)
    cheaper = assumptions(["hardware.h100.price_per_hour=1.5"])
    assert hardware("h100", cheaper).price == 1.5
    assert hardware("this", STATED).here
    with pytest.raises(ConfigError, match="there is no such device") as error:
        hardware("8xh10", STATED)
    assert "did you mean h100?" in error.value.remedy
    for wrong in ("hardware.h100.prize=1", "texts.math.completion=long", "hardware=3"):
        with pytest.raises(ConfigError):
            assumptions([wrong])


def test_runs_side_by_side_end_when_the_last_does():
    assert wall([3, 1, 1, 1, 4], 2) == 7  # 3 and 1, 1, 1; then 4 on either
    assert wall([3, 1], 1) == 4
