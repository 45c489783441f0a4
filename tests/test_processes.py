"""Learners in two real processes, which share out weights and microbatches, against one that does everything."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.models import compile_by, random_rollouts, tiny_model
from helpers.processes import call
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.errors import NonFiniteError
from carerft.model.chat import eos_token_ids
from carerft.model.loading import load_model
from carerft.model.lora import add_lora
from carerft.model.modes import recompute_activations
from carerft.model.sharding import full_tensor
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import NoRegularizer, SkewReverseKL
from carerft.rollout import Rollouts
from carerft.training.learner import Learner, TruncatedImportance

WORLD, STEPS, GROUP = 2, 5, 4
EPSILON = torch.finfo(torch.float32).eps
ALGORITHMS = {
    "grpo": Algorithm("grpo", GROUP, 0.2, 0.2, "token", "sequence", "sample"),
    "dapo": Algorithm("dapo", GROUP, 0.2, 0.28, "token", "token", "sample"),
    "gspo": Algorithm("gspo", GROUP, 3e-4, 4e-4, "sequence", "sequence", "sample"),
    "dr_grpo": Algorithm("dr_grpo", GROUP, 0.2, 0.2, "token", "constant", "none", aggregation_constant=40.0),
    "rloo": Algorithm("rloo", GROUP, None, None, "token", "constant", "none", advantage_baseline="leave_one_out"),
}
# Tokens in one microbatch, and how many of the completions' then fall to each process.
SHAPES = {"even": (30, [47, 41]), "uneven": (10_000, [46, 15]), "one waits": (40, [40, 22])}
CASES = [(a, "uneven") for a in ALGORITHMS] + [(a, s) for a in ("grpo", "dapo") for s in ("even", "one waits")]
NOT_FINITE, SECOND = "a loss that is not finite on one of them", "the gradient of a second batch"
# What else changes how often and when weights are gathered, or how their gradient comes about.
WAYS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "each prompt with each completion": {"share_prompts": False},
    "gradient checkpointing": {"checkpointing": True},
    "no reference": {"regularizer": NoRegularizer(beta=0.0), "monitor_reference": False},
    "adapter": {"lora": True},
    "adapter, gradient checkpointing": {"lora": True, "checkpointing": True},
    "adapter, untied, each prompt with each completion": {"lora": True, "tied": False, "share_prompts": False},
    "sampled estimate": {"regularizer": SkewReverseKL(beta=0.5, alpha=0.5, estimator="unbiased")},
}


COMPILED: dict[str, dict[str, Any]] = {"checkpointing": {"checkpointing": True}, "adapter": {"lora": True}}


class CountingLearner(Learner):
    """Counts the tokens of completions that it learns from."""

    tokens = 0

    def _backward(self, rollouts: Rollouts, *others: Any) -> dict[str, float]:
        self.tokens += int(rollouts.lengths[others[-1]].sum())
        return super()._backward(rollouts, *others)


def rollouts(shape: str) -> Rollouts:
    """Four prompts of four completions. uneven: one completion of 46 tokens, fifteen of one. one waits: three prompts,
    of which two don't fit a microbatch together, so that for the third one process has nothing of its own."""
    if shape != "uneven":
        return random_rollouts(3 if shape == "one waits" else 4, GROUP, seed=5)
    drawn = random_rollouts(4, GROUP, seed=5, longest=46)
    lengths = torch.tensor([46] + [1] * 15)
    return replace(drawn, lengths=lengths, finished=lengths < 46)


def made(
    algorithm: str,
    shape: str,
    mesh: DeviceMesh | None,
    tied: bool = True,
    checkpointing: bool = False,
    lora: bool = False,
    regularizer: Any = None,
    **settings: Any,
) -> CountingLearner:
    """Settings that would show a wrong share: schedules, an entropy bonus, a reference that the policy has left."""
    regularizer = regularizer or SkewReverseKL(
        beta=0.5, alpha=0.5, alpha_schedule="linear", alpha_end=0.8, entropy_bonus=0.01
    )
    # An epsilon that is not small beside the gradients: Adam otherwise makes a step of full size out of a gradient
    # that is nothing but rounding.
    usual = {"learning_rate": 1e-2, "adam_eps": 1e-3, "tokens_per_microbatch": SHAPES[shape][0]}
    model = tiny_model(tied=tied)
    if mesh is not None and mesh.get_rank():  # only the first has weights to begin with
        model = model.to("meta")
        model.tie_weights()
    if checkpointing:
        recompute_activations(model)
    if lora:
        add_lora(model, ModelSettings(lora_rank=4, lora_alpha=8), seed=0)
    learner = CountingLearner(
        model, ALGORITHMS[algorithm], regularizer, LearnerSettings(**usual | settings), STEPS, mesh
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            noise = 0.05 * torch.randn(parameter.shape)
            if isinstance(parameter, DTensor):
                noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
            parameter += noise
    return learner


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([full_tensor(t.detach()).flatten() for t in tensors])


def learned(algorithm: str, shape: str, mesh: DeviceMesh | None = None, **settings: Any) -> dict[str, Any]:
    """The first gradient and the tokens that it took, then the metrics of five steps and the weights after them."""
    learner, batch = made(algorithm, shape, mesh, **settings), rollouts(shape)
    advantages = torch.linspace(-1.5, 1.5, len(batch.lengths))
    correction = None
    if algorithm == "dapo":  # with an importance correction
        log_probs = learner.log_probs(batch)
        correction = TruncatedImportance(log_probs, (log_probs - batch.log_probs).exp().clamp(max=2.0))
    learner.tokens = 0
    learner.gradient(batch, advantages, correction)
    tokens, gradient = learner.tokens, flat([p.grad for p in learner.policy.parameters() if p.requires_grad])
    learner.optimizer.zero_grad(set_to_none=True)
    before = flat(list(learner.policy.parameters()))
    metrics = [learner.step(batch, advantages, correction) for _ in range(STEPS)]
    after = flat(list(learner.policy.parameters()))
    held = {name: sum(t.to_local().numel() for t in tensors) for name, tensors in kept(learner).items()} if mesh else {}
    return {"tokens": tokens, "gradient": gradient, "metrics": metrics, "before": before, "after": after, "held": held}


def kept(learner: Learner) -> dict[str, list[DTensor]]:
    """What a learner keeps between two steps."""
    state = [t for entry in learner.optimizer.state.values() for name, t in entry.items() if name != "step"]
    reference = list(learner.reference.parameters()) if learner.reference is not None else []
    return {"policy": list(learner.policy.parameters()), "reference": reference, "optimizer": state}


def stopped(mesh: DeviceMesh | None) -> bool:
    """Whether a step is refused that one of the microbatches spoils, and leaves the weights as they were."""
    learner, batch = made("grpo", "even", mesh), rollouts("even")
    shortest = int(batch.lengths.argmin())  # in one microbatch, which is one process's alone
    batch.log_probs[shortest, 0] = -torch.inf
    before = flat(list(learner.policy.parameters()))
    try:
        learner.step(batch, torch.full((16,), -1.0))
    except NonFiniteError:
        return torch.equal(before, flat(list(learner.policy.parameters())))
    return False


def second(mesh: DeviceMesh | None, after_another: bool = True) -> Tensor:
    """The gradient of one batch, after that of another has been computed with the same learner."""
    learner = made("grpo", "even", mesh)
    if after_another:
        learner.gradient(rollouts("even"), torch.linspace(-1.5, 1.5, 16))
    learner.gradient(rollouts("even"), torch.linspace(1, -2, 16))
    return flat([p.grad for p in learner.policy.parameters()])


def process(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    store, patience = f"file://{directory}/store", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=patience)
    both = init_device_mesh("cpu", (WORLD,))
    found = {(a, s): learned(a, s, both) for a, s in CASES}
    found |= {way: learned("grpo", "uneven", both, **settings) for way, settings in WAYS.items()}
    found |= {
        ("bfloat16", lora): learned("grpo", "even", both, precision="bfloat16", lora=lora) for lora in (False, True)
    }
    torch.save({**found, NOT_FINITE: stopped(both), SECOND: second(both)}, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each process found, for every algorithm and shape."""
    directory: Path = tmp_path_factory.mktemp("processes")
    call(process, str(directory), count=WORLD)
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD)]


def compiled_process(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    compile_by("aot_eager")  # the graphs that Inductor would take minutes for; tests/test_compilation.py has Inductor
    store = f"file://{directory}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=300))
    both = init_device_mesh("cpu", (WORLD,))
    found = {way: learned("grpo", "uneven", both, compile=True, **settings) for way, settings in COMPILED.items()}
    torch.save(found, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def check_equal(alone: dict, first: dict, second: dict) -> None:
    """One process cuts the batch into other microbatches; the order in which sums are added up is another, no more."""
    largest = float(alone["gradient"].abs().max())
    assert torch.allclose(first["gradient"], alone["gradient"], rtol=0, atol=8 * EPSILON * largest)
    assert torch.allclose(first["after"], alone["after"], rtol=0, atol=16 * EPSILON)
    assert (alone["after"] - alone["before"]).abs().max() > 1e-2  # they did move
    assert [m.keys() for m in first["metrics"]] == [m.keys() for m in alone["metrics"]]
    for step, expected in zip(first["metrics"], alone["metrics"], strict=True):
        for key, value in expected.items():
            assert step[key] == pytest.approx(value, rel=64 * EPSILON, abs=EPSILON), key
    # and the two agree to the last bit, so that they never drift apart
    assert torch.equal(first["after"], second["after"]) and first["metrics"] == second["metrics"]


@pytest.mark.parametrize(("algorithm", "shape"), CASES)
def test_two_processes_learn_what_one_does(algorithm: str, shape: str, found: list[dict]):
    alone, (first, second) = learned(algorithm, shape), (each[algorithm, shape] for each in found)
    assert [first["tokens"], second["tokens"]] == SHAPES[shape][1]
    check_equal(alone, first, second)


@pytest.mark.parametrize("way", WAYS)
def test_however_the_weights_are_used(way: str, found: list[dict]):
    check_equal(learned("grpo", "uneven", **WAYS[way]), *(each[way] for each in found))


@pytest.mark.slow
def test_compiled_layers_are_shared_as_well(tmp_path: Path):
    call(compiled_process, str(tmp_path), count=WORLD)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for way, settings in COMPILED.items():
        check_equal(learned("grpo", "uneven", **settings), *(each[way] for each in found))


def test_each_process_keeps_half_of_everything(found: list[dict]):
    whole_size = len(found[0]["tied"]["after"])
    for name, copies in {"policy": 1, "reference": 1, "optimizer": 2}.items():  # Adam keeps two numbers of each weight
        shares = [each["tied"]["held"][name] for each in found]
        assert sum(shares) == copies * whole_size and max(shares) < 0.52 * sum(shares)


@pytest.mark.parametrize("lora", [False, True])
def test_in_bfloat16_master_weights_stay_float32(lora: bool, found: list[dict]):
    """Sharded weights are gathered in bfloat16, which rounds more than autocast does: 8 bits of each number."""
    alone, sharded = learned("grpo", "even", precision="bfloat16", lora=lora), found[0]["bfloat16", lora]
    assert sharded["after"].dtype == sharded["gradient"].dtype == torch.float32
    difference = (sharded["gradient"] - alone["gradient"]).norm() / alone["gradient"].norm()
    assert 1e-4 < difference < 0.05
    assert (sharded["after"].bfloat16().float() != sharded["after"]).float().mean() > 0.9


def test_a_loss_that_is_not_finite_on_one_process_stops_both(found: list[dict]):
    assert stopped(None) and all(each[NOT_FINITE] for each in found)


def test_a_gradient_takes_the_place_of_the_one_before_it(found: list[dict]):
    alone = second(None, after_another=False)
    assert torch.equal(second(None), alone)
    for each in found:
        assert torch.allclose(each[SECOND], alone, rtol=0, atol=8 * EPSILON * float(alone.abs().max()))


def test_a_model_without_weights_is_the_same_but_for_them():
    """What the other processes begin with: all that is decided by a model's files, names, ties and ends."""
    chosen = ModelSettings(name="tiny", path="world")
    (full, tokenizer), (empty, same) = load_model(chosen, torch.device("cpu")), load_model(chosen, torch.device("meta"))
    assert all(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()])
    described = [{k: (t.shape, t.dtype) for k, t in model.state_dict().items()} for model in (full, empty)]
    assert described[0] == described[1] and len(list(full.parameters())) == len(list(empty.parameters()))
    assert empty.get_output_embeddings().weight is empty.get_input_embeddings().weight  # tied, as its files have it
    assert empty.config.to_dict() == full.config.to_dict() and not empty.training
    assert empty.generation_config.to_dict() == full.generation_config.to_dict()
    assert eos_token_ids(empty, same) == eos_token_ids(full, tokenizer)
