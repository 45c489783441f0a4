"""Weights & Biases: one run per run directory, grouped by experiment, offline unless told otherwise.

A run keeps its id for as long as its directory lives, so that one which is continued stays one. Offline, each start
writes a directory of its own, `wandb/offline-run-<time>-<id>`; given all of them, `wandb sync` sends those of one id
to one run, in the order of their start times. W&B writes its file every 15 seconds: what it had not yet written when
a process was killed is missing there, and the steps after the last checkpoint are in both directories, with the same
numbers. metrics.jsonl has every step once.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from carerft.config.identity import config_hash
from carerft.config.settings import TrackerSettings
from carerft.errors import CareError, ConfigError
from carerft.runs.directory import RunDirectory
from carerft.trackers.outcome import Outcome

LONGEST_NAME, LONGEST_TAG = 128, 64  # characters that W&B takes


class WandbTracker:
    """A W&B run of its own, also beside others within one process."""

    essential: ClassVar = False

    def __init__(self, directory: Path, project: str, entity: str | None, mode: str, run: dict[str, Any], step: int):
        """run: what `wandb.init` takes of the run itself: see `description`. step: where it continues, 0 at its start.

        Raises CareError where W&B can't start.
        """
        import wandb

        self._directory, self._step = directory, step
        # A run is resumed under its id; "create_new" keeps two runs of one process apart. The manifest names the
        # revision and the hardware: W&B need not look for them.
        settings = wandb.Settings(silent=True, console="off", disable_git=True)
        try:
            self._run = wandb.init(
                dir=str(directory),
                project=project,
                entity=entity,
                mode=mode,
                reinit="create_new",
                resume="allow",
                settings=settings,
                **run,
            )
        except wandb.Error as error:
            raise CareError(
                f"W&B did not start: {error}", "tracker=wandb keeps the run offline; tracker=none does without W&B"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, float]) -> None:
        # W&B's own step is ours too: where a run is continued online, it drops the steps that it has already.
        self._step = int(metrics["step"])
        self._run.log(metrics, step=self._step, commit=True)

    def show(self, outcome: Outcome) -> None:
        import wandb
        from PIL import Image

        shown: dict[str, Any] = {"step": self._step}
        shown |= {name: wandb.Table(columns=table.columns, data=table.rows) for name, table in outcome.tables().items()}
        shown |= {name: wandb.Image(Image.open(io.BytesIO(data))) for name, data in outcome.figures().items()}
        with _data_in(self._directory / "wandb"):
            self._run.log(shown, step=self._step + 1, commit=True)
        self._run.summary.update(outcome.numbers())

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


@contextlib.contextmanager
def _data_in(directory: Path) -> Iterator[None]:
    """W&B puts what a table consists of into this directory, rather than into the user's home, where it would stay."""
    name = "WANDB_DATA_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(directory)
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def description(run: RunDirectory) -> dict[str, Any]:
    """What `wandb.init` takes of a run: id, name, group, job_type, tags, config.

    The id is the configuration's hash and the moment at which the run directory was begun: continued, a run keeps it;
    deleted and made anew, it gets another. `config.cell` is the same for all seeds, to group by.
    """
    from carerft.report.cells import make_cells
    from carerft.runs.reading import Run

    settings = run.manifest["config"]
    names = [settings[group]["name"] for group in ("model", "algorithm", "regularizer") if group in settings]
    command, place = run.manifest["command"], run.path.name
    (cell,) = make_cells([Run(run.path, place, "running", command, config=settings, seed=settings["seed"])])
    label = ", ".join([*names[:2], cell.label]) if command == "train" else cell.label
    # Two cells may share a label; the hash of what all their seeds share tells them apart.
    shared = config_hash(settings | {"seed": None, "model": settings["model"] | {"base": None}})
    started = "".join(character for character in run.manifest["started"][:19] if character.isdigit())
    return {
        "id": f"{run.manifest['config_hash']}-{started}",
        "name": f"{label}, seed {settings['seed']}"[-LONGEST_NAME:],
        "group": settings["name"][:LONGEST_NAME],
        "job_type": command,
        "tags": sorted({name[:LONGEST_TAG] for name in names if name}),
        "config": settings | {"cell": f"{label} ({shared[:6]})"},
    }


def report_description(directory: Path, runs: list[str]) -> dict[str, Any]:
    """What `wandb.init` takes of the report in this directory. The same table has the same id.

    runs: the directories, or the experiment, that it is about.
    """
    digest = hashlib.sha256((directory / "table.csv").read_bytes()).hexdigest()[:12]
    group = Path(runs[0]).name[:LONGEST_NAME]
    about = f"report on {', '.join(runs)}"[:LONGEST_NAME]
    return {"id": digest, "name": about, "group": group, "job_type": "report", "tags": [], "config": {"runs": runs}}


def check_online(settings: TrackerSettings) -> None:
    """`require_login` for a tracker that sends as it happens: before anything is loaded, not before it is needed."""
    if settings.name == "wandb" and settings.mode == "online":
        require_login()


def require_login() -> None:
    """Raises ConfigError where nothing can be sent to W&B: no key is known, or the server doesn't answer to it."""
    import wandb

    offline = "keep runs offline with tracker=wandb and send them later with `wandb sync`"
    try:
        known = wandb.login(prompt=False)
    except wandb.Error as error:
        raise ConfigError(f"W&B can't be used: {error}", f"mend it, or {offline}") from error
    if not known:
        raise ConfigError(
            "no key for W&B was found, neither in WANDB_API_KEY nor from an earlier `wandb login`",
            f"run `wandb login`, or {offline}",
        )
