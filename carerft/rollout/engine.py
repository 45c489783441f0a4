"""One vLLM engine, driven from this process: what both placements of `rollout=vllm` are made of.

Sampling parameters come from the caller alone: the model's generation_config, which vLLM would otherwise take
temperature and further end-of-sequence tokens from, is switched off. Weights come from the caller too: the engine
starts with random ones, so that a sync that did nothing cannot go unnoticed.

Left out: chunked prefill. vLLM 0.32 takes the token that it samples at the end of a part of a prompt back by turning
the request's random generator back, which fails for generators on a CPU; and where it works, it saves little at the
lengths of prompts that are trained on.
"""

import gc
import logging
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carerft.errors import CareError, NonFiniteError
from carerft.rollout import Rollouts, Sampling

# What vLLM reads from the environment when it is imported. Ours is set where the user has set nothing.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several devices on a CPU: else each would want a NUMA node of its own
}


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is started with.

    model: a directory or a hub name; its configuration and tokenizer are read, its weights are not.
    dtype: of weights and cache, "float32" or "bfloat16".
    context: tokens of prompt and completion together, at most.
    eos_token_ids: each of these ends a completion, and no other does.
    sequences: decoded side by side, at most.
    memory_share: of the device's memory, for weights and cache together. Unused where cache_gib is given.
    cache_gib: GiB of keys and values. None: what memory_share leaves; on a CPU, 1.
    tensor_parallel_size: devices that share the weights.
    eager: no compilation. None: on a CPU, where compiling takes a minute and gains little.
    weight_transfer: vLLM's backend for `Engine.transfer`; None: weights come by `Engine.load` alone.
    """

    model: str
    context: int
    eos_token_ids: tuple[int, ...]
    revision: str | None = None
    dtype: str = "float32"
    sequences: int = 256
    memory_share: float = 0.4
    cache_gib: float | None = None
    tensor_parallel_size: int = 1
    eager: bool | None = None
    weight_transfer: str | None = None


class Engine:
    """Starts with random weights: `load` comes before anything else.

    A learner of several processes initialises torch.distributed (as torchrun has it: RANK, LOCAL_RANK) before any
    engine starts. Each process then starts and ends an engine at the same time as the others, on the device of its
    LOCAL_RANK, and samples with it when and what it likes.
    """

    def __init__(self, options: EngineOptions):
        """Raises CareError where the model doesn't fit into memory, or vLLM doesn't know it."""
        self._guest = torch.distributed.is_initialized()
        several = self._guest and torch.distributed.get_world_size() > 1
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over within the process
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())  # it logs before it has read that
        with _undisturbed(), _sparing_process_group(self._guest), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of vLLM's own use of PyTorch
            from vllm import LLM
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
            from vllm.platforms import current_platform

            cpu = current_platform.is_cpu()
            cache_gib = 1.0 if cpu and options.cache_gib is None else options.cache_gib
            self.options, self.can_sleep, self.asleep = options, current_platform.is_sleep_mode_available(), False
            try:
                self.llm = LLM(
                    model=options.model,
                    revision=options.revision,
                    tokenizer_revision=options.revision,
                    trust_remote_code=False,
                    load_format="dummy",
                    dtype=options.dtype,  # type: ignore[arg-type]
                    max_model_len=options.context,
                    max_num_seqs=options.sequences,
                    gpu_memory_utilization=options.memory_share,
                    kv_cache_memory_bytes=None if cache_gib is None else int(cache_gib * 2**30),
                    tensor_parallel_size=options.tensor_parallel_size,
                    distributed_executor_backend="external_launcher" if several else None,
                    enforce_eager=cpu if options.eager is None else options.eager,
                    weight_transfer_config=options.weight_transfer and {"backend": options.weight_transfer},
                    enable_sleep_mode=self.can_sleep,
                    enable_prefix_caching=True,
                    enable_chunked_prefill=False,
                    generation_config="vllm",
                    logprobs_mode="processed_logprobs",  # those that were sampled with, temperature and top_p included
                )
            except (ValueError, RuntimeError, MemoryError, NotImplementedError) as error:
                cleanup_dist_env_and_memory()  # another engine may be started in this process
                raise _start_error(options, error) from error

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Rollouts:
        """A completion of each prompt for each of its seeds, of which every prompt has as many.

        The same weights, seed and sampling give the same completion, but for float rounding, which follows what is
        computed beside it. Raises NonFiniteError where the model's probabilities are not numbers.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        requests = [(prompt, seed) for prompt, some in zip(prompts, seeds, strict=True) for seed in some]
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=seed >> 1,  # 63 bits: it is a signed integer on the way
                # vLLM's own end-of-sequence tokens come from the model's generation_config as well; ours replace them.
                ignore_eos=True,
                stop_token_ids=[] if sampling.ignore_eos else list(self.options.eos_token_ids),
                stop=list(sampling.stop) or None,
                detokenize=bool(sampling.stop),
                include_stop_str_in_output=True,
                logprobs=0,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for _, seed in requests
        ]
        outputs = [output.outputs[0] for output in self._run([prompt for prompt, _ in requests], parameters)]
        tokens = [torch.tensor(output.token_ids, dtype=torch.int64) for output in outputs]
        log_probs = [torch.tensor(output.logprobs.logprobs, dtype=torch.float32) for output in outputs]
        if not all(values.isfinite().all() for values in log_probs):
            raise NonFiniteError(
                "sampling met probabilities that are not finite numbers: the policy's weights have diverged",
                "go back to an earlier checkpoint, and on with a lower learning rate",
            )
        return Rollouts(
            prompt_tokens=_padded([torch.tensor(prompt, dtype=torch.int64) for prompt in prompts]),
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
            tokens=_padded(tokens),
            lengths=torch.tensor([len(row) for row in tokens]),
            log_probs=_padded(log_probs),
            finished=torch.tensor([output.finish_reason == "stop" for output in outputs]),
        )

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Sum of log-probabilities (nats) of each continuation's tokens given its prompt, at temperature 1."""
        from vllm import SamplingParams

        scored = [(list(p), list(c)) for p, c in zip(prompts, continuations, strict=True) if len(c)]
        # vLLM always generates: the last token is left to that, so that a text may fill the context.
        parameters = [
            SamplingParams(
                max_tokens=1, ignore_eos=True, detokenize=False, prompt_logprobs=0, logprob_token_ids=[c[-1]]
            )
            for _, c in scored
        ]
        outputs = iter(self._run([p + c[:-1] for p, c in scored], parameters) if scored else [])
        totals = []
        for prompt, continuation in zip(prompts, continuations, strict=True):
            total = 0.0
            if len(continuation):
                output = next(outputs)
                before = output.prompt_logprobs[len(prompt) :]
                total = sum(found[t].logprob for found, t in zip(before, continuation[:-1], strict=True))
                total += output.outputs[0].logprobs[0][continuation[-1]].logprob
            totals.append(float(total))
        return totals

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights in place by these, named as in a checkpoint, and forget what was cached from the old.

        On one device they are taken one after another, and no more of them are held at once than one layer has.
        """
        if self.asleep:
            self.llm.wake_up(["weights"])
        if self.options.tensor_parallel_size > 1:  # to the processes of the other devices they go pickled
            weights = list(weights)
        with _undisturbed():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self.asleep:  # only now: weights and cache need not share the memory with what the loading takes
            self.llm.wake_up(["kv_cache"])
            self.asleep = False
        self._forget()

    def transfer(self, method: str, *arguments: Any) -> None:
        """A step of vLLM's weight transfer (carerft/rollout/transfer.py), on all devices of this engine."""
        with _undisturbed():
            self.llm.collective_rpc(method, args=arguments)
        if method == "finish_weight_update":
            self._forget()

    def sleep(self) -> None:
        """Give the memory of weights and cache back, on devices where vLLM can, until the next `load`."""
        if self.can_sleep and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def close(self) -> None:
        """End the engine and give back its memory."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        with _sparing_process_group(self._guest):
            self.llm.llm_engine.engine_core.shutdown()
            del self.llm
            cleanup_dist_env_and_memory()
        gc.collect()

    def _forget(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept cached keys of the old weights, because requests are still running")

    def _run(self, prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> list[Any]:
        if self.asleep:
            raise RuntimeError("the engine sleeps and has no weights: sync first")
        with _undisturbed():
            inputs = [{"prompt_token_ids": list(map(int, prompt))} for prompt in prompts]
            return self.llm.generate(inputs, parameters, use_tqdm=False)  # type: ignore[arg-type]


def _padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leaves this process's random states and PyTorch's threads as they were: vLLM seeds, draws from and binds them."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _sparing_process_group(guest: bool) -> Iterator[None]:
    """Leaves the learner's process group as it was: vLLM's cleanup ends the default group, whoever made it."""
    destroy = torch.distributed.destroy_process_group

    def destroy_named(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    if guest:
        torch.distributed.destroy_process_group = destroy_named
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


def _start_error(options: EngineOptions, error: Exception) -> CareError:
    """What a user can do about an engine that didn't start."""
    reason = str(error).strip() or type(error).__name__
    short = " ".join(reason.split())[:400]
    if "KV cache is needed" in reason or "cache blocks" in reason:
        return CareError(
            f"the vLLM engine's cache cannot hold one sequence of {options.context} tokens: {short}",
            "lower rollout.max_model_len, or raise rollout.kv_cache_gib (or rollout.gpu_memory_utilization)",
        )
    if isinstance(error, MemoryError) or "memory" in reason.lower():
        return CareError(
            f"the vLLM engine found too little memory to start: {short}",
            "lower rollout.gpu_memory_utilization, rollout.kv_cache_gib, rollout.batch_size or rollout.engines, or "
            "share the weights among more devices with rollout.tensor_parallel_size",
        )
    return CareError(
        f"vLLM cannot start an engine for {options.model}: {short}", "use rollout=transformers, or another model"
    )
