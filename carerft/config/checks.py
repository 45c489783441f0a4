"""Refuses a configuration that cannot work, before anything expensive starts: by key, value and remedy.

Types and misspelt keys are Hydra's work (the schemas); here are ranges, choices, combinations and files.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from carerft.config.adapter_checks import check_adapter
from carerft.config.engine_checks import check_engine
from carerft.config.method_checks import check_algorithm, check_regularizer
from carerft.config.values import above_0, at_least, between, one_of
from carerft.errors import CareError, ConfigError
from carerft.objective.schedules import SCHEDULES
from carerft.tasks.templates import load_template


def check_train(config: dict[str, Any], here: bool = True) -> None:
    """Raises ConfigError, or CareError for a file that is absent or unusable. config: resolved.

    here: whether it is to run on this machine: what it needs must then be installed.
    """
    _shared(config, here)
    at_least(config, "steps", 0)
    check_algorithm(config)
    check_regularizer(config)
    _rollout(config)
    _learner(config, here)
    updates, prompts = config["learner"]["updates_per_batch"], config["rollout"]["prompts_per_batch"]
    if prompts % updates:
        raise ConfigError(
            f"rollout.prompts_per_batch={prompts} cannot be shared out equally over "
            f"learner.updates_per_batch={updates} optimizer steps",
            f"make rollout.prompts_per_batch a multiple of {updates}",
        )


def check_evaluate(config: dict[str, Any], here: bool = True) -> None:
    """As check_train, for `carerft evaluate`."""
    _shared(config, here)
    one_of(config, "precision", ("float32", "bfloat16"))
    if not config["benchmark"]:
        raise ConfigError("benchmark is empty", "name one, as in benchmark=world or benchmark=[math,gsm8k]")


def _shared(config: dict[str, Any], here: bool) -> None:
    at_least(config, "seed", 0)
    at_least(config, "samples", 1)
    at_least(config, "evaluation.bootstrap", 1)
    check_tracker(config)
    check_adapter(config, here)
    if config["evaluation"]["limit"] is not None:
        at_least(config, "evaluation.limit", 1)
    between(config, "evaluation.level", 0, 1)
    if config["rollout"]["name"] == "vllm":
        check_engine(config, here)
    _self_report(config)
    path = config["data"]["path"]
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"data.path={path}: there is no such file", "give the path of a JSON-lines file")
    _prompts(config)
    model = config["model"]["path"]
    if model.startswith((".", "/", "~")) or Path(model).is_dir():
        check_model_directory(Path(model).expanduser())
    elif model != "world" and model.count("/") != 1:
        raise ConfigError(
            f"model.path={model}: there is no such directory, and it is no hub name (organisation/name) either",
            "give a directory in Hugging Face format, or a hub name such as Qwen/Qwen2.5-3B",
        )


def check_tracker(config: dict[str, Any]) -> None:
    """As check_train, of `tracker` alone. Whether W&B can be reached is asked only where a run begins."""
    one_of(config, "tracker.name", ("none", "wandb", "tensorboard"))
    one_of(config, "tracker.mode", ("offline", "online", "disabled"))
    if config["tracker"]["name"] == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("tracker=tensorboard: tensorboard is not installed", "pip install 'carerft[tensorboard]'")


def _prompts(config: dict[str, Any]) -> None:
    """Of tasks and benchmarks of ours, whose prompt is one of their module's."""
    for entry in (config.get("task") or {}, *config["benchmark"].values()):
        package, _, module = entry.get("_target_", "").rpartition(".")[0].rpartition(".")
        if package == "carerft.tasks" and "prompt" in entry:
            load_template(module, entry["prompt"])


def _self_report(config: dict[str, Any]) -> None:
    worlds = [name for name, found in config["benchmark"].items() if found.get("_target_", "").endswith("WorldTask")]
    if not config["evaluation"]["self_report"] or (config["model"]["path"] != "world" and not worlds):
        return
    where = f"benchmark={worlds[0]}" if worlds else f"model={config['model']['name']}"
    raise ConfigError(
        f"evaluation.self_report=true with {where}: a model is asked in English whether its answer is true, and the "
        "built-in world has no words for that",
        "write evaluation.self_report=false, or measure another model on benchmarks of text",
    )


def _rollout(config: dict[str, Any]) -> None:
    for key in ("rollout.prompts_per_batch", "rollout.max_tokens", "rollout.batch_size"):
        at_least(config, key, 1)
    one_of(config, "rollout.importance_correction", ("auto", "none", "token", "sequence"))
    lookahead, placement = config["rollout"]["lookahead"], config["rollout"].get("placement")
    if lookahead not in (0, 1):
        raise ConfigError(
            f"rollout.lookahead={lookahead}: must be 0 or 1", "more would be staler than is corrected for"
        )
    if lookahead and placement != "dedicated":
        raise ConfigError(
            f"rollout.lookahead=1 with rollout={config['rollout']['name']}: it samples with the learner's own weights, "
            "or in the learner's process, and cannot run ahead of it",
            "write rollout=vllm rollout.placement=dedicated, or rollout.lookahead=0",
        )
    above_0(config, "rollout.importance_cap", "2 is usual")
    if config["rollout"]["top_p"] > 1:
        raise ConfigError(
            f"rollout.top_p={config['rollout']['top_p']}: it is a probability", "give a number of at most 1"
        )
    for key in ("temperature", "top_p"):
        above_0(config, f"rollout.{key}", "1 is the policy itself")
        if config["rollout"][key] != 1.0 and not config["rollout"]["allow_biased_sampling"]:
            raise ConfigError(
                f"rollout.{key}={config['rollout'][key]}: training samples at {key} 1, because the probabilities that "
                "the learner works with are those of the unmodified policy",
                f"leave it at 1 (evaluation.{key} sets the one of the evaluation), or write "
                "rollout.allow_biased_sampling=true and rollout.importance_correction=token",
            )


def _learner(config: dict[str, Any], here: bool) -> None:
    one_of(config, "learner.schedule", SCHEDULES)
    one_of(config, "learner.precision", ("float32", "bfloat16"))
    one_of(config, "learner.optimizer", ("adamw", "adamw_8bit"))
    compiler = os.environ.get("CXX", "g++")
    if here and config["learner"]["compile"] and shutil.which(compiler) is None:
        raise ConfigError(
            f"learner.compile=true needs a C++ compiler, and there is no {compiler} here",
            "install one (g++), name it by the environment variable CXX, or write learner.compile=false",
        )
    if here and config["learner"]["optimizer"] == "adamw_8bit" and importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "learner.optimizer=adamw_8bit needs torchao, which is not installed here", 'pip install "carerft[8bit]"'
        )
    for key in ("learning_rate", "warmup_steps", "weight_decay", "adam_eps"):
        at_least(config, f"learner.{key}", 0)
    for key in ("updates_per_batch", "epochs", "tokens_per_microbatch", "checkpoint_every", "keep_checkpoints"):
        at_least(config, f"learner.{key}", 1)
    between(config, "learner.adam_beta1", 0, 1)
    between(config, "learner.adam_beta2", 0, 1)
    above_0(config, "learner.max_grad_norm", "use a large number, such as 1e9, for no clipping")


def check_model_directory(path: Path) -> None:
    """Refuse a local model directory that cannot be loaded, without loading anything.

    Raises CareError naming what is missing (configuration, weights, tokenizer), or that it wants to run its own code.
    """
    if not (path / "config.json").is_file():
        raise CareError(f"{path} holds no config.json", "give a model directory in Hugging Face format")
    try:
        found = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise CareError(
            f"{path}/config.json is not valid JSON: {error}", "download or export the model again"
        ) from error
    if found.get("auto_map"):
        raise CareError(
            f"{path} wants to run code that comes with it (auto_map in its config.json), which carerft never does",
            "use a model whose architecture is part of transformers",
        )
    if not any(path.glob("*.safetensors")):
        raise CareError(
            f"{path} holds no *.safetensors weights", "save the model with save_pretrained, which writes them"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CareError(
            f"{path} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json)",
            "save it there too: AutoTokenizer.from_pretrained(base).save_pretrained(directory)",
        )
