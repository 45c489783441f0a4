"""Whether the learner computes on this device what it computes on a CPU in float32. Prints a line of JSON a case.

    python benchmarks/gpu/right.py [--cpu]

- attention: packed rows (on a GPU by torch's kernel for segments of any length) against attention written out in
  float64, outputs and gradients; "error" is the largest difference over the largest value;
- learner: the gradient of a small model, in several ways, against the CPU's; "cosine" is that of the angle between the
  two, "length" the ratio of their lengths;
- sharded: a step and a checkpoint, written aside and read, by FSDP2 in a group of one process (over NCCL on a GPU).
"""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))

import torch
from learner_work import synthetic_rollouts
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from carerft.config.settings import LearnerSettings, ModelSettings
from carerft.model.lora import add_lora
from carerft.model.modes import recompute_activations
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import SkewReverseKL
from carerft.rollout import Rollouts
from carerft.training.attention import packed_attention
from carerft.training.controller import process_group
from carerft.training.learner import Learner
from carerft.training.packing import pack

CPU = "--cpu" in sys.argv
DEVICE, HALF = torch.device("cpu" if CPU else "cuda"), torch.float32 if CPU else torch.bfloat16
# The largest error of a right result: rounding to bfloat16 is 2^-8, and gradients add up many of them.
ERROR, COSINE, LENGTH = (1e-4, 1 - 1e-6, 1e-3) if CPU else (0.03, 0.99, 0.05)
GROUP, VOCABULARY = 4, 512 if CPU else 4096


def say(case: str, right: bool, **values: Any) -> None:
    print(json.dumps({"case": case, "right": right, **values}), flush=True)


def rollouts(sequences: int, longest: int) -> Rollouts:
    """Of short lengths, some of one token."""
    found = synthetic_rollouts(sequences, GROUP, VOCABULARY, seed=0)
    generator = torch.Generator().manual_seed(1)
    found.prompt_lengths = torch.randint(1, 40, found.prompt_lengths.shape, generator=generator)
    found.lengths = torch.randint(1, longest + 1, found.lengths.shape, generator=generator)
    found.tokens, found.log_probs = found.tokens[:, :longest], found.log_probs[:, :longest]
    found.prompt_tokens = found.prompt_tokens[:, :40]
    return found


def attention() -> None:
    batch = rollouts(3 * GROUP, 70)
    for layout in ("shared", "separate"):
        row = pack(batch, torch.arange(3 * GROUP), layout, DEVICE)
        n = len(row.tokens)
        visible = torch.zeros(n, n, dtype=torch.bool)
        for segment, prefix in enumerate(row.prefixes.tolist()):
            a, b = row.starts[segment : segment + 2].tolist()
            visible[a:b, a:b] = torch.ones(b - a, b - a, dtype=torch.bool).tril()
            if prefix >= 0:
                visible[a:b, slice(*row.starts[prefix : prefix + 2].tolist())] = True
        for heads, groups, size in ((14, 2, 64), (16, 2, 128), (28, 4, 128)):  # of Qwen2.5's 0.5B, 3B and 7B
            torch.manual_seed(0)
            given = [torch.randn(1, h, n, size, device=DEVICE, dtype=HALF) for h in (heads, groups, groups)]
            weigh = torch.randn(1, n, heads, size, device=DEVICE, dtype=HALF)
            layer = torch.nn.Module()
            layer.num_key_value_groups = heads // groups
            packed = partial(packed_attention, layer, attention_mask=None, packed=row)
            found = _with_gradients(lambda *given, packed=packed: packed(*given)[0], given, weigh)
            written = partial(_written_out, visible=visible.to(DEVICE))
            true = _with_gradients(written, [x.double() for x in given], weigh.double())
            errors = [
                float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in zip(found, true, strict=True)
            ]
            case = f"attention, {layout}, {heads} heads of {size}"
            say(case, max(errors) < ERROR, error=max(errors))


def _written_out(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def _with_gradients(function: Callable[..., Tensor], given: list[Tensor], weigh: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in given]
    output = function(*inputs)
    return [output.double(), *(x.double() for x in torch.autograd.grad(output, inputs, weigh))]


def model(checkpointing: bool = False, lora: bool = False, tied: bool = True) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    made = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=tied,
        )
    )  # fmt: skip
    if checkpointing:
        recompute_activations(made)
    if lora:
        add_lora(made, ModelSettings(lora_rank=8), seed=0)
    return made


def learner_of(policy: Qwen2ForCausalLM, mesh: Any = None, **settings: Any) -> Learner:
    chosen = LearnerSettings(learning_rate=1e-3, **{"tokens_per_microbatch": 600, **settings})
    return Learner(policy, Algorithm("grpo", GROUP), SkewReverseKL(0.04, alpha=0.8), chosen, steps=10, mesh=mesh)


def learner() -> None:
    batch = rollouts(16, 200)
    advantages = torch.randn(16, generator=torch.Generator().manual_seed(1))
    half = {} if CPU else {"precision": "bfloat16"}
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "float32": ({}, {}),
        "bfloat16": ({}, half),
        "prompts read separately": ({}, half | {"share_prompts": False}),
        "gradient checkpointing": ({"checkpointing": True}, half),
        "untied head": ({"tied": False}, half),
        "compiled": ({"checkpointing": True}, half | {"compile": True}),
    }
    truth: dict[bool, Tensor] = {}
    for name, (shape, settings) in ways.items():
        if CPU and "compile" in settings:
            continue  # which takes a minute, and is tested elsewhere
        tied = shape.get("tied", True)
        if tied not in truth:
            truth[tied] = _gradient(learner_of(model(tied=tied)), batch, advantages)
        found, true = _gradient(learner_of(model(**shape).to(DEVICE), **settings), batch, advantages), truth[tied]
        cosine = float(torch.nn.functional.cosine_similarity(found, true, dim=0))
        length = float(found.norm() / true.norm())
        least, most = (COSINE, LENGTH) if "precision" in settings else (1 - 1e-6, 1e-3)
        say(f"learner, {name}", cosine > least and abs(length - 1) < most, cosine=cosine, length=length)


def _gradient(one: Learner, batch: Rollouts, advantages: Tensor) -> Tensor:
    one.gradient(batch, advantages)
    return torch.cat([p.grad.flatten().double().cpu() for p in one.policy.parameters() if p.grad is not None])


def sharded() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RESTART_COUNT": "0"}
    batch, advantages = rollouts(16, 200), torch.randn(16, generator=torch.Generator().manual_seed(1))
    half = {} if CPU else {"precision": "bfloat16"}
    with process_group(DEVICE, timeout_s=120) as mesh:
        for name, lora, offload in (
            ("full", False, False),
            ("reference offloaded", False, True),
            ("LoRA", True, False),
        ):
            alone = learner_of(model(True, lora).to(DEVICE), **half).step(batch, advantages)
            one = learner_of(model(True, lora), mesh, reference_offload=offload, **half)
            found = one.step(batch, advantages)
            error = abs(found["loss/total"] - alone["loss/total"]) / abs(alone["loss/total"])
            before = torch.cat([weight.flatten().float().cpu() for weight in one.weights().values()])
            with tempfile.TemporaryDirectory() as place:
                one.save(Path(place), asynchronous=True)
                one.finish_saving()
                one.step(batch, advantages)
                one.load(Path(place))
            after = torch.cat([weight.flatten().float().cpu() for weight in one.weights().values()])
            say(f"sharded, {name}", error < ERROR and bool(torch.equal(before, after)), error=error)


if __name__ == "__main__":
    attention()
    learner()
    sharded()
