"""AdamW with its moments in 8 bits: against torch's own, in what it keeps, and through checkpoints."""

import importlib.util
import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.models import VOCABULARY, random_rollouts
from helpers.processes import call
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from carerft import cli
from carerft.config.settings import LearnerSettings
from carerft.errors import NonFiniteError
from carerft.model.sharding import full_tensor
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import SkewReverseKL
from carerft.training.adamw_8bit_shapes import BLOCK, is_blocked
from carerft.training.learner import Learner
from carerft.training.optimizer import make_optimizer

pytest.importorskip("torchao")
from carerft.training.adamw_8bit import AdamW8bit

EPSILON = torch.finfo(torch.float32).eps
# The 256 numbers stand closest together near 0; the gap between neighbours is largest in [0.1, 1], which a moment with
# a sign has 64 of, and one without has 128 of: half of it, as a share of the block's largest number.
HALF_GAP = {"exp_avg": 0.9 / 64 / 2, "exp_avg_sq": 0.9 / 128 / 2}
SETTINGS = {"weight_decay": 0.1, "learning_rate": 1e-3}


def wide_model() -> PreTrainedModel:
    """As conftest's, with matrices that 8 bits are for; the embedding, of 29 * 128 weights, is too small for them."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=256, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.1,
            eos_token_id=1, pad_token_id=0, bos_token_id=None,
        )
    )  # fmt: skip


def learner(mesh: DeviceMesh | None = None, optimizer: str = "adamw_8bit") -> Learner:
    return Learner(
        wide_model(),
        Algorithm("grpo", 4, 0.2, 0.2, "token", "sequence", "sample"),
        SkewReverseKL(beta=0.2, alpha=0.5),
        LearnerSettings(optimizer=optimizer, **SETTINGS),
        9,
        mesh,
    )


def learn(own: Learner, steps: int) -> None:
    for _ in range(steps):
        seed = own.steps_done
        own.step(random_rollouts(4, 4, seed=seed), torch.linspace(-1.5, 1.5, 16))


def everything(own: Learner) -> dict[str, Tensor]:
    """Weights and what the optimizer keeps, whole."""
    found = {}
    for name, parameter in own.policy.named_parameters():
        found[name] = full_tensor(parameter.detach()).clone()
        for slot, tensor in own.optimizer.parts(parameter).items():
            found[f"{name}/{slot}"] = full_tensor(tensor).clone()
    return found


def check_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_on_a_quadratic_its_steps_are_adamws_within_the_rounding_of_its_moments():
    """loss = |w - goal|^2 / 2, every distance between 1/2 and 1, and steps so small that they stay there.

    In each block the first moments then differ by a factor of at most 2 and the second by 4, so that rounding moves
    them by at most 2 * 0.9 / 64 / 2 and 4 * 0.9 / 128 / 2, both 1.4 %, of themselves each time they are stored. Four
    storings before the fifth step make at most 4 * 1.4 % in the first and, under the root, half of that in the second:
    8.4 %, to which the compounding of these adds less than 1 %.
    """
    generator = torch.Generator().manual_seed(0)
    distance = 0.5 + 0.5 * torch.rand(64, 256, generator=generator)
    distance *= torch.where(torch.rand(64, 256, generator=generator) < 0.5, -1, 1)
    weights, moved = {}, {}
    for name in ("adamw", "adamw_8bit"):
        weight = torch.nn.Parameter(torch.zeros(64, 256))
        optimizer = make_optimizer([weight], LearnerSettings(learning_rate=1e-4, optimizer=name))
        moved[name] = []
        for _ in range(5):
            before = weight.detach().clone()
            weight.grad = weight.detach() - distance
            optimizer.step()
            moved[name].append(weight.detach() - before)
        weights[name] = weight
    exact, rounded = moved["adamw"], moved["adamw_8bit"]
    # Nothing has been rounded before the first. A weight is the sum of its steps in float32.
    assert torch.allclose(rounded[0], exact[0], rtol=1e-5, atol=0)
    for ours, theirs in zip(rounded[1:], exact[1:], strict=True):
        assert torch.allclose(ours, theirs, rtol=0.094, atol=0)
    assert not torch.allclose(rounded[4], exact[4], rtol=1e-3, atol=0)  # rounded it is


def test_on_a_model_each_step_is_adamws_from_the_moments_that_are_kept():
    """To float32's rounding; and what is kept of the new moments is within half a gap of them."""
    own = learner()
    learn(own, 3)
    parameters = dict(own.policy.named_parameters())
    batch, advantages = random_rollouts(4, 4, seed=9), torch.linspace(-1.5, 1.5, 16)
    own.gradient(batch, advantages)
    twins = {name: torch.nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    exact = make_optimizer(twins.values(), LearnerSettings(**SETTINGS))
    for name, twin in twins.items():
        twin.grad = parameters[name].grad.clone()
        state = own.optimizer.state[parameters[name]]
        exact.state[twin] = {"step": state["step"].clone()} | {
            slot: state[slot].dequantize() if is_blocked(twin.shape) else state[slot].clone() for slot in HALF_GAP
        }
    old = {name: exact.state[twin]["exp_avg"].clone() for name, twin in twins.items()}
    own.optimizer.step()
    exact.step()
    in_bytes = [name for name in parameters if is_blocked(parameters[name].shape)]
    assert len(in_bytes) == 2 * 7  # each layer's matrices
    for name, parameter in parameters.items():
        # Of both terms of the new mean, which may cancel, over the root of the new square, 8 roundings may be off, and
        # the one of 1 - beta2^4 in float32, which is small beside beta2^4.
        beta1, beta2 = exact.param_groups[0]["betas"]
        mean = (beta1 * old[name].abs() + (1 - beta1) * parameter.grad.abs()) / (1 - beta1**4)
        root = (exact.state[twins[name]]["exp_avg_sq"] / (1 - beta2**4)).sqrt() + exact.param_groups[0]["eps"]
        roundings = 8 + 1 / (1 - beta2**4)
        bound = EPSILON * (4 * parameter.abs() + roundings * SETTINGS["learning_rate"] * mean / root)
        assert bool(((parameter - twins[name]).abs() <= bound).all()), name
        for slot, gap in HALF_GAP.items():
            kept, right = own.optimizer.state[parameter][slot], exact.state[twins[name]][slot]
            if name not in in_bytes:
                assert torch.allclose(kept, right, rtol=8 * EPSILON, atol=1e-12)
                continue
            blocks = right.view(-1, BLOCK)
            largest = blocks.abs().amax(1, keepdim=True)
            off = (kept.dequantize().view(-1, BLOCK) - blocks).abs() / largest
            assert 0.1 * gap < off.max() <= gap * (1 + 1e-4), (name, slot)


def test_it_keeps_two_bytes_a_weight_and_their_scales():
    own, usual = learner(), learner(optimizer="adamw")
    learn(usual, 1)
    moments = [usual.optimizer.state[p][slot].nbytes for p in usual.policy.parameters() for slot in HALF_GAP]
    assert sum(moments) == 8 * usual.policy.num_parameters()
    matrix = own.policy.model.layers[0].mlp.gate_proj.weight  # (256, 128)
    sizes = {slot: tensor.nbytes for slot, tensor in own.optimizer.parts(matrix).items()}
    assert sizes == {
        "step": 4,
        "exp_avg_codes": 256 * 128, "exp_avg_scale": 4 * 256,  # one block in a row
        "exp_avg_sq_codes": 256 * 128, "exp_avg_sq_scale": 4 * 256,
    }  # fmt: skip
    held = own.optimizer.state[matrix]["exp_avg"]
    assert (held.codes.nbytes, held.scale.nbytes, held.qmap.nbytes) == (256 * 128, 4 * 256, 4 * 256)  # and nothing else
    assert own.optimizer.parts(own.policy.model.norm.weight)["exp_avg"].nbytes == 4 * 128
    assert not is_blocked((4096,)) and not is_blocked((31, 128)) and not is_blocked((128, 448))
    assert is_blocked((32, 128)) and is_blocked((4864, 896))


def test_a_step_that_is_not_finite_leaves_it_as_it_was():
    own = learner()
    learn(own, 2)
    before, batch = everything(own), random_rollouts(4, 4)
    batch.log_probs[0, 0] = -torch.inf
    with pytest.raises(NonFiniteError):
        own.step(batch, torch.full((16,), -1.0))
    check_equal(everything(own), before)


def test_a_resumed_learner_ends_as_one_that_never_stopped(tmp_path: Path):
    straight, stopped, resumed = learner(), learner(), learner()
    learn(straight, 4)
    learn(stopped, 2)
    stopped.save(tmp_path / "tensors")
    resumed.load(tmp_path / "tensors")
    resumed.load_state(stopped.state())
    check_equal(everything(resumed), everything(stopped))
    learn(resumed, 2)
    check_equal(everything(resumed), everything(straight))


def process(rank: int, directory: str) -> None:
    """Two processes: take over from one, and learn something of their own."""
    torch.set_num_threads(1)
    place, patience = Path(directory), timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2, timeout=patience)
    both = init_device_mesh("cpu", (2,))
    taken, own = learner(both), learner(both)
    taken.load(place / "one")
    learn(own, 2)
    own.save(place / "two")
    # of one row, which the first process has: the second has nothing
    row = torch.nn.Parameter(distribute_tensor(torch.zeros(1, 4096), both))
    row.grad = distribute_tensor(torch.linspace(-1, 1, 4096)[None], both)
    optimizer = AdamW8bit([row], lr=1.0)
    optimizer.step()
    found = {"taken": everything(taken), "own": everything(own), "row": full_tensor(row.detach())}
    found["codes"] = full_tensor(optimizer.parts(row)["exp_avg_codes"])
    if rank == 0:
        torch.save(found, place / "found.pt")
    dist.destroy_process_group()


def test_one_process_takes_over_from_two_and_two_from_one(tmp_path: Path):
    """To the last bit: blocks end where rows do, and rows are what processes share out."""
    one = learner()
    learn(one, 2)
    one.save(tmp_path / "one")
    call(process, str(tmp_path), count=2)
    found = torch.load(tmp_path / "found.pt")
    check_equal(found["taken"], everything(one))
    taken = learner()
    taken.load(tmp_path / "two")
    check_equal(everything(taken), found["own"])
    assert found["own"].keys() == everything(one).keys()
    row = torch.nn.Parameter(torch.zeros(1, 4096))
    row.grad = torch.linspace(-1, 1, 4096)[None]
    alone = AdamW8bit([row], lr=1.0)
    alone.step()
    assert torch.equal(found["row"], row.detach()) and torch.equal(found["codes"], alone.parts(row)["exp_avg_codes"])


SMALL = ["model=tiny", "steps=2", "rollout.prompts_per_batch=4", "algorithm.group_size=4", "benchmark=none"]


def test_a_run_with_it(tmp_path: Path):
    chosen = [*SMALL, "learner.optimizer=adamw_8bit", "tracker=none", f'hydra.run.dir="{tmp_path}"']
    assert cli.main(["train", *chosen]) == 0
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["learner/learning_rate"] == 3e-4 and second["policy/ratio_max"] > 1.001  # the first moved the policy
    kept = FileSystemReader(tmp_path / "checkpoints" / "step_2" / "tensors").read_metadata().state_dict_metadata
    codes = kept["optimizer.exp_avg_codes.model.embed_tokens.weight"]
    assert codes.properties.dtype == torch.uint8 and tuple(codes.size) == (1984, 128)


def test_without_torchao_it_is_refused_before_anything_is_loaded(tmp_path: Path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else found(name))
    chosen = [*SMALL, "tracker=none", f'hydra.run.dir="{tmp_path}"']
    assert cli.main(["train", *chosen, "learner.optimizer=adamw_8bit"]) == 2
    assert 'pip install "carerft[8bit]"' in capsys.readouterr().err
    assert cli.main(["train", *chosen, "learner.optimizer=adam"]) == 2
    assert "learner.optimizer=adam: must be one of adamw, adamw_8bit" in capsys.readouterr().err
    assert not (tmp_path / "manifest.json").exists()
