"""Refuses adapters that cannot work, as `carerft.config.checks` does all else."""

import importlib.util
from typing import Any

from carerft.config.values import at_least
from carerft.errors import ConfigError


def check_adapter(config: dict[str, Any], here: bool) -> None:
    """Raises ConfigError for `model.adapter` and its settings. here: as check_train's."""
    model, learner = config["model"], config.get("learner")
    adapter, targets = model["adapter"], model["lora_targets"]
    if adapter is None:
        return
    if learner is None:
        raise ConfigError(
            f"model.adapter={adapter}: carerft evaluate measures a model as it is, and trains nothing",
            "leave it out; what a training with an adapter made is, merged, in its directory: model=RUN/model",
        )
    if adapter != "lora":
        raise ConfigError(f"model.adapter={adapter}: must be lora or null", "write model.adapter=lora")
    for key in ("lora_rank", "lora_alpha"):
        at_least(config, f"model.{key}", 1)
    if not targets or not isinstance(targets, str | list):
        raise ConfigError(
            f"model.lora_targets={targets}: there would be nothing to train",
            "write model.lora_targets=all-linear, or the names of layers: model.lora_targets=[q_proj,v_proj]",
        )
    if learner["reference_offload"]:
        raise ConfigError(
            f"learner.reference_offload=true with model.adapter={adapter}: the reference is the policy without its "
            "adapter, and takes no memory",
            "write learner.reference_offload=false",
        )
    if here and importlib.util.find_spec("peft") is None:
        raise ConfigError("model.adapter=lora needs peft, which is not installed here", 'pip install "carerft[lora]"')
