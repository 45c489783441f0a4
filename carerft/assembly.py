"""From checked settings to the objects that a run is made of: the only place that knows every room."""

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from carerft.config.choices import knows_world
from carerft.config.settings import (
    OWN_SEQUENCES,
    EvaluateSettings,
    EvaluationSettings,
    OpenaiSettings,
    RecordedSettings,
    TaskSettings,
    TrainSettings,
    VllmSettings,
)
from carerft.errors import ConfigError
from carerft.evaluation import QUESTIONS_AT_ONCE
from carerft.evaluation.evaluate import Evaluator, context_needed
from carerft.evaluation.measurement import Benchmark
from carerft.evaluation.recorded import Recorded
from carerft.evaluation.served import Server
from carerft.evaluation.table import table
from carerft.evaluation.texts import TextMeasurement
from carerft.metrics.names import METRICS
from carerft.model.chat import eos_token_ids, uses_chat
from carerft.model.loading import choose_device, context_length, decoder, load_model, model_path
from carerft.model.lora import add_lora
from carerft.model.modes import recompute_activations
from carerft.model.sharding import broadcast_module
from carerft.planning.microbatch import tokens_per_microbatch
from carerft.report.outcome import EvaluationOutcome
from carerft.rollout import RolloutWorker
from carerft.rollout.engine import EngineOptions
from carerft.rollout.transformers import TransformersWorker
from carerft.runs.directory import RunDirectory
from carerft.tasks import Task
from carerft.tasks.encoding import ChatTask, Prompts
from carerft.tasks.questions import QuestionsTask
from carerft.terminal import open_console
from carerft.trackers import MetricsFile, ProgressTracker, Trackers, named_tracker
from carerft.trackers.weights_and_biases import description
from carerft.training.collector import Collector, planned_prompts
from carerft.training.learner import Learner, agreed
from carerft.training.rewards import Rewards, check_asked

CONTEXT_STEP = 256
"""An engine's context is a multiple of this, so that runs whose longest prompts differ a little have equal engines."""


@dataclass
class Subject:
    """The model that a run is about, with its settings: what follows from both is computed here, once."""

    settings: TrainSettings | EvaluateSettings
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts_shown: bool = False

    @cached_property
    def chat(self) -> bool:
        """Whether prompts go into the model's chat template."""
        return uses_chat(self.settings.model.chat, self.policy, self.tokenizer)

    @cached_property
    def context(self) -> int:
        """Tokens of prompt and completion together that the model, and the engine as configured, can hold."""
        return min(context_length(self.policy), getattr(self.settings.rollout, "max_model_len", None) or sys.maxsize)

    def engine_context(self, prompts: Prompts | None) -> int:
        """Tokens of prompt and completion together that the engine is started for: `rollout.max_model_len` or, if that
        is null, a multiple of 256 that suffices for prompts, benchmarks and their completions.

        prompts: of the training, those tokenised that it needs. Raises DataError for a benchmark whose data have a
        fault, or whose problem does not fit.
        """
        settings = self.settings
        measured = (self.tokenizer, settings.evaluation, self.context)
        if not isinstance(settings.rollout, VllmSettings) or settings.rollout.max_model_len:
            for benchmark in self.benchmarks.values():
                benchmark.prompts(*measured)
            return self.context
        needed = [context_needed(benchmark, *measured) for benchmark in self.benchmarks.values()]
        if prompts:
            needed.append(prompts.longest + prompts.max_tokens)
        return min(self.context, -(-max(needed) // CONTEXT_STEP) * CONTEXT_STEP)

    @property
    def models_text(self) -> bool:
        """Whether the model predicts prompts too: one that lives in the built-in world has learnt answers alone."""
        settings = self.settings
        tasks = [*settings.benchmark.values(), *([settings.task] if isinstance(settings, TrainSettings) else [])]
        known = knows_world(settings.model.path)
        return not known and not any(task._target_.endswith("WorldTask") for task in tasks)

    def task(self, settings: TaskSettings) -> Task:
        """What a file of `conf/task/` or `conf/benchmark/` names, with prompts in the model's chat template, if any."""
        task = _made(settings, self.settings.model.confidence)
        if self.chat:
            return ChatTask(task, self.tokenizer)
        if isinstance(task, QuestionsTask) and task.problems()[0].messages:
            what = "task.system" if task.system is not None else f"the conversations in {task.question!r}"
            raise ConfigError(
                f"{what} with a model that is asked without a chat template: it would not read them as such",
                "choose a chat model (or model.chat=true, if its tokenizer has a template), or write the text into the "
                "question (docs/faq.md)",
            )
        return task

    @cached_property
    def benchmarks(self) -> dict[str, Benchmark]:
        """What the model is measured on, by name."""
        benchmarks = {}
        for name, settings in self.settings.benchmark.items():
            measured = self.task(settings)
            # A slow tokenizer's text can't be followed while it is made.
            benchmarks[name] = _benchmark(measured, settings, stops=bool(self.tokenizer.is_fast))
        return benchmarks

    def rollout_worker(self, context: int, mesh: DeviceMesh | None = None) -> AbstractContextManager[RolloutWorker]:
        """The engine that `rollout` names, started, for the length of a `with` block: it is then kept for the next run
        of this process, or ended if the block failed. It samples from the policy's weights only after a `sync`.

        context: of an engine, in tokens. mesh: processes that will share the policy's weights. Each then samples from a
        full copy on its own device.
        """
        settings, ends = self.settings.rollout, eos_token_ids(self.policy, self.tokenizer, self.chat)
        if isinstance(settings, VllmSettings):
            return self._vllm_worker(settings, context, ends)
        policy = self.policy
        if mesh is not None:
            policy = copy.deepcopy(policy).requires_grad_(False)
            broadcast_module(policy, mesh)
        pad = self.tokenizer.pad_token_id
        return nullcontext(
            TransformersWorker(
                policy,
                eos_token_ids=ends,
                pad_token_id=pad if isinstance(pad, int) else ends[0],
                batch_size=settings.batch_size or OWN_SEQUENCES,
                dtype=torch.bfloat16 if self.settings.precision == "bfloat16" else None,
                tokenizer=self.tokenizer,
            )
        )

    def _vllm_worker(
        self, settings: VllmSettings, context: int, ends: list[int]
    ) -> AbstractContextManager[RolloutWorker]:
        """ends: the tokens that end a completion."""
        from carerft.rollout.dedicated import DedicatedWorker
        from carerft.rollout.reuse import reused
        from carerft.rollout.vllm import VllmWorker

        options = EngineOptions(
            model=model_path(self.settings.model),
            revision=self.settings.model.revision,
            dtype=self.settings.precision,
            max_model_len=context,
            eos_token_ids=tuple(ends),
            max_num_seqs=settings.batch_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_memory_bytes=None if settings.kv_cache_gib is None else int(settings.kv_cache_gib * 2**30),
            tensor_parallel_size=settings.tensor_parallel_size,
            enforce_eager=settings.enforce_eager,
            weight_transfer_config={"backend": "nccl"} if settings.weight_transfer == "nccl" else None,
        )
        if settings.placement == "colocated":
            return reused(VllmWorker, options, settings.verify_sync)
        faults = (settings.timeout_s, settings.max_restarts, settings.verify_sync)
        return reused(DedicatedWorker, options, settings.engines, *faults)

    def measure(self, run: RunDirectory, worker: RolloutWorker, trackers: Trackers) -> None:
        """Evaluate the policy, into the run's directory; print the result and hand it to the trackers."""
        evaluation = self._evaluate(run, worker, self.settings.evaluation, self.settings.samples)
        open_console().print(table(evaluation))
        trackers.show(EvaluationOutcome(run.path))

    def validate(self, run: RunDirectory, worker: RolloutWorker, step: int) -> dict[str, float]:
        """Evaluate the policy while it learns, into `evaluation/step_<n>/`. Returns metrics of that step:
        `validation/<benchmark>/<metric>`, those of the terminal's table."""
        settings, during = self.settings.evaluation, self.settings.evaluation.during
        fewer = [limit for limit in (settings.limit, during.limit) if limit is not None]
        settings = replace(settings, limit=min(fewer, default=None))
        place = run.path / "evaluation" / f"step_{step}"
        if (place / "evaluation.json").exists():
            evaluation = json.loads((place / "evaluation.json").read_text(encoding="utf-8"))
        else:
            samples = during.samples or self.settings.samples
            evaluation = self._evaluate(run, worker, settings, samples, place)
            worker.sleep()
        return {
            f"validation/{name}/{metric}": entry["value"]
            for name, result in evaluation["benchmarks"].items()
            for metric, entry in result["metrics"].items()
            if METRICS[metric].in_terminal and entry["value"] is not None
        }

    def _evaluate(
        self,
        run: RunDirectory,
        worker: RolloutWorker,
        how: EvaluationSettings,
        samples: int,
        place: Path | None = None,
    ) -> dict[str, Any]:
        """place: a directory for all files; None: the run's own."""
        worker.sync(self.policy)  # in a training, an engine of its own still has the weights of the last batch
        settings = self.settings
        named = ((name, getattr(measured.task, "prompt", None)) for name, measured in self.benchmarks.items())
        header = {"command": run.manifest["command"], "model": settings.model.name, "chat": self.chat}
        engine = "vllm" if isinstance(settings.rollout, VllmSettings) else "transformers"
        header["prompts"] = {name: prompt for name, prompt in named if prompt}
        evaluator = Evaluator(
            worker,
            self.tokenizer,
            min(self.context, worker.context),
            settings=how,
            samples=samples,
            seed=settings.seed,
            questions_at_once=QUESTIONS_AT_ONCE[engine],
            check_prompts=self.models_text and isinstance(settings, EvaluateSettings),
            show_prompts=not self.prompts_shown,
        )
        self.prompts_shown = True
        console = open_console(stderr=True, quiet=place is not None)  # a training has a bar of its own
        return evaluator.evaluate(self.benchmarks, place or run.path, header, console, place)


def measure_texts(settings: EvaluateSettings, run: RunDirectory) -> None:
    """Measure answers that the server or the file of `rollout` gives, into the run's directory; print the result and
    hand it to the trackers. Of a server, the settings' model is the one that it serves. Raises CareError."""
    rollout, samples = settings.rollout, settings.samples
    assert isinstance(rollout, OpenaiSettings | RecordedSettings)
    chat = isinstance(rollout, OpenaiSettings) and rollout.chat
    benchmarks = {}
    for name, entry in settings.benchmark.items():
        task = _made(entry, settings.model.confidence)
        if chat and hasattr(task, "use_chat_prompt"):
            task.use_chat_prompt()
        benchmarks[name] = _benchmark(task, entry)
    questions = {name: measured.task.problems()[: settings.evaluation.limit] for name, measured in benchmarks.items()}
    if isinstance(rollout, RecordedSettings):
        (name,) = questions
        source = Recorded.read(Path(rollout.path).expanduser(), questions[name])
        samples, questions[name] = source.k, source.questions
    else:
        source = Server(rollout, settings.model.name)
    how = settings.evaluation
    measurement = TextMeasurement(source, questions, settings=how, samples=samples, seed=settings.seed)
    header = {"command": run.manifest["command"], "model": settings.model.name, "chat": chat}
    header["prompts"] = {name: getattr(measured.task, "prompt", None) for name, measured in benchmarks.items()}
    with trackers(settings, run) as shown:
        evaluation = measurement.evaluate(benchmarks, run.path, header, open_console(stderr=True))
        open_console().print(table(evaluation))
        shown.show(EvaluationOutcome(run.path))


def _made(settings: TaskSettings, confidence: bool) -> Any:
    """The task that a file names. confidence: as of `ModelSettings`."""
    task = instantiate({key: value for key, value in vars(settings).items() if key not in ("name", "max_tokens")})
    if confidence and hasattr(task, "ask_confidence"):
        task.ask_confidence()
    return task


def _benchmark(task: Task, settings: TaskSettings, stops: bool = True) -> Benchmark:
    """stops: whether sampling can end where the task's replies do."""
    until = getattr(task, "until", None) if stops else None
    return Benchmark(task, settings.max_tokens, stop=(until,) if until else ())


@dataclass
class Training:
    """What a process that learns has of its own. worker: None if the engines belong to the first process alone.

    collector: None in all processes but the first. It samples with this process's worker.
    """

    subject: Subject
    worker: RolloutWorker | None
    learner: Learner
    collector: Collector | None


@contextmanager
def training(settings: TrainSettings, mesh: DeviceMesh | None, tokens: int | None = None) -> Iterator[Training]:
    """A run's model, worker and learner, for the length of a `with` block. mesh: its processes, if several.

    tokens: of a microbatch, as the run that is continued took them; None: as configured.
    """
    algorithm = instantiate(dict(vars(settings.algorithm)))
    regularizer = instantiate(dict(vars(settings.regularizer)))  # before the model: it may refuse its parameters
    follows = mesh is not None and mesh.get_rank() > 0
    rewards: Rewards | None = None

    def user_code() -> None:
        nonlocal rewards
        rewards = None if follows else Rewards(settings.reward)

    def weights() -> None:
        if not follows:  # no device need have room for the full model: sharding takes it there, from the first process
            device = choose_device(settings.learner.device) if mesh is None else torch.device("cpu")
            subject.policy = load_model(settings.model, device)[0]

    agreed(user_code, mesh)  # before the model: a user's file may not run
    subject = Subject(settings, *load_model(settings.model, torch.device("meta")))
    shares_engines = follows and getattr(settings.rollout, "placement", None) == "dedicated"
    task: Task | None = None
    prompts: Prompts | None = None

    def decide() -> int:
        nonlocal task, prompts
        if follows:
            return 0
        task = subject.task(settings.task)
        check_asked(settings.reward, task)
        assert settings.rollout.max_tokens, "check_train refuses a training without it"
        prompts = Prompts(task.problems(), subject.tokenizer, settings.rollout.max_tokens, subject.context)
        prompts.prepare(planned_prompts(settings, len(prompts)))  # those that will be asked
        return subject.engine_context(prompts)

    context = agreed(decide, mesh)  # the data are checked before weights are loaded, or an engine starts
    set_seed(settings.seed)
    agreed(weights, mesh)
    with nullcontext() if shares_engines else subject.rollout_worker(context, mesh) as worker:
        policy = subject.policy
        if settings.learner.gradient_checkpointing:
            recompute_activations(policy)
        if settings.model.adapter:
            add_lora(policy, settings.model, settings.seed)
        tokens = tokens or tokens_per_microbatch(settings, policy, choose_device(settings.learner.device))
        chosen = replace(settings.learner, tokens_per_microbatch=tokens)
        needed = settings.reference and (regularizer.needs_reference or settings.learner.monitor_reference)
        reference = original(settings, policy) if needed else None
        learner = Learner(policy, algorithm, regularizer, chosen, settings.steps, mesh, reference)
        collector = None
        if not follows:
            assert worker is not None and task is not None and prompts is not None and rewards is not None
            prompts.context = min(prompts.context, worker.context)
            collector = Collector(
                worker,
                task,
                subject.tokenizer,
                algorithm,
                settings.rollout,
                settings.seed,
                prompts,
                rewards,
                settings.steps,
                check_prompts=subject.models_text,
            )
        yield Training(subject, worker, learner, collector)


def original(settings: TrainSettings, policy: PreTrainedModel) -> PreTrainedModel:
    """The model that `reference` names, on the policy's device. Raises CareError if it is another model than the
    policy's original can be."""
    assert settings.reference is not None
    named = replace(settings.model, name="reference", path=settings.reference, revision=None)
    reference, _ = load_model(named, policy.device)
    mine, other = ({name: p.shape for name, p in decoder(m).named_parameters()} for m in (policy, reference))
    if {name.replace(".base_layer", ""): shape for name, shape in mine.items() if ".lora_" not in name} != other:
        raise ConfigError(
            f"reference={settings.reference} is another kind of model than model={settings.model.path}: their weights "
            "differ in names or shapes, and the penalty compares two models token by token",
            "name the model from which the policy was finetuned",
        )
    return reference


def trackers(settings: TrainSettings | EvaluateSettings, run: RunDirectory, step: int = 0) -> Trackers:
    """What `tracker` names; in training also metrics.jsonl and a progress bar. step: where the run continues."""
    chosen = named_tracker(settings.tracker, run.path, lambda: description(run), step)
    if isinstance(settings, TrainSettings):
        chosen.append(MetricsFile(run.path / "metrics.jsonl", step))
        chosen.append(ProgressTracker(open_console(stderr=True), settings.regularizer.name, step, settings.steps))
    return Trackers(chosen)
