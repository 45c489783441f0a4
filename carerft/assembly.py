"""From a checked configuration to the objects that a run is made of."""

import copy
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from hydra.utils import instantiate
from rich.console import Console
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from carerft.config.settings import Model
from carerft.evaluation.evaluate import Benchmark, Protocol, evaluate
from carerft.evaluation.table import table
from carerft.model.chat import eos_token_ids, uses_chat
from carerft.model.loading import choose_device, context_length, load_model, model_path
from carerft.model.lora import add_lora
from carerft.model.sharding import broadcast_module
from carerft.objective.algorithms import Algorithm
from carerft.objective.regularizers import Regularizer
from carerft.report.outcome import EvaluationOutcome
from carerft.rollout import RolloutWorker
from carerft.rollout.engine import EngineOptions
from carerft.rollout.transformers import TransformersWorker
from carerft.runs.directory import RunDirectory
from carerft.tasks import Task
from carerft.tasks.chat import ChatTask
from carerft.terminal import console
from carerft.trackers import MetricsFile, ProgressTracker, Trackers
from carerft.trackers.choice import named_tracker
from carerft.trackers.weights_and_biases import description
from carerft.training.collector import Collector, Plan
from carerft.training.learner import Learner
from carerft.training.optimizer import Optimization
from carerft.training.trainer import Schedule


def task(settings: dict[str, Any]) -> Task:
    """A task from its group's settings: `_target_` and that class's arguments."""
    return instantiate({key: value for key, value in settings.items() if key not in ("name", "max_tokens")})


def asked(
    chosen: dict[str, Any], settings: dict[str, Any], policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Task:
    """A task as this model is asked it: in its chat template, or plainly."""
    return ChatTask(task(chosen), tokenizer) if chat(settings, policy, tokenizer) else task(chosen)


def chat(settings: dict[str, Any], policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts go into the model's chat template."""
    return uses_chat(settings["model"]["chat"], policy, tokenizer)


def benchmarks(
    settings: dict[str, Any], policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Benchmark]:
    found = {}
    for name, entry in settings["benchmark"].items():
        measured = asked(entry, settings, policy, tokenizer)
        until = getattr(measured, "until", None) if tokenizer.is_fast else None  # others can't be followed in a text
        found[name] = Benchmark(measured, entry["max_tokens"], stop=(until,) if until else ())
    return found


def protocol(settings: dict[str, Any]) -> Protocol:
    return Protocol(samples=settings["samples"], seed=settings["seed"], **settings["evaluation"])


def method(settings: dict[str, Any]) -> tuple[Algorithm, Regularizer]:
    """What `algorithm` and `regularizer` name. Raises ConfigError for an estimator that a regularizer doesn't have."""
    return instantiate(settings["algorithm"]), instantiate(settings["regularizer"])


def learner(
    settings: dict[str, Any],
    policy: PreTrainedModel,
    algorithm: Algorithm,
    regularizer: Regularizer,
    mesh: DeviceMesh | None = None,
) -> Learner:
    """The learner, with the policy as it is now for its reference. mesh: as Learner's."""
    chosen = settings["learner"]
    if chosen["gradient_checkpointing"]:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if settings["model"]["adapter"]:
        add_lora(policy, Model(**settings["model"]), settings["seed"])
    optimization = _taken(Optimization, {**chosen, "steps": settings["steps"]})
    return Learner(policy, algorithm, regularizer, optimization, mesh)


@dataclass
class Parts:
    """What a process that learns has of its own."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    algorithm: Algorithm
    worker: RolloutWorker | None
    learner: Learner


@contextmanager
def parts(settings: dict[str, Any], mesh: DeviceMesh | None) -> Iterator[Parts]:
    """A run's model, worker and learner, for the length of a `with` block. mesh: its processes, if several."""
    set_seed(settings["seed"])
    algorithm, regularizer = method(settings)  # before the model: it may refuse what it is given
    if mesh is None:
        device = choose_device(settings["learner"]["device"])
    else:  # none need have room on its device for the whole: sharding takes it there, from the first, in parts
        device = torch.device("cpu" if mesh.get_rank() == 0 else "meta")
    policy, tokenizer = load_model(Model(**settings["model"]), device)
    with rollout_worker(settings, policy, tokenizer, mesh) as worker:
        learns = learner(settings, policy, algorithm, regularizer, mesh)
        yield Parts(policy, tokenizer, algorithm, worker, learns)


def schedule(settings: dict[str, Any]) -> Schedule:
    return _taken(Schedule, {**settings["learner"], **settings})


def collector(
    settings: dict[str, Any],
    worker: RolloutWorker,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    algorithm: Algorithm,
) -> Collector:
    chosen = settings["rollout"]
    correction = chosen["importance_correction"]
    if correction == "auto":
        correction = "token" if chosen["lookahead"] else "none"
    plan = _taken(Plan, {**chosen, "importance_correction": correction, "seed": settings["seed"]})
    training = asked(settings["task"], settings, policy, tokenizer)
    return Collector(worker, training, tokenizer, algorithm, plan, context(settings, policy))


def context(settings: dict[str, Any], policy: PreTrainedModel) -> int:
    """Tokens of prompt and completion together that the model, and the engine as it is configured, can hold."""
    return min(context_length(policy), settings["rollout"].get("max_model_len") or sys.maxsize)


def rollout_worker(
    settings: dict[str, Any],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mesh: DeviceMesh | None = None,
) -> AbstractContextManager[RolloutWorker | None]:
    """The engine that `rollout` names, started, for the length of a `with` block: it is then kept for the next run of
    this process, or ended if the block failed. It samples from the policy's weights only after a `sync`.

    mesh: processes that will share the policy's weights. Each then samples from a whole copy on its own device, but
    dedicated engines are all the first one's: None in the others.
    """
    chosen, precision = settings["rollout"], settings.get("learner", settings)["precision"]
    ends = eos_token_ids(policy, tokenizer, chat(settings, policy, tokenizer))
    if chosen["name"] == "vllm":
        if chosen["placement"] == "dedicated" and mesh is not None and mesh.get_rank() > 0:
            return nullcontext()  # the first process's engines are all that there are
        return _vllm_worker(settings, precision, ends, context(settings, policy))
    if mesh is not None:
        policy = copy.deepcopy(policy).requires_grad_(False)
        broadcast_module(policy, mesh)
    return nullcontext(
        TransformersWorker(
            policy,
            eos_token_ids=ends,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
            batch_size=chosen["batch_size"],
            dtype=torch.bfloat16 if precision == "bfloat16" else None,
            tokenizer=tokenizer,
        )
    )


def _vllm_worker(
    settings: dict[str, Any], precision: str, ends: list[int], limit: int
) -> AbstractContextManager[RolloutWorker]:
    from carerft.rollout.dedicated import DedicatedWorker
    from carerft.rollout.keeping import kept
    from carerft.rollout.vllm import VllmWorker

    chosen, model = settings["rollout"], settings["model"]
    options = EngineOptions(
        model=model_path(Model(**model)),
        revision=model["revision"],
        dtype=precision,
        context=limit,
        eos_token_ids=tuple(ends),
        sequences=chosen["batch_size"],
        memory_share=chosen["gpu_memory_utilization"],
        cache_gib=chosen["kv_cache_gib"],
        tensor_parallel_size=chosen["tensor_parallel_size"],
        eager=chosen["enforce_eager"],
        weight_transfer=None if chosen["weight_transfer"] == "reload" else chosen["weight_transfer"],
    )
    if chosen["placement"] == "colocated":
        return kept(VllmWorker, options, chosen["verify_sync"])
    faults = (chosen["timeout_s"], chosen["max_restarts"], chosen["verify_sync"])
    return kept(DedicatedWorker, options, chosen["engines"], *faults)


def trackers(settings: dict[str, Any], run: RunDirectory, step: int = 0) -> Trackers:
    """What `tracker` names; in training also metrics.jsonl and a progress bar. step: where the run continues."""
    found = named_tracker(settings["tracker"], run.path, lambda: description(run), step)
    if run.manifest["command"] == "train":
        found.append(MetricsFile(run.path / "metrics.jsonl", step))
        found.append(ProgressTracker(console(), settings["regularizer"]["name"], step, settings["steps"]))
    return Trackers(found)


def measure(
    settings: dict[str, Any],
    run: RunDirectory,
    worker: RolloutWorker,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    measured: dict[str, Benchmark],
    shown: Trackers,
) -> None:
    """Evaluate the policy on its benchmarks, into the run's directory; print the result and hand it to the trackers."""
    worker.sync(policy)  # in a training, an engine of its own still has the weights of the last batch
    limit, said = context(settings, policy), header(run.manifest["command"], settings, policy, tokenizer)
    evaluation = evaluate(worker, tokenizer, measured, protocol(settings), run.path, limit, said, console())
    Console().print(table(evaluation))
    shown.show(EvaluationOutcome(run.path))


def header(
    command: str, settings: dict[str, Any], policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What evaluation.json says of the model and of how it was asked."""
    prompts = {name: entry["prompt"] for name, entry in settings["benchmark"].items() if "prompt" in entry}
    said = {"command": command, "model": settings["model"]["name"], "chat": chat(settings, policy, tokenizer)}
    return {**said, "prompts": prompts}


def _taken(kind: type, settings: dict[str, Any]) -> Any:
    """A dataclass from those of the settings that it has fields for."""
    return kind(**{field.name: settings[field.name] for field in fields(kind) if field.name in settings})
