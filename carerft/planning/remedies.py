"""Which settings would make a run fit into memory."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from carerft.planning.assumptions import Hardware
from carerft.planning.job import Job

Option = dict[str, Any]  # dotted keys and their values


def changed(config: dict[str, Any], option: Option) -> dict[str, Any]:
    """The configuration with these dotted keys set."""
    found = copy.deepcopy(config)
    for key, value in option.items():
        *groups, last = key.split(".")
        place = found
        for group in groups:
            place = place[group]
        place[last] = value
    return found


def options(job: Job, hardware: Hardware) -> Iterator[list[Option]]:
    """What might help, each as its variants, gentlest first; what costs little time before what costs more."""
    sequence = int(job.prompt + job.longest)
    learns = job.steps > 0  # an evaluation has no learner whose settings could be others
    if learns and not job.checkpointing:
        yield [{"learner.gradient_checkpointing": True}]
    if learns and job.microbatch > sequence:
        halved = [job.microbatch // 2**i for i in range(1, 8)]
        yield [{"learner.tokens_per_microbatch": n} for n in halved if n >= sequence]
    if job.vllm:
        # vLLM makes room for one sequence of the whole context, which is often longer than any that occurs.
        length = 1024 * -(-max(sequence, *(b.prompt + b.longest for b in job.benchmarks), 1024) // 1024)
        if job.context is None or job.context > length:
            yield [{"rollout.max_model_len": int(length)}]
        shares = (0.35, 0.3, 0.25, 0.2, 0.15, 0.5, 0.6, 0.7, 0.8, 0.9)
        lower = [share for share in shares if share < job.utilization]
        yield [{"rollout.gpu_memory_utilization": s} for s in lower + [s for s in shares if s > job.utilization]]
    else:
        yield [{"rollout.batch_size": n} for i in range(1, 8) if (n := job.sequences // 2**i) >= 16]
    if learns and job.vllm and not job.dedicated and hardware.count > job.processes:
        apart: Option = {"rollout.placement": "dedicated", "learner.device": "cuda:1"}
        yield [apart, apart | {"rollout.gpu_memory_utilization": 0.9}]
    if job.dedicated:
        free = hardware.count - job.processes
        yield [{"rollout.tensor_parallel_size": n} for n in (2, 4, 8) if job.tensor_parallel < n <= free]
    if learns and job.optimizer == "adamw":  # costs little time, but rounds what is learned
        yield [{"learner.optimizer": "adamw_8bit"}]
    if learns:
        yield [{"learner.processes": n} for n in (2, 4, 8) if job.processes < n <= hardware.count]


def remedies(config: dict[str, Any], given: list[list[Option]], fits: Callable[[dict[str, Any]], bool]) -> list[Option]:
    """Each option that makes the configuration fit, in its gentlest variant; where none does alone, the first two of
    them that do together; where no two do, all of them in their strongest variants; [] where nothing helps."""
    alone = [first for variants in given if (first := _first(config, variants, fits))]
    if alone:
        return alone
    for i, one in enumerate(given):
        for other in given[i + 1 :]:
            if found := _first(config, [a | b for a in one for b in other], fits):
                return [found]
    every: Option = {}
    for variants in given:
        every |= variants[-1] if variants else {}
        if every and fits(changed(config, every)):
            return [every]
    return []


def _first(config: dict[str, Any], variants: list[Option], fits: Callable[[dict[str, Any]], bool]) -> Option | None:
    return next((option for option in variants if fits(changed(config, option))), None)
