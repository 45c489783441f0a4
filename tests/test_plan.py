"""Plans: the arithmetic against numbers computed by hand, and against what PyTorch itself counts."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_rollouts, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from carerft import cli, head
from carerft.algorithms import Algorithm
from carerft.errors import ConfigError
from carerft.experiment.cells import cells
from carerft.experiment.folders import experiment
from carerft.learner import Learner
from carerft.optimization import Optimization
from carerft.planning import memory as planned_memory
from carerft.planning.assumptions import GIB, Hardware, assumptions, hardware
from carerft.planning.estimate import Machine, calibrated, computed, wall
from carerft.planning.job import Job, job
from carerft.planning.measured import finished, read, with_lengths
from carerft.planning.memory import activations, engine, memory, resident, wanting
from carerft.planning.rehearsal import rehearse
from carerft.planning.remedies import changed, options, remedies
from carerft.planning.seconds import decoding, learning, learning_flops, seconds
from carerft.planning.shapes import Shape, shape_from, shape_of
from carerft.regularizers import ReverseKL
from carerft.world.bases import SHIPPED

# layer = 2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8 = 144 weights in matrices, head = 4 * 10
SMALL = Shape(hidden=4, intermediate=8, layers=2, queries=4, keys=2, vocabulary=10, tied=True, context=64)
STATED = assumptions([])


def small_job(**changes: Any) -> Job:
    """8 prompts of 6 tokens, 4 completions of 10 tokens each, two updates; changed where said."""
    usual = Job(
        steps=10, updates=2, epochs=1, prompts=8, group=4, prompt=6, completion=10, longest=16, grading_s=0, groups=1,
        rounds=1, samples=4, benchmarks=(), precision="float32", microbatch=100, checkpointing=False, shared=True,
        reference=True, exact=True, checkpoints=1, processes=1, vllm=False, sequences=16, dedicated=False, engines=1,
        tensor_parallel=1, utilization=0.4, cache_gib=None, context=None, lookahead=False,
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


def test_activations_are_what_autograd_keeps():
    config = Qwen2Config(
        vocab_size=64, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=256, max_position_embeddings=512,
    )  # fmt: skip
    model, shape = Qwen2ForCausalLM(config).train(), shape_from(config.to_dict())
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
        wanted = small_job(precision=precision, microbatch=tokens.numel())
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
def test_learning_has_the_operations_that_pytorch_counts(exact: bool, kept: bool, monkeypatch: pytest.MonkeyPatch):
    """Prompts of 6 tokens and completions of 9, without padding, read separately in one microbatch."""
    chunk = head.CHUNK_ELEMENTS if kept else 100
    monkeypatch.setattr(head.token_statistics, "__defaults__", (None, None, None, chunk))
    monkeypatch.setattr("carerft.planning.seconds.CHUNK", chunk)
    model, rollouts = tiny_model(vocabulary=300), random_rollouts(prompts=3, group=4)
    rollouts.prompt_lengths[:], rollouts.lengths[:] = 6, 9
    learner = Learner(
        model,
        Algorithm(
            name="grpo", group_size=4, clip_low=0.2, clip_high=0.2,
            ratio="token", aggregation="token", advantage_std="none",
        ),
        ReverseKL(beta=0.1, estimator="exact" if exact else "k3"),
        Optimization(learning_rate=0.0, steps=1, share_prompts=False),
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        learner.gradient(rollouts, torch.ones(12))
    wanted = small_job(
        updates=1, prompts=3, group=4, prompt=6, completion=9, shared=False, exact=exact, microbatch=10_000
    )
    # Attention is a small part of it: PyTorch counts all of its square where the plan takes half.
    assert learning_flops(wanted, shape_from(model.config.to_dict())) == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_the_learner_holds_sixteen_bytes_a_weight_and_four_while_it_learns():
    held = resident(small_job(), SMALL)
    assert sum(held.values()) == 16 * SMALL.parameters  # weights 4, moments 8, reference 4
    assert sum(resident(small_job(reference=False), SMALL).values()) == 12 * SMALL.parameters
    assert sum(resident(small_job(processes=4), SMALL).values()) == 4 * SMALL.parameters
    (learner,) = memory(small_job(), SMALL, device())
    assert learner.phases["learning"]["gradients, float32"] == 4 * SMALL.parameters
    copies = planned_memory.learning(small_job(precision="bfloat16"), SMALL)["weights, bfloat16 copies"]
    assert copies == 2 * SMALL.parameters


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
    """16 completions of 10 tokens in a step, 4 prompts of 6: 184 tokens read, in two microbatches of 100."""
    wanted, toy = small_job(), device(kernel_s=0.001)
    # body: 184 tokens * 2 layers * (2 * 144 + 2 * 4 * 16) * (3 + the reference); head: 2 * 40 * 160 * (3 + 1)
    flops = 184 * 2 * (288 + 128) * 4 + 2 * 40 * 160 * 4
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


@pytest.fixture
def trained() -> dict[str, Any]:
    found = cells(experiment("table1"), ["model=tiny", "seed=0", "algorithm=dapo", "regularizer=srkl"])
    return found[-1].config


def write_run(directory: Path, config: dict[str, Any], stage_s: float, total: float) -> None:
    """A finished run of two steps from one batch, which spent stage_s on sampling, and on each step."""
    (directory / "evaluation").mkdir(parents=True)
    here = {"cores": os.cpu_count(), "threads": 1, "gpus": []}
    manifest = {"status": "done", "seconds": total, "ended": "2026-01-01", "config": config, "hardware": here}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    line = {"rollout/length_mean": 14.0, "reward/equal_groups": 0.75, "rollout/rounds": 5.0, "time/learn_s": stage_s}
    first = {**line, "time/rollout_s": stage_s - 0.5, "time/grade_s": 0.5, "time/sync_s": 0.0}
    (directory / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (first, line)))
    records = [{"tokens": 4 + i % 2} for i in range(2 * config["samples"])]
    (directory / "evaluation" / "world_truth.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_finished_run_says_how_long_its_stages_and_texts_are(trained: dict[str, Any], tmp_path: Path):
    write_run(tmp_path / "a" / "seed=0", trained, stage_s=3.0, total=20.0)
    (place,) = finished([tmp_path / "a" / "seed=0"], hardware("this", STATED), "world")
    assert finished([place], hardware("this", STATED), "another/model") == []
    assert finished([place], hardware("h100", STATED), "world") == []
    found = read(place)
    assert (found.sampling, found.learning, found.rest, found.total) == (3.0, 6.0, 11.0, 20.0)
    assert (found.completion, found.groups, found.rounds) == (14.0, 4.0, 5.0)  # one group in four was kept
    assert (found.answers, found.questions) == ({"world_truth": 4.5}, {"world_truth": 2})
    texts = with_lengths(STATED, [found])
    assert texts["texts"]["world"]["completion"] == 14.0
    assert texts["texts"]["world_truth"]["questions"] == 2
    assert texts["dynamic"] == {"groups": 4.0, "rounds": 5.0}
    assert STATED["texts"]["world"]["completion"] == 12  # the assumptions themselves stay


def test_a_calibrated_estimate_of_the_measured_run_is_what_it_took(trained: dict[str, Any], tmp_path: Path):
    write_run(tmp_path, changed(trained, {"steps": 2}), stage_s=3.0, total=20.0)
    one, here = read(tmp_path), Machine(hardware("this", STATED), side=1, cores=1)
    estimator = calibrated(shape_of("world", {}), here, STATED, [one])
    found = estimator.seconds(one.config)
    assert (found.sampling, found.learning, found.rest) == pytest.approx((3.0, 3.0, 11.0))
    assert found.total == pytest.approx(20.0)
    # Twice the steps take twice the training.
    assert estimator.seconds(changed(one.config, {"steps": 4})).training == pytest.approx(2 * 9.0)


def test_a_rehearsal_measures_every_stage(trained: dict[str, Any]):
    config = changed(trained, {"samples": 2, "evaluation.limit": 4, "rollout.prompts_per_batch": 4})
    threads = torch.get_num_threads()
    found = rehearse(config, cores=1, start=5.0)
    assert min(found.sampling, found.learning) > 0 and found.rest > 5.0
    assert set(found.answers) == set(config["benchmark"]) and set(found.questions.values()) == {4}
    assert torch.get_num_threads() == threads
    assert not found.config["algorithm"]["dynamic_sampling"]


def large(*overrides: str) -> dict[str, Any]:
    """A training of table 1 on GPUs, planned where vLLM isn't installed."""
    given = ["seed=0", "algorithm=grpo", "regularizer=srkl", *overrides]
    return cells(experiment("table1"), given, here=False)[-1].config


def test_what_is_needed_elsewhere_need_not_be_installed_here():
    assert large("model=qwen2.5-3b")["rollout"]["name"] == "vllm"
    with pytest.raises(ConfigError, match=r"learner\.epochs=0"):
        large("model=qwen2.5-3b", "learner.epochs=0")


def test_remedies_are_settings_that_do_fit():
    config, devices = large("model=qwen2.5-3b"), hardware("h100", STATED)
    shape = shape_of("Qwen/Qwen2.5-3B", STATED["models"])

    def fits(changed_config: dict[str, Any]) -> bool:
        return all(found.fits for found in memory(job(changed_config, STATED), shape, devices))

    assert not fits(config)  # 16 bytes for each of 3.09e9 weights, and an engine with 0.4 of the device: 80.8 GiB
    found = remedies(config, list(options(job(config, STATED), devices)), fits)
    assert found == [{"rollout.gpu_memory_utilization": 0.35}]
    assert all(fits(changed(config, option)) for option in found)
    wasteful = changed(config, {"learner.gradient_checkpointing": False, "rollout.gpu_memory_utilization": 0.35})
    helpful = remedies(wasteful, list(options(job(wasteful, STATED), devices)), fits)
    assert {"learner.gradient_checkpointing": True} in helpful
    none = hardware("h100", assumptions(["hardware.h100.memory_gib=16"]))

    def never(changed_config: dict[str, Any]) -> bool:
        return all(found.fits for found in memory(job(changed_config, STATED), shape, none))

    assert remedies(config, list(options(job(config, STATED), none)), never) == []


def test_more_of_the_hardware_takes_less_time():
    shape = shape_of("Qwen/Qwen2.5-3B", STATED["models"])
    h100, a100 = (computed(large("model=qwen2.5-3b"), shape, hardware(k, STATED), 1, STATED) for k in ("h100", "a100"))
    assert h100.sampling < a100.sampling and h100.learning < a100.learning


FEW = ["seed=0", "algorithm=grpo", "regularizer=none,srkl"]
APART = ["rollout.placement=dedicated", "learner.device=cuda:1"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["table1", "model=qwen2.5-7b", "hardware=8xh100", *FEW], 1, "does not fit: the learner's device lacks"),
        (["figure2", "model=qwen2.5-3b", "hardware=h200", "price=2", "seed=0"], 0, "it fits"),
        (["figure2", "hardware=2xcpu", "seed=0"], 0, "all 3 runs, 2 side by side"),
        (["table2", "model=qwen2.5-3b", "hardware=h100", *FEW, *APART], 2, "a run needs 2 devices and hardware has 1"),
        (["table2", "model=qwen2.5-3b", "hardware=2xh100", *FEW, *APART], 0, "it fits"),
        (["table2", "model=qwen2.5-3b", "hardware=2xh100", *FEW, APART[0]], 2, "learner.device=cuda:1"),
        (["table1", "hardware=8xh1000"], 2, "did you mean h100?"),
        (["table1", "price=much"], 2, "price=much: must be a number"),
        (["tabel1"], 2, "did you mean table1?"),
    ],
)
def test_the_verb(
    arguments: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert cli.main(["plan", *arguments]) == status
    output = capsys.readouterr()
    shown = " ".join((output.err if status == 2 else output.out).split())
    assert said in shown
    if status < 2:
        assert "US dollars" in shown and "is an assumption" in shown
        assert ("never measured" in shown) == ("hardware=2xcpu" not in arguments)
    assert list(tmp_path.iterdir()) == []
