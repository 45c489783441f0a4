"""Our half of `learner.py`: the time and memory of `Learner`'s steps, and the stages of one of them."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from learner_work import MODES, Work, real_tokens, state_bytes, useful_flops
from measuring import BETA, free_bytes, matmul_flops, peak, seconds, start_counting
from transformers import Qwen2Config, Qwen2ForCausalLM

import carerft.training.learner
from carerft.config.settings import LearnerSettings
from carerft.model.modes import recompute_activations
from carerft.objective.algorithms import Algorithm
from carerft.objective.lm_head import token_statistics
from carerft.objective.regularizers import NoRegularizer, Regularizer, SkewReverseKL
from carerft.training.learner import Learner

PENALTIES: dict[str, Regularizer] = {
    "none": NoRegularizer(),
    "k3": SkewReverseKL(BETA, "k3"),
    "exact": SkewReverseKL(BETA),
}
LEARNING_RATE = 1e-6


class DoesNotFitError(Exception):
    """The device has too little memory for the measurement."""


def measure(work: Work, penalty: str, mode: str) -> dict[str, Any]:
    """Wall and CPU seconds of each step, operations per second, memory by component, seconds by stage.

    mode: one of MODES. Without a penalty there is no reference either. peak_bytes: the allocator's on CUDA, elsewhere
    the resident set's, less what was allocated before the model; None where the system does not report it.
    Raises DoesNotFitError: before anything is allocated, if weights and moments need more than the free memory, or
    when an allocation fails.
    """
    torch.set_num_threads(work.threads)
    regularizer = PENALTIES[penalty]
    _check(work, mode, regularizer.needs_reference)
    before = start_counting(work.device)
    rollouts = work.rollouts()
    try:
        learner = build(work, regularizer)
        rewards = torch.rand(
            len(rollouts.prompt_lengths), work.group_size, generator=torch.Generator().manual_seed(work.seed)
        )
        advantages = learner.algorithm.advantages(rewards).flatten()
        action: Callable[[], object] = {
            "step": lambda: learner.step(rollouts, advantages),
            "gradient": lambda: learner.gradient(rollouts, advantages),
            "reading": lambda: learner.log_probs(rollouts),
        }[mode]
        for _ in range(work.warmup):
            action()
        rates = matmul_flops(work.device, work.precision)
        start_counting(work.device)
        cpu, times = [time.process_time()], []
        for _ in range(work.steps):
            times.append(seconds(work.device, action))
            cpu.append(time.process_time())
        peak_bytes = None if before is None else peak(work.device) - before
        rates += matmul_flops(work.device, work.precision)
        with stages(learner, work.device) as staged:
            total = seconds(work.device, action)
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(f"out of memory with {work.tokens_per_microbatch:,} tokens a microbatch") from error
    parts, resident = staged["seconds"], resident_bytes(learner, staged["gradients"])
    parts["rest"] = total - sum(parts.values())
    passes = (3 if mode != "reading" else 1) + (mode != "reading" and learner.reference is not None)
    return {
        "mode": mode,
        "seconds": times,
        "cpu_seconds": [end - begin for begin, end in pairwise(cpu)],
        "useful_flops": useful_flops(work.sizes, rollouts, passes),
        "matmul_flops": rates,
        "real_tokens": real_tokens(rollouts),
        "read_tokens": staged["read"],
        "completion_tokens": int(rollouts.lengths.sum()),
        "stages": dict(parts),
        "staged_over_median": total / statistics.median(times),
        "resident_bytes": resident,
        "peak_bytes": peak_bytes,
        "reserved_bytes": torch.cuda.max_memory_reserved() if work.device == "cuda" else None,
        "device": torch.cuda.get_device_name() if work.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def _check(work: Work, mode: str, reference: bool) -> None:
    needed, free = state_bytes(work, mode, reference), free_bytes(work.device)
    if free is not None and sum(needed.values()) > free:
        parts = " + ".join(f"{name} {size / 1e9:.1f}" for name, size in needed.items() if size)
        raise DoesNotFitError(
            f"{MODES[mode]} needs {sum(needed.values()) / 1e9:.1f} GB ({parts}) before any activation; "
            f"{free / 1e9:.1f} GB are free"
        )


def build(work: Work, regularizer: Regularizer) -> Learner:
    """A learner whose policy has random weights, which are made on the device."""
    config = {key: value for key, value in work.config.items() if key != "model_type"}
    torch.manual_seed(work.seed)
    with torch.device(work.device):
        policy = Qwen2ForCausalLM(Qwen2Config(**config))
    if work.checkpointing:
        recompute_activations(policy)
    settings = LearnerSettings(
        LEARNING_RATE,
        tokens_per_microbatch=work.tokens_per_microbatch,
        precision=work.precision,
        monitor_reference=False,
        compile=work.compile,
    )
    algorithm = Algorithm("grpo", work.group_size)
    return Learner(policy, algorithm, regularizer, settings, work.warmup + work.steps + 1)


def resident_bytes(learner: Learner, gradients: int) -> dict[str, int]:
    """The sizes of the tensors that outlive a microbatch. A tied weight counts once."""
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(weight.nbytes for weight in learner.policy.parameters()),
        "reference": sum(weight.nbytes for weight in learner.reference.parameters()) if learner.reference else 0,
        "gradients": gradients,
        "moments": sum(value.nbytes for value in moments if isinstance(value, torch.Tensor)),
    }


@contextmanager
def stages(learner: Learner, device: str) -> Iterator[dict[str, Any]]:
    """Measures the stages of what the learner does within the block, and fills the dictionary that it yields.

    "seconds": by stage; the head's are those of policy and reference together. "read": the number of tokens that the
    policy's body read, with padding. "gradients": their bytes when the optimizer step begins. The clock waits for the
    device before and after each stage, which slows the step; the times of complete steps are measured outside.
    """
    spent: dict[str, float] = defaultdict(float)
    staged: dict[str, Any] = {"seconds": spent, "read": 0, "gradients": 0}
    begun: dict[str, float] = {}

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(stage: str) -> None:
        begun[stage] = now()

    def end(stage: str) -> None:
        spent[stage] += now() - begun.pop(stage)

    def head(*args: Any, **kwargs: Any) -> Any:
        begin("head, forward")
        result = token_statistics(*args, **kwargs)
        end("head, forward")
        if (node := result.log_prob.grad_fn) is not None:
            node.register_prehook(lambda *_: begin("head, backward"))
            node.register_hook(lambda *_: end("head, backward"))
        return result

    def backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        begin("body, backward")
        plain_backward(loss, *args, **kwargs)
        end("body, backward")

    def read(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        staged["read"] += kwargs["input_ids"].numel()

    def gradients(*_: Any) -> None:
        staged["gradients"] = sum(p.grad.nbytes for p in learner.policy.parameters() if p.grad is not None)

    plain_backward = torch.Tensor.backward
    decoders = {"body, forward": learner.policy.get_decoder()}
    if learner.reference is not None:
        decoders["reference, forward"] = learner.reference.get_decoder()
    with ExitStack() as hooks:
        for stage, decoder in decoders.items():
            hooks.enter_context(decoder.register_forward_pre_hook(lambda *_, stage=stage: begin(stage)))
            hooks.enter_context(decoder.register_forward_hook(lambda *_, stage=stage: end(stage)))
        hooks.enter_context(decoders["body, forward"].register_forward_pre_hook(read, with_kwargs=True))
        hooks.enter_context(patch.object(carerft.training.learner, "token_statistics", head))
        hooks.enter_context(patch.object(torch.Tensor, "backward", backward))
        removable = [
            learner.optimizer.register_step_pre_hook(lambda *_: begin("optimizer")),
            learner.optimizer.register_step_pre_hook(gradients),
            learner.optimizer.register_step_post_hook(lambda *_: end("optimizer")),
        ]
        for handle in removable:
            hooks.callback(handle.remove)
        yield staged
        if not staged["gradients"]:
            gradients()
    spent["body, backward"] -= spent["head, backward"]
