"""Weights & Biases: one run per run directory, grouped by experiment, offline by default.

A run keeps its id for as long as its directory exists: continued, it is the same run. Offline, each start writes its
own directory, `wandb/offline-run-<time>-<id>`; `wandb sync` joins all directories of one id in the order of their start
times. W&B writes its file every 15 seconds: after a kill, the last steps may be missing from it, and the steps after
the last checkpoint are in two directories, with the same numbers. metrics.jsonl has every step once.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

from carerft.config.identity import config_hash
from carerft.config.settings import TrackerSettings
from carerft.errors import CareError, ConfigError
from carerft.runs.directory import RunDirectory
from carerft.runs.labels import run_label
from carerft.trackers.tracker import Outcome, Tracker

LONGEST_NAME, LONGEST_TAG = 128, 64  # characters that W&B takes


class WandbTracker(Tracker):
    """One W&B run; a process may have several at once."""

    def __init__(self, directory: Path, project: str, entity: str | None, mode: str, run: dict[str, Any], step: int):
        """run: as `description` returns it. step: the last finished step of a continued run, 0 for a new one.

        Raises CareError where W&B can't start.
        """
        import wandb

        self._directory, self._step = directory, step
        # A run is resumed under its id; "create_new" keeps two runs of one process apart. The manifest names the
        # revision and the hardware: W&B need not look for them.
        settings = wandb.Settings(silent=True, console="off", disable_git=True)
        target: dict[str, Any] = {"dir": str(directory), "project": project, "entity": entity, "mode": mode}
        try:
            self._run = wandb.init(**target, **run, reinit="create_new", resume="allow", settings=settings)
        except wandb.Error as error:
            raise CareError(
                f"W&B did not start: {error}", "tracker=wandb keeps the run offline; tracker=none leaves W&B out"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, float]) -> None:
        # W&B's step is the learner's: when a run is continued online, W&B drops the steps that it already has.
        self._step = int(metrics["step"])
        self._run.log(metrics, step=self._step, commit=True)

    def table(self, name: str, step: int, columns: list[str], rows: list[list[str | float | bool | None]]) -> None:
        import wandb

        os.environ["WANDB_DATA_DIR"] = str(self._directory / "wandb")  # as in `show`
        self._run.log({name: wandb.Table(columns=[*columns], data=[*rows])}, step=step, commit=False)

    def show(self, outcome: Outcome) -> None:
        import wandb
        from PIL import Image

        shown: dict[str, Any] = {"step": self._step}
        for name, (columns, rows) in outcome.tables().items():
            shown[name] = wandb.Table(columns=[*columns], data=[*rows])
        shown |= {name: wandb.Image(Image.open(io.BytesIO(data))) for name, data in outcome.figures().items()}
        # W&B copies the contents of tables there; in its default place, the user's home, they would stay forever.
        os.environ["WANDB_DATA_DIR"] = str(self._directory / "wandb")
        self._run.log(shown, step=self._step + 1, commit=True)
        self._run.summary.update(outcome.numbers())

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def description(run: RunDirectory) -> dict[str, Any]:
    """What `wandb.init` takes of a run: id, name, group, job_type, tags, config.

    The id is the configuration's hash and the moment at which the run directory was begun: continued, a run keeps it;
    deleted and made anew, it gets another. `config.cell` is the same for all seeds, to group by.
    """
    manifest = run.manifest
    command, config = manifest["command"], manifest["config"]
    names = [config[group]["name"] for group in ("model", "algorithm", "regularizer") if group in config]
    label = run_label(command, config)
    label = ", ".join([*names[:2], label]) if command == "train" else label
    # Two cells may share a label; the hash of what all their seeds share tells them apart.
    shared = config_hash(config | {"seed": None, "model": config["model"] | {"base": None}})
    started = "".join(character for character in manifest["started"][:19] if character.isdigit())
    return {
        "id": f"{manifest['config_hash']}-{started}",
        "name": f"{label}, seed {config['seed']}"[-LONGEST_NAME:],
        "group": config["name"][:LONGEST_NAME],
        "job_type": command,
        "tags": sorted({name[:LONGEST_TAG] for name in names if name}),
        "config": config | {"cell": f"{label} ({shared[:6]})"},
    }


def report_description(directory: Path, runs: list[str]) -> dict[str, Any]:
    """What `wandb.init` takes of the report in this directory. Equal tables have equal ids.

    runs: the directories that it reports on, or the experiment's name.
    """
    digest = hashlib.sha256((directory / "table.csv").read_bytes()).hexdigest()[:12]
    group = Path(runs[0]).name[:LONGEST_NAME]
    about = f"report on {', '.join(runs)}"[:LONGEST_NAME]
    return {"id": digest, "name": about, "group": group, "job_type": "report", "tags": [], "config": {"runs": runs}}


def check_online(settings: TrackerSettings) -> None:
    """`require_login` if this tracker sends metrics during the run. Call it before loading."""
    if settings.name == "wandb" and settings.mode == "online":
        require_login()


def require_login() -> None:
    """Raises ConfigError if nothing can be sent to W&B: there is no key, or the server rejects it."""
    import wandb

    offline = "keep runs offline with tracker=wandb and send them later with `wandb sync`"
    try:
        known = wandb.login(prompt=False)
    except wandb.Error as error:
        raise ConfigError(f"W&B can't be used: {error}", f"correct that, or {offline}") from error
    if not known:
        raise ConfigError(
            "no key for W&B was found, neither in WANDB_API_KEY nor from an earlier `wandb login`",
            f"run `wandb login`, or {offline}",
        )
