"""`carerft COMMAND ...`: finds the command, runs it, and explains errors in the configuration that it composes.

Each command is a module of `carerft.commands` with a function `main`.
"""

import errno
import importlib
import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from carerft import __version__
from carerft.config import choices
from carerft.config.composition import CONF
from carerft.errors import CareError, ConfigError
from carerft.evaluation.table import ALL
from carerft.sweeps.names import release
from carerft.text import did_you_mean, hydra_quoted, visible
from carerft.training.launch import quiet

COMMANDS = {
    "train": "finetune a model with reinforcement learning, then evaluate it",
    "evaluate": "measure accuracy, honesty and calibration of a model",
    "sweep": "run an experiment: a table, a figure or an ablation",
    "plan": "memory, hours and cost of a run or an experiment, before it starts",
    "doctor": "whether this machine can train: versions, GPUs, disk, and a trial",
    "report": "tables, figures and one HTML page from run directories",
    "show": "read what a model wrote while it learned",
    "export": "write a run's policy as a model directory, to be served",
    "score": "score answers that another program wrote",
    "grade": "grade mathematical answers from any source",
    "base": "build a base model of the built-in world",
    "dashboard": "save the layout of a W&B workspace to a project",
}
USAGE = f"""carerft {__version__}: confidence-anchored reinforcement finetuning (arXiv 2602.00085)

usage: carerft COMMAND [key=value ...] [--help]

{chr(10).join(f"  {name:<10}{text}" for name, text in COMMANDS.items())}

examples:
  carerft train model=tiny algorithm=grpo regularizer=srkl regularizer.alpha=0.8 regularizer.beta=0.04 task=world
  carerft train -m regularizer=none,rkl,srkl seed=0,1,2        every combination
  carerft train model=/path/to/a/model task=gsm8k --cfg job    show the composed configuration and stop
  carerft evaluate model=tiny benchmark=world samples=16 --all    with every metric in the table, not five alone
  carerft sweep table1 model=tiny                              table 1 of the paper, in miniature
  carerft plan table1 model=qwen2.5-7b hardware=8xh100         memory, hours and cost, before anyone pays
  carerft doctor model=qwen2.5-3b                              can this machine do it? in a minute
  carerft report outputs/demo
  eval "$(carerft train -sc install=bash)"                     tab completion (bash; also zsh, fish)
"""
COMPOSED = ("train", "evaluate", "score", "sweep", "plan", "doctor")  # their words are Hydra's overrides


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 (it failed), 2 (the words were wrong), 130 (Ctrl-C)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "-sc" in arguments:
        arguments = _completion(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command, *words = arguments
    if command not in COMMANDS:
        hint = did_you_mean(command, list(COMMANDS)) + f"commands: {', '.join(COMMANDS)}"
        return _fail(f"there is no command {command!r}", hint)
    return run(command, words)


def run(command: str, words: list[str]) -> int:
    """Run a command with these words. What a user can mend is printed without a traceback."""
    if command in ("train", "evaluate", "score") and "--all" in words:
        words = [word for word in words if word != "--all"]
        os.environ[ALL] = "1"
    if foreign := [word for word in words if word != word.encode(errors="ignore").decode()]:
        return _fail(f"{visible(foreign[0])}: this is not UTF-8", "give files and names that are")
    module = importlib.import_module(f"carerft.commands.{command}")
    from hydra.errors import HydraException
    from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

    from carerft.config.mistakes import explain

    try:
        if {"-m", "--multirun"} & set(words) and {"-c", "--cfg"} & set(words):
            raise ConfigError("-m and --cfg together", "a multirun is many configurations: write --cfg without -m")
        if command in COMPOSED:
            flags = [word for word in words if word in ("-m", "--multirun")]  # which Hydra takes before the others only
            words = flags + [word for word in expand_model(words) if word not in flags]
            check_names(words)
        if command == "train":
            words += quiet()
        # Hydra installs completion for a program of this name, and prints it in its messages.
        sys.argv = ["carerft" if "-sc" in words else f"carerft {command}", *words]
        with engines_where_words_leave_room(words):
            return module.main() or 0
    except CareError as error:
        return _fail(error.what, error.remedy)
    except InterpolationResolutionError as error:
        failure = file_failure(error)  # of the directory that a resolver has made
        return _fail(*(unusable(failure, command, words) if failure else explain(error, _listing(command))))
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__  # where Hydra has made the task
        return _fail(
            *((cause.what, cause.remedy) if isinstance(cause, CareError) else explain(error, _listing(command)))
        )
    except (OSError, ValueError) as error:
        failure = file_failure(error)
        if failure is None:
            raise
        return _fail(*unusable(failure, command, words))
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        return 130
    finally:
        release()


UNUSABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENODEV),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EILSEQ, errno.EINVAL),
    *(errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.ESTALE, errno.ENXIO),
}
"""What a file system answers where a file cannot be written or read. Other errors are defects."""


def file_failure(error: BaseException) -> OSError | None:
    """The error of a file system that is behind this one (logging hides the one of its file); None if none is."""
    seen: BaseException | None = error
    if type(error) is ValueError and not str(error).startswith("Unable to configure"):
        return None
    while seen is not None:
        if isinstance(seen, OSError) and not isinstance(seen, ConnectionError | TimeoutError):
            name = str(seen.filename or "")
            absent = seen.errno == errno.ENOENT and name and Path(name).parent.is_dir()  # as in /proc
            if seen.errno in UNUSABLE or absent:
                return seen
        seen = seen.__cause__ or seen.__context__
    return None


def unusable(error: OSError, command: str, words: list[str]) -> tuple[str, str]:
    """What is wrong with a file or directory, and the key with which to choose another."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    what = f"{visible(name)}: {error.strerror}" if name else f"a file cannot be written: {error.strerror}"
    cache = os.environ.get("CARERFT_CACHE") or str(Path.home() / ".cache")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "allow more open files: ulimit -n"
    elif name and os.path.exists(name) and not os.access(name, os.R_OK):
        remedy = "make it readable for you"
    elif name.startswith(f"{cache}{os.sep}"):
        remedy = "choose another directory for what is kept between runs, with CARERFT_CACHE=... or HF_HOME=..."
    elif command == "sweep":
        remedy = "the runs of a sweep go to outputs/ in the working directory: start it in another, or free the disk"
    elif command not in COMPOSED:
        remedy = "choose another directory to write to, with output=..., or free the disk"
    else:
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(words) else "hydra.run.dir"
        remedy = f"choose another directory to write to, with {key}=..., or free the disk"
    return what, remedy


def engines_where_words_leave_room(words: list[str]) -> AbstractContextManager[None]:
    """Without a word about rollout, vLLM is taken only if the learner's device is the first GPU, as its engine's is.
    Hydra chooses the files of groups before it knows the device."""
    devices = [word.partition("=")[2] for word in words if word.startswith(("device=", "learner.device="))]
    if not devices or devices[-1] in ("auto", "cuda", "cuda:0"):
        return nullcontext()
    return choices.assuming(replace(choices.machine(), vllm=False))


def _listing(command: str) -> str:
    if command in COMPOSED:
        return f"`carerft {'evaluate' if command == 'evaluate' else 'train'} --cfg job` lists every key"
    return f"`carerft {command} --help` lists every key"


PATHS = re.compile(r"model\.path|task\.path|benchmark\.\w+\.path")
DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")
PLAIN = re.compile(r"[\w/\-+.$%*@?|]*", re.ASCII)  # what Hydra's grammar takes without quotes


def expand_model(words: list[str]) -> list[str]:
    """Replace `model=/a/directory` or `model=org/name` by `model=path model.path="..."`, which Hydra understands, and
    put other paths that its grammar would not take into quotes. `reward=a,mine.py:b` is two lists of one function. A
    directory of the working directory needs no slash, unless conf/model/ has its name; `model.path=...` alone would
    give the model the name and the learning rate of the tiny one.

    Commas separate several paths, unless there is a file or a directory of the name with the comma.
    """
    keys = {word.partition("=")[0] for word in words}
    expanded = ["model=path"] if "model.path" in keys and not keys & {"model", "experiment"} else []
    for word in words:
        key, _, value = word.partition("=")
        written = not value or value[0] in "\"'[{" or "${" in value or value.startswith(("choice(", "glob("))
        plain = PLAIN.fullmatch(value.replace(",", "")) and not ("," in value and Path(value).expanduser().exists())
        own = Path(value).is_dir() and not (CONF / "model" / f"{value}.yaml").is_file()
        if key == "model" and ("/" in value or own):
            if not written:
                _check_models(value)
            expanded += ["model=path", f"model.path={value if written else _quoted(value)}"]
        elif key.startswith("samples.") or (key == "samples" and value.startswith("{")):
            expanded.append(f"keep_{word}")
        elif key == "reward" and ".py:" in value and not written:
            names = [value] if Path(value.rpartition(":")[0]).expanduser().is_file() else value.split(",")
            given = (name if PLAIN.fullmatch(name.replace(":", "")) else hydra_quoted(name) for name in names)
            expanded.append("reward.functions=" + ",".join(f"[{name}]" for name in given))
        elif PATHS.fullmatch(key) and not written and not plain:
            expanded.append(f"{key}={_quoted(value)}")
        elif key in DIRECTORIES and not written and not PLAIN.fullmatch(value):
            expanded.append(f"{key}={hydra_quoted(value)}")
        else:
            expanded.append(word)
    return expanded


def _paths(value: str) -> list[str]:
    """The paths that commas separate: the fewest that exist."""
    parts, paths = value.split(","), []
    while parts:
        counts = range(len(parts), 1, -1)
        count = next((n for n in counts if Path(",".join(parts[:n])).expanduser().exists()), 1)
        paths.append(",".join(parts[:count]))
        parts = parts[count:]
    return paths


def _quoted(value: str) -> str:
    return ",".join(map(hydra_quoted, _paths(value)))


def _check_models(value: str) -> None:
    """Raises ConfigError for a name of conf/model/ among paths."""
    if unknown := [path for path in _paths(value) if "/" not in path and not Path(path).exists()]:
        raise ConfigError(
            f"model={value}: {unknown[0]!r} is neither a directory nor a hub name (organisation/name)",
            "give paths and hub names together, and names such as tiny in a command of their own",
        )


def check_names(words: list[str]) -> None:
    """Raises ConfigError for several names of runs in one directory: the second would be taken for the first."""
    names = [word for word in words if word.startswith("name=") and "," in word]
    places = [word for word in words if word.startswith("hydra.sweep.dir=") and "${name}" not in word]
    if names and places:
        raise ConfigError(
            f"{names[0]} with {places[0]}: runs that differ in their name alone would share a directory",
            "write hydra.sweep.dir='DIRECTORY/${name}'",
        )


def _completion(arguments: list[str]) -> list[str]:
    """The arguments with which a command completes what is typed.

    The shell calls `carerft -sc query=bash` with the typed line in COMP_LINE. Hydra doesn't know the command's name
    in that line: it is removed, and put before the arguments.
    """
    typed = os.environ.get("COMP_LINE")
    if typed is None or arguments[0] in COMMANDS:
        return arguments
    command = next((word for word in typed.split()[1:2] if word in COMMANDS), None)
    if command is None:
        print("\n".join(COMMANDS))
        sys.exit(0)
    shortened = re.sub(rf"^(\s*\S+)\s+{command}\b", r"\1", typed)
    os.environ["COMP_LINE"] = shortened
    os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", len(typed))) - (len(typed) - len(shortened)))
    return [command, *arguments]


def _fail(what: str, remedy: str) -> int:
    bold, end = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{bold}error:{end} {what}" + (f"\n  {remedy}" if remedy else ""), file=sys.stderr)
    return 2
