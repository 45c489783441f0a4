"""One vLLM engine, driven from this process. Both placements of `rollout=vllm`, colocated and dedicated, use it.

Sampling parameters come from the caller alone: the model's generation_config, from which vLLM would take temperature
and further end-of-sequence tokens, is switched off. Weights come from the caller too: the engine starts with random
ones, so that a sync that does nothing cannot go unnoticed.

On a CPU, prompts are not read in parts (chunked prefill): vLLM 0.32 discards the token that it samples at the end of a
part by turning the request's random generator back, which fails for generators on a CPU. On a GPU they are: without it,
vLLM measures its memory with as many tokens at once as the context has.
"""

import gc
import logging
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carerft.errors import CareError
from carerft.rollout import Rollouts, Sampling
from carerft.rollout.requests import check_context, check_finite, check_sampling, completion_seeds
from carerft.terminal import sampling_bar

# What vLLM reads from the environment when it is imported. The user's own values take precedence.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several devices on a CPU: else each would want a NUMA node of its own
}
# On a GPU, attention in float32 is Triton's, which by default rounds the factors of its products to TF32, 10 bits.
FLOAT32_ENVIRONMENT = {"TRITON_F32_DEFAULT": "ieee"}


@dataclass(frozen=True)
class EngineOptions:
    """Arguments of `vllm.LLM`, by their names there, and the tokens that end a completion.

    model: a directory or a hub name; its configuration and tokenizer are read, its weights are not.
    max_model_len: tokens of prompt and completion together, at most.
    max_num_seqs: sequences decoded together, at most. None: vLLM's own default.
    gpu_memory_utilization: share of a device's memory for weights and cache together. Ignored if kv_cache_memory_bytes
        is given.
    eos_token_ids: each of these ends a completion, and no other does.
    dtype: of weights and cache, "float32" or "bfloat16".
    kv_cache_memory_bytes: of keys and values. None: what gpu_memory_utilization leaves; on a CPU, 1 GiB.
    tensor_parallel_size: devices that share the weights.
    enforce_eager: no compilation. None: on a CPU, where compiling takes a minute and gains little.
    weight_transfer_config: {"backend": name} for `Engine.transfer`; None: weights come by `Engine.load` alone.
    """

    model: str
    max_model_len: int
    max_num_seqs: int | None
    gpu_memory_utilization: float
    eos_token_ids: tuple[int, ...]
    revision: str | None = None
    dtype: str = "float32"
    kv_cache_memory_bytes: int | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool | None = None
    weight_transfer_config: dict[str, str] | None = None

    def arguments(self, cpu: bool) -> dict[str, Any]:
        """Of `vllm.LLM`. cpu: whether vLLM runs on one."""
        arguments = asdict(self)
        del arguments["eos_token_ids"]
        if cpu:
            arguments |= {"enforce_eager": self.enforce_eager is not False, "enable_chunked_prefill": False}
            arguments["kv_cache_memory_bytes"] = self.kv_cache_memory_bytes or 2**30
        elif self.enforce_eager is None:
            arguments["enforce_eager"] = False
        return arguments | {
            "tokenizer_revision": self.revision,
            "trust_remote_code": False,
            "load_format": "dummy",
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",  # the sampler's own, after temperature and top_p
            # The learner's logits are float32. An engine in bfloat16 would round them, by up to 0.4%, without this.
            "hf_overrides": {"head_dtype": "float32"},
        }


class Engine:
    """A vLLM engine with random weights; `load` must come before anything else.

    A learner of several processes must initialise torch.distributed (with torchrun's RANK and LOCAL_RANK) before any
    engine starts. All processes must then start and close their engines at the same time, each on the device of its
    LOCAL_RANK; in between, they sample independently.
    """

    def __init__(self, options: EngineOptions):
        """Raises CareError if the model does not fit into memory, or vLLM does not know it."""
        self.options, self.context, self.asleep = options, options.max_model_len, False
        self._shares_process_group = torch.distributed.is_initialized()
        distributed = self._shares_process_group and torch.distributed.get_world_size() > 1
        for key, value in (ENVIRONMENT | (FLOAT32_ENVIRONMENT if options.dtype == "float32" else {})).items():
            os.environ.setdefault(key, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over within the process
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())  # it logs before it has read that
        spared = _default_group_spared(self._shares_process_group)
        with _global_state_restored(), spared, _without_numa_message(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from vLLM's own use of PyTorch
            from vllm import LLM
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
            from vllm.platforms import current_platform

            self.can_sleep = current_platform.is_sleep_mode_available()
            try:
                self.llm = LLM(
                    **options.arguments(current_platform.is_cpu()),
                    distributed_executor_backend="external_launcher" if distributed else None,
                    enable_sleep_mode=self.can_sleep,
                )
            except (ValueError, RuntimeError, MemoryError, NotImplementedError, AssertionError) as error:
                cleanup_dist_env_and_memory()  # another engine may be started in this process
                raise _start_error(options, error) from error

    @property
    def runner(self) -> str:
        """Which of its two model runners vLLM has chosen: "V1" or "V2"."""
        return "V2" if self.llm.llm_engine.vllm_config.use_v2_model_runner else "V1"

    def sample(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int) -> Rollouts:
        """As `RolloutWorker.sample`."""
        check_sampling(prompts, n, sampling, self.context)
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=completion_seed >> 1,  # vLLM holds it in a signed 64-bit integer
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
            for seeds in completion_seeds(prompts, n, seed)
            for completion_seed in seeds
        ]
        repeated = [prompt for prompt in prompts for _ in range(n)]
        with sampling_bar(len(repeated)) as advance, self._counted(advance):
            outputs = [output.outputs[0] for output in self._run(repeated, parameters)]
        log_probs = [torch.tensor(output.logprobs.logprobs, dtype=torch.float32) for output in outputs]
        check_finite(torch.cat(log_probs))
        return Rollouts.from_rows(
            prompts,
            [torch.tensor(output.token_ids, dtype=torch.int64) for output in outputs],
            log_probs,
            torch.tensor([output.finish_reason == "stop" for output in outputs]),
        )

    def log_likelihood(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[float]:
        """As `RolloutWorker.log_likelihood`."""
        check_context(prompts, continuations, self.context)
        from vllm import SamplingParams

        scored = [(i, list(c)) for i, c in enumerate(continuations) if len(c)]
        # vLLM always generates a token: that step scores the last one, so that a text may fill the context.
        parameters = [
            SamplingParams(
                max_tokens=1, ignore_eos=True, detokenize=False, prompt_logprobs=0, logprob_token_ids=[tokens[-1]]
            )
            for _, tokens in scored
        ]
        outputs = self._run([[*prompts[i], *tokens[:-1]] for i, tokens in scored], parameters)
        totals = [0.0] * len(prompts)
        for (i, tokens), output in zip(scored, outputs, strict=True):
            scores = [*output.prompt_logprobs[len(prompts[i]) :], output.outputs[0].logprobs[0]]
            totals[i] = float(sum(score[token].logprob for score, token in zip(scores, tokens, strict=True)))
        return totals

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replaces the weights in place by these, named as in a checkpoint, and clears the cache of keys and values.

        On one device, the iterable is consumed layer by layer: no more than one layer's weights exist twice.
        """
        if self.asleep:
            self.llm.wake_up(["weights"])
        if self.options.tensor_parallel_size > 1:  # they are pickled, for the processes of the other devices
            weights = list(weights)
        with _global_state_restored():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self.asleep:  # only now, when the memory that loading needed is free again
            self.llm.wake_up(["kv_cache"])
            self.asleep = False
        self._clear_cache()

    def transfer(self, method: str, *arguments: Any) -> None:
        """Performs one step of vLLM's weight transfer (carerft/rollout/transfer.py) on all devices of this engine."""
        with _global_state_restored():
            self.llm.collective_rpc(method, args=arguments)
        if method == "finish_weight_update":
            self._clear_cache()

    def sleep(self) -> None:
        """Frees the memory of weights and cache until the next `load`, on devices where vLLM can."""
        if self.can_sleep and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def close(self) -> None:
        """Ends the engine and frees its memory. May be repeated."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if not hasattr(self, "llm"):
            return
        if self.asleep:  # vLLM would free memory a second time, after which no engine starts in this process
            with suppress(Exception):  # there may be no room to wake up in
                torch.cuda.empty_cache()
                self.llm.wake_up()
        with _default_group_spared(self._shares_process_group):
            self.llm.llm_engine.engine_core.shutdown()
            del self.llm
            cleanup_dist_env_and_memory()
        gc.collect()

    def _clear_cache(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept cached keys of the old weights, because requests are still running")

    @contextmanager
    def _counted(self, advance: Callable[[int, int], None]) -> Iterator[None]:
        """In this context, tell `advance` which sequences have ended after each step of the engine."""
        engine = self.llm.llm_engine
        step = engine.step

        def counted() -> list[Any]:
            outputs: list[Any] = step()
            ended = [output for output in outputs if output.finished]
            advance(len(ended), sum(len(each.token_ids) for output in ended for each in output.outputs))
            return outputs

        engine.step = counted
        try:
            yield
        finally:
            del engine.step

    def _run(self, prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> list[Any]:
        from vllm import TokensPrompt

        if self.asleep:
            raise RuntimeError("the engine sleeps and has no weights: sync first")
        with _global_state_restored():
            inputs = [TokensPrompt(prompt_token_ids=list(map(int, prompt))) for prompt in prompts]
            return self.llm.generate(inputs, parameters, use_tqdm=False)


@contextmanager
def _without_numa_message() -> Iterator[None]:
    """In this context, vLLM's kernels for a CPU do not print in which NUMA node they allocate memory. They do so in
    C++, where no filter of Python's sees it; whatever else they print then is kept."""
    kernels, name = torch.ops._C, "init_cpu_memory_env"

    def quietly(*arguments: Any) -> Any:
        with tempfile.TemporaryFile() as printed:
            sys.stderr.flush()
            terminal = os.dup(2)
            os.dup2(printed.fileno(), 2)
            try:
                return type(kernels).__getattr__(kernels, name)(*arguments)
            finally:
                os.dup2(terminal, 2)
                os.close(terminal)
                printed.seek(0)
                os.write(2, b"".join(line for line in printed if b"NUMA binding" not in line))

    setattr(kernels, name, quietly)
    try:
        yield
    finally:
        vars(kernels).pop(name, None)


@contextmanager
def _global_state_restored() -> Iterator[None]:
    """Restores this process's random states and PyTorch's number of threads, all of which vLLM changes."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _default_group_spared(shared: bool) -> Iterator[None]:
    """Keeps vLLM's cleanup from destroying the default process group if it is shared: the learner made it."""
    destroy = torch.distributed.destroy_process_group

    def destroy_named(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    if shared:
        torch.distributed.destroy_process_group = destroy_named
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


def _start_error(options: EngineOptions, error: Exception) -> CareError:
    """The error, with what a user can do, for an engine that did not start."""
    reason = str(error).strip() or type(error).__name__
    short = " ".join(reason.split())[:400]
    if "one instance per process" in reason:
        return CareError(
            "this process has another vLLM engine already, and only one of them can sleep while the learner works",
            "close the other one, or write rollout.placement=dedicated",
        )
    if "memory profiling" in reason:
        return CareError(
            f"another program freed memory of the GPU while the vLLM engine measured what is free: {short}",
            "run the same command again, once no other program starts or ends on this GPU",
        )
    if "KV cache is needed" in reason or "cache blocks" in reason:
        return CareError(
            f"the vLLM engine's cache cannot hold one sequence of {options.max_model_len} tokens: {short}",
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
