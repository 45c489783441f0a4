"""Who gives the answers of an evaluation where no model of ours does: a server's model, or the file that holds them."""

from pathlib import Path
from typing import Any

from carerft.config.settings import OpenaiSettings


def with_answerer(record: dict[str, Any]) -> dict[str, Any]:
    """A composed configuration whose `model` is what gives the answers; as it is where a model of ours does, as in each
    training.

    Raises EngineError where the server can't be asked which model it serves.
    """
    rollout = record.get("rollout", {})
    if "learner" in record or not {"url", "path"} & set(rollout):
        return record
    if "url" in rollout:
        from carerft.evaluation.served import Server  # which imports torch

        found = {"name": Server.connect(OpenaiSettings(**rollout)).model, "path": rollout["url"]}
    else:
        path = Path(rollout["path"]).expanduser()
        found = {"name": path.name, "path": str(path)}
    return {**record, "model": {**record["model"], **found}}
