"""Refuses a configuration that cannot work, before anything expensive starts: by key, value and remedy.

Types and misspelt keys are Hydra's work (the schemas), values of single settings `carerft.config.constraints`' (the
fields' metadata). Here are the combinations, the files, and what has to be installed.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from carerft.config import settings as schema
from carerft.config.choices import knows_world, machine
from carerft.config.constraints import check_constraints
from carerft.config.engine_checks import check_engine
from carerft.config.functions import is_reference
from carerft.errors import CareError, ConfigError
from carerft.metrics.names import BY_LIKELIHOOD, METRICS
from carerft.objective.settings import ESTIMATORS

TENSORS = "tensors"
"""The directory of a checkpoint that holds weights and optimizer state."""


def check_train(settings: schema.TrainSettings, here: bool = True) -> None:
    """Raises ConfigError, or CareError for a file that is absent or unusable.

    here: whether the run is to start on this machine, so that what it needs must be installed.
    """
    if isinstance(settings.rollout, schema.OpenaiSettings | schema.RecordedSettings):
        raise ConfigError(
            f"rollout={settings.rollout.name}: these answers are not of the policy that learns",
            "write rollout=transformers or rollout=vllm; carerft evaluate measures a served model",
        )
    check_constraints(settings)
    _check_algorithm(settings.algorithm)
    _check_regularizer(settings.regularizer)
    _check_rollout(settings.rollout)
    _check_shared(settings, here)
    _check_adapter(settings.model, settings.learner, here)
    _check_learner(settings.learner, here)
    if getattr(settings.task, "grader", None) == "none" and not any(map(is_reference, settings.reward.functions)):
        raise ConfigError(
            f"task.grader=none with reward={','.join(settings.reward.functions)}: no completion would earn anything",
            "write reward=mine.py:score, or a grader that judges: task.grader=number",
        )
    _check_validation(settings)
    if settings.reference is not None:
        _check_model("reference", settings.reference, here)
    updates, prompts = settings.learner.updates_per_batch, settings.rollout.prompts_per_batch
    if prompts % updates:
        raise ConfigError(
            f"rollout.prompts_per_batch={prompts} cannot be shared out equally over "
            f"learner.updates_per_batch={updates} optimizer steps",
            f"make rollout.prompts_per_batch a multiple of {updates}",
        )


def _check_validation(settings: schema.TrainSettings) -> None:
    every, best = settings.evaluation.every, settings.keep_best
    if every and not settings.benchmark:
        raise ConfigError(
            f"evaluation.every={every} with benchmark=none: there is nothing to measure",
            "name a benchmark, or leave it out",
        )
    if best is None:
        return
    benchmark, _, metric = best.partition(".")
    if every is None:
        raise ConfigError(
            f"keep_best={best}: the policy is measured only after the last step", "write evaluation.every=20 as well"
        )
    if benchmark not in settings.benchmark:
        raise ConfigError(
            f"keep_best={best}: {benchmark!r} is not among the benchmarks",
            f"write BENCHMARK.METRIC with one of {', '.join(settings.benchmark)}",
        )
    if not settings.benchmark[benchmark].max_tokens and metric not in BY_LIKELIHOOD:
        raise ConfigError(
            f"keep_best={best}: without samples (max_tokens=0) {benchmark} has {' and '.join(BY_LIKELIHOOD)} alone",
            f"write keep_best={benchmark}.{BY_LIKELIHOOD[-1]}",
        )
    if metric not in METRICS or not METRICS[metric].direction:
        better = (name for name, known in METRICS.items() if known.direction and known.in_terminal)
        raise ConfigError(
            f"keep_best={best}: {metric!r} is no metric of which more or less is better",
            f"write one of {', '.join(better)}",
        )


def check_choice(settings: schema.TrainSettings | schema.EvaluateSettings, words: Sequence[str]) -> None:
    """Refuse to take a real model to the built-in world because nothing else was named. words: of the command line.

    Raises ConfigError.
    """
    training = isinstance(settings, schema.TrainSettings)
    what = "task" if training else "benchmark"
    tasks = [settings.task] if training else list(settings.benchmark.values())
    named = {word.partition("=")[0].lstrip("+~").partition("@")[0] for word in words}
    by_default = not named & {what, "experiment", "scale"} and all(t._target_.endswith("WorldTask") for t in tasks)
    served = isinstance(settings.rollout, schema.OpenaiSettings)
    if not by_default or (knows_world(settings.model.path) and not served):
        return
    own = "task=questions task.path=mine.jsonl task.grader=number" if training else (
        "benchmark=questions benchmark.questions.path=mine.jsonl benchmark.questions.grader=number"
    )  # fmt: skip
    chosen = "rollout=openai" if served else f"model={settings.model.name}"
    raise ConfigError(
        f"{chosen} without a {what}: the default is the built-in world, whose words only the tiny model knows",
        f"write {what}={'math' if training else '[math500,gsm8k]'} (scale=paper for all as in the paper), or your own "
        f"data: {own}; or {what}=world, if that is meant",
    )


def check_evaluate(settings: schema.EvaluateSettings, here: bool = True) -> None:
    """As check_train, for `carerft evaluate`."""
    check_constraints(settings)
    if isinstance(settings.rollout, schema.OpenaiSettings | schema.RecordedSettings):
        _check_texts(settings)
    _check_shared(settings, here)
    if settings.model.adapter is not None:
        raise ConfigError(
            f"model.adapter={settings.model.adapter}: carerft evaluate measures a model as it is, and trains nothing",
            "leave it out; a training with an adapter writes the merged model to its directory: model=RUN/model",
        )
    if settings.evaluation.every:
        raise ConfigError(
            f"evaluation.every={settings.evaluation.every}: carerft evaluate measures a model once", "leave it out"
        )
    if not settings.benchmark:
        raise ConfigError("benchmark is empty", "name one, as in benchmark=world or benchmark=[math,gsm8k]")


def check_words(settings: schema.EvaluateSettings, words: Sequence[str]) -> None:
    """Refuse what only a training takes from `rollout`, where an evaluation has a key of its own. words: of the command
    line.

    Raises ConfigError.
    """
    benchmark = next(iter(settings.benchmark), "NAME")
    own = {"temperature": "evaluation", "top_p": "evaluation", "max_tokens": f"benchmark.{benchmark}"}
    for word in words:
        group, _, name = word.partition("=")[0].lstrip("+").partition(".")
        if group == "rollout" and name in own:
            raise ConfigError(
                f"{word}: how a training samples; carerft evaluate does not use it",
                f"write {own[name]}.{name}={word.partition('=')[2]}",
            )


def _check_texts(settings: schema.EvaluateSettings) -> None:
    """Of answers that no worker of ours samples."""
    if settings.evaluation.self_report:
        raise ConfigError(
            "evaluation.self_report=true asks the model for probabilities of given texts, and here is no model to ask",
            "leave it out, or measure the model itself: carerft evaluate model=DIR",
        )
    if isinstance(settings.rollout, schema.RecordedSettings):
        if len(settings.benchmark) > 1:
            raise ConfigError(
                f"benchmark names {len(settings.benchmark)} benchmarks, and the file holds answers to one",
                f"score one at a time: benchmark={next(iter(settings.benchmark))}",
            )
        if not Path(settings.rollout.path).expanduser().is_file():
            raise ConfigError(f"samples={settings.rollout.path}: there is no such file", "give a file of JSON lines")


def _check_shared(settings: schema.TrainSettings | schema.EvaluateSettings, here: bool) -> None:
    check_tracker(settings.tracker)
    own, prefix = (settings.learner, "learner.") if isinstance(settings, schema.TrainSettings) else (settings, "")
    if settings.precision == "bfloat16" and own.device != "cpu" and (older := machine().older):
        raise ConfigError(
            f"{prefix}precision=bfloat16: the GPU has none ({older}; bfloat16 begins with compute capability 8.0)",
            f"write {prefix}precision=float32",
        )
    if isinstance(settings.rollout, schema.VllmSettings):
        device = settings.learner.device if isinstance(settings, schema.TrainSettings) else "cpu"
        check_engine(settings.rollout, device, here)
    ours = not isinstance(settings.rollout, schema.OpenaiSettings | schema.RecordedSettings)
    if ours and not settings.evaluation.temperature:
        raise ConfigError(
            "evaluation.temperature=0: a model is measured by samples, whose agreement is its confidence, and there "
            "would be one answer alone",
            "write a number above 0; evaluation.temperature=0.01 is nearly greedy",
        )
    _check_self_report(settings)
    for name, always in {"limit": "evaluation.limit", "samples": "samples"}.items():
        value = getattr(settings.evaluation.during, name)
        if value is not None and not settings.evaluation.every:
            also = "evaluation.every=20 as well, or " if isinstance(settings, schema.TrainSettings) else ""
            raise ConfigError(
                f"evaluation.during.{name}={value} without evaluation.every: nothing is measured while training",
                f"write {also}{always}={value}, which every measurement takes",
            )
    if absent := set(settings.evaluation.combine or ()) - settings.benchmark.keys():
        raise ConfigError(
            f"evaluation.combine names {min(absent)}, which is not among the benchmarks",
            f"name some of {', '.join(settings.benchmark)}, or write evaluation.combine=null",
        )
    for name, entry in settings.benchmark.items():
        combined = name in (settings.evaluation.combine or ())
        if entry.max_tokens < 0 or (combined and entry.max_tokens == 0):
            raise ConfigError(
                f"benchmark.{name}.max_tokens={entry.max_tokens}: "
                + ("evaluation.combine needs its answers" if entry.max_tokens == 0 else "must be at least 0"),
                f"write benchmark.{name}.max_tokens=512, or as many as an answer needs",
            )
        sources = getattr(entry, "path", None), getattr(entry, "dataset", None)
        if here and entry._target_.endswith("QuestionsTask") and sources == (None, None):
            raise ConfigError(
                f"benchmark={name} has no file (left out, the benchmark is the task's)",
                f"write benchmark.{name}.path=FILE benchmark.{name}.grader=number, or benchmark=none",
            )
    read = {f"benchmark.{name}.path": getattr(entry, "path", None) for name, entry in settings.benchmark.items()}
    if isinstance(settings, schema.TrainSettings):
        read["task.path"] = getattr(settings.task, "path", None)
    for key, path in read.items():
        if path is not None and not Path(path).expanduser().is_file():
            raise ConfigError(
                f"{key}={path}: there is no such file", "give the path of a file of rows, such as JSON lines"
            )
    _check_model("model.path", settings.model.path, here)


def _check_model(key: str, model: str, here: bool) -> None:
    if model.startswith((".", "/", "~")) or Path(model).is_dir():
        check_model_directory(Path(model).expanduser(), here)
    elif model != "world" and model.count("/") != 1:
        raise ConfigError(
            f"{key}={model}: there is no such directory, and it is no hub name (organisation/name) either",
            "give a directory in Hugging Face format, or a hub name such as Qwen/Qwen2.5-3B; "
            "python benchmarks/real/prepare.py writes the directory of model=smollm2-135m",
        )


def check_tracker(settings: schema.TrackerSettings) -> None:
    """Raises ConfigError. Whether W&B can be reached is asked only where a run begins."""
    check_constraints(settings, "tracker.")
    if settings.name == "tensorboard":
        _need("tensorboard", "tracker=tensorboard", "tensorboard")


def _need(package: str, what: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{what} needs {package}, which is not installed here", f'pip install "carerft[{extra}]"')


def _check_self_report(settings: schema.TrainSettings | schema.EvaluateSettings) -> None:
    worlds = [name for name, entry in settings.benchmark.items() if entry._target_.endswith("WorldTask")]
    if not settings.evaluation.self_report or (settings.model.path != "world" and not worlds):
        return
    where = f"benchmark={worlds[0]}" if worlds else f"model={settings.model.name}"
    raise ConfigError(
        f"evaluation.self_report=true with {where}: a model is asked in English whether its answer is true, and the "
        "built-in world has no words for that",
        "write evaluation.self_report=false, or measure another model on benchmarks of text",
    )


def _check_algorithm(settings: schema.AlgorithmSettings) -> None:
    buffer, penalty = settings.overlong_buffer or 0, settings.overlong_penalty or 0
    if bool(buffer) != bool(penalty):
        raise ConfigError(
            f"algorithm.overlong_buffer={buffer} with algorithm.overlong_penalty={penalty}: one does nothing without "
            "the other",
            "set both (DAPO: 0.2 and 0.5), or both to 0",
        )


def _check_regularizer(settings: schema.RegularizerSettings | schema.SkewRegularizerSettings) -> None:
    estimators = ESTIMATORS.get(settings._target_.rpartition(".")[2], ESTIMATORS["ReverseKL"])
    estimator = settings.estimator
    if estimator not in estimators:
        why = {"k1": "k1 has the wrong gradient; ", "k2": "k2 is defined for a KL(policy || target) alone; "}
        raise ConfigError(
            f"regularizer.estimator={estimator}: {why.get(estimator, '')}must be one of {', '.join(estimators)}",
            f"write regularizer.estimator={estimators[0]}",
        )
    for name in ("beta", "alpha"):
        schedule, end = getattr(settings, f"{name}_schedule", None), getattr(settings, f"{name}_end", None)
        if schedule is not None and (schedule == "constant") != (end is None):
            raise ConfigError(
                f"regularizer.{name}_schedule={schedule} with regularizer.{name}_end={'null' if end is None else end}: "
                f"a schedule needs the value that {name} has at the last step, and a constant has none",
                f"write regularizer.{name}_schedule=linear regularizer.{name}_end=NUMBER, or neither",
            )


def _check_rollout(settings: schema.RolloutSettings) -> None:
    if settings.max_tokens is None:
        raise ConfigError("rollout.max_tokens=null: a completion needs a limit", "write rollout.max_tokens=512")
    if settings.lookahead and getattr(settings, "placement", None) != "dedicated":
        raise ConfigError(
            f"rollout.lookahead=1 with rollout={settings.name}: it samples with the learner's own weights, "
            "or in the learner's process, and cannot run ahead of it",
            "write rollout=vllm rollout.placement=dedicated, or rollout.lookahead=0",
        )
    for key in ("temperature", "top_p"):
        value = getattr(settings, key)
        if value != 1.0 and not settings.allow_biased_sampling:
            raise ConfigError(
                f"rollout.{key}={value}: training samples at {key} 1, because the probabilities that the learner works "
                "with are those of the unmodified policy",
                f"leave it at 1 (evaluation.{key} sets the one of the evaluation), or write "
                "rollout.allow_biased_sampling=true and rollout.importance_correction=token",
            )


def _check_adapter(model: schema.ModelSettings, learner: schema.LearnerSettings, here: bool) -> None:
    if model.adapter is None:
        return
    targets = model.lora_targets
    if not targets or not isinstance(targets, str | list):
        raise ConfigError(
            f"model.lora_targets={targets}: there would be nothing to train",
            "write model.lora_targets=all-linear, or the names of layers: model.lora_targets=[q_proj,v_proj]",
        )
    if learner.reference_offload:
        raise ConfigError(
            f"learner.reference_offload=true with model.adapter={model.adapter}: the reference is the policy without "
            "its adapter, and takes no memory",
            "write learner.reference_offload=false",
        )
    if here:
        _need("peft", "model.adapter=lora", "lora")


def _check_learner(settings: schema.LearnerSettings, here: bool) -> None:
    compiler = os.environ.get("CXX", "g++")
    if here and settings.compile and shutil.which(compiler) is None:
        raise ConfigError(
            f"learner.compile=true needs a C++ compiler, and there is no {compiler} here",
            "install one (g++), name it by the environment variable CXX, or write learner.compile=false",
        )
    if here and settings.optimizer == "adamw_8bit":
        _need("torchao", "learner.optimizer=adamw_8bit", "8bit")


def is_checkpoint(path: Path) -> bool:
    """Whether this is the directory of a checkpoint, RUN/checkpoints/step_<n>."""
    path = path.resolve()
    return (path / TENSORS).is_dir() and (path.parents[1] / "manifest.json").is_file()


def check_model_directory(path: Path, here: bool = True) -> None:
    """Refuse a local model directory that cannot be loaded, without loading anything. here: as of `check_train`; a plan
    for another machine needs the configuration alone.

    Raises CareError naming what is missing (configuration, weights, tokenizer), or that it wants to run its own code.
    A run's checkpoint has a configuration of its own.
    """
    if is_checkpoint(path):
        return
    if (path / "manifest.json").is_file():
        raise CareError(f"{path} is a run", f"write model={path}/model, or a checkpoint, {path}/checkpoints/step_<n>")
    if not (path / "config.json").is_file():
        raise CareError(f"{path} holds no config.json", "give a model directory in Hugging Face format")
    try:
        config = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise CareError(
            f"{path}/config.json is not valid JSON: {error}", "download or export the model again"
        ) from error
    if config.get("auto_map"):
        raise CareError(
            f"{path} wants to run code that comes with it (auto_map in its config.json), which carerft never does",
            "use a model whose architecture is part of transformers: docs/models.md lists the types",
        )
    if not here:
        return
    if not any(path.glob("*.safetensors")):
        raise CareError(
            f"{path} holds no *.safetensors weights", "save the model with save_pretrained, which writes them"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CareError(
            f"{path} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json)",
            "save it there too: AutoTokenizer.from_pretrained(base).save_pretrained(directory)",
        )
