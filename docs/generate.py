"""Writes docs/reference/ from the code, all but files.md: `python docs/generate.py`. tests/test_reference.py compares
both."""

import ast
import inspect
import io
import textwrap
import tokenize
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from carerft import errors
from carerft.cli import COMMANDS, USAGE, run
from carerft.config import settings
from carerft.metrics.names import METRICS
from carerft.metrics.steps import STEPS
from carerft.objective import settings as objective
from carerft.sweeps.composition import TASKS

REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Made by `python docs/generate.py` from the code. -->\n\n"
GROUPS: dict[str, tuple[type, ...]] = {
    "": (settings.TrainSettings, settings.EvaluateSettings),
    "model": (settings.ModelSettings,),
    "algorithm": (objective.AlgorithmSettings,),
    "regularizer": (objective.SkewSettings,),
    "reward": (settings.RewardSettings,),
    "keep_samples": (settings.KeepSettings,),
    "rollout": settings.ROLLOUTS,
    "learner": (settings.LearnerSettings,),
    "evaluation": (settings.EvaluationSettings,),
    "evaluation.during": (settings.DuringSettings,),
    "tracker": (settings.TrackerSettings,),
}


def pages() -> dict[str, str]:
    """Text by name of file."""
    return {
        "settings.md": _settings(),
        "commands.md": _commands(),
        "metrics.md": _metrics(),
        "errors.md": _errors(),
    }


def _settings() -> str:
    parts = [
        "# Settings\n\n" + MADE,
        "Every key of `carerft train` and `carerft evaluate`, set by `key=value`; `null` is no value. The defaults are "
        "those of the code; the files of `conf/` set some of them: `carerft train --cfg job` prints what a command "
        "would use.\n",
    ]
    for group, kinds in GROUPS.items():
        rows: dict[str, tuple[str, ...]] = {}
        for kind in kinds:
            only = _only(kind)
            rows |= {
                entry.name: _row(kind, entry, f"{group}." if group else "", only)
                for entry in fields(kind)
                if entry.name not in rows and not _is_group(entry)
            }
        parts.append(f"## {group or 'The run'}\n\n{_table(('key', 'default', 'allowed', 'meaning'), rows.values())}")
    parts.append(
        "## Tasks and benchmarks\n\n`task.KEY` of the task, `benchmark.NAME.KEY` of a benchmark. Each also has "
        "`max_tokens`: where a completion is cut.\n"
    )
    for kind in TASKS:
        rows = {entry.name: _row(kind, entry, "", "") for entry in fields(kind)}
        name = kind.__module__.rpartition(".")[2]
        parts.append(
            f"### {name}\n\n{_first_line(kind)}\n\n{_table(('key', 'default', 'allowed', 'meaning'), rows.values())}"
        )
    return "\n".join(parts)


def _only(kind: type) -> str:
    return {
        settings.VllmSettings: "`rollout=vllm`: ",
        settings.OpenaiSettings: "`rollout=openai`: ",
        settings.RecordedSettings: "`carerft score`: ",
        settings.EvaluateSettings: "evaluate: ",
    }.get(kind, "")


def _is_group(entry: Field[Any]) -> bool:
    return str(entry.name) in {*GROUPS, "during", "task", "benchmark", "_target_"}


def _row(kind: type, entry: Field[Any], prefix: str, only: str) -> tuple[str, ...]:
    shown = _shown(entry)
    meaning = only + _comments(kind).get(entry.name, "")
    return f"`{prefix}{entry.name}`", f"`{shown}`" if shown else "", _allowed(entry), meaning


def _shown(entry: Field[Any]) -> str:
    """A default as it is written on the command line."""
    default: Any = entry.default if entry.default_factory is MISSING else entry.default_factory()
    if default in (MISSING, "???"):
        return ""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return f"[{', '.join(default)}]" if isinstance(default, list) else str(default)


def _allowed(entry: Field[Any]) -> str:
    constraint = entry.metadata
    if "choices" in constraint:
        return ", ".join(f"`{choice}`" for choice in constraint["choices"])
    words = {"least": "at least", "most": "at most", "above": "above", "below": "below"}
    return ", ".join(f"{words[name]} {constraint[name]}" for name in words if name in constraint)


def _comments(kind: type) -> dict[str, str]:
    """The comment above, or beside, each field of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(parent))
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and not token.string.startswith(("# type:", "# noqa", "# fmt:"))
        }
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]  # a class has a body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                lines = [comments[line] for line in range(first, (node.end_lineno or first) + 1) if line in comments]
                while first - 1 in comments and source.splitlines()[first - 2].lstrip().startswith("#"):
                    first -= 1
                    lines.insert(0, comments[first])
                found[node.target.id] = " ".join(lines)
    return found


def _commands() -> str:
    parts = ["# Commands\n\n" + MADE, f"```text\n{USAGE.strip()}\n```"]
    for command in COMMANDS:
        if command in ("train", "evaluate"):
            continue  # their keys are the settings
        with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
            run(command, ["--help"])
        parts.append(f"## carerft {command}\n\n```text\n{printed.getvalue().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _metrics() -> str:
    better = {1: "higher", -1: "lower", 0: ""}
    rows = [(f"`{name}`", m.group, better[m.direction], m.meaning) for name, m in METRICS.items()]
    return (
        "# Metrics\n\n"
        + MADE
        + "## While it learns: metrics.jsonl\n\nA line for each optimizer step. A batch's metrics "
        "stand at each of its steps, its times at the first alone.\n\n"
        + _table(("key", "what"), ((f"`{name}`", meaning) for name, meaning in STEPS.items()))
        + "\n## Of an evaluation: evaluation.json\n\nk is the number of samples per question. A vote is a sample's "
        "answer; a question's confidence is its majority answer's share of the votes.\n\n"
        + _table(("key", "group", "better", "what"), rows)
    )


def _errors() -> str:
    rows = [
        (f"`{name}`", _first_line(kind))
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.CareError)
    ]
    return (
        "# Errors\n\n"
        + MADE
        + "An error says what is wrong, names the key, file or line, and says what to write or run "
        "instead. The exit status is 0 if all went well, 1 if a run failed, 2 if the words or the data were wrong, 130 "
        "after Ctrl-C. In Python:\n\n" + _table(("class", "raised when"), rows)
    )


def _first_line(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _table(header: tuple[str, ...], rows: Any) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """A text as it is read: no bar ends the cell, and outside of code no <name> is taken for HTML."""
    parts = text.replace("|", chr(92) + "|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
