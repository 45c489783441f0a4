"""`carerft VERB ...`: finds the verb's Hydra application, allows a few shorthands, and prints errors as help.

Left out: what the verbs do. Each is a module of its own that also runs as `python -m carerft.commands.VERB`.
"""

import difflib
import importlib
import os
import re
import sys

from carerft import __version__
from carerft.errors import CareError, ConfigError
from carerft.training.launch import quiet

VERBS = {
    "train": "finetune a model with reinforcement learning, then evaluate it",
    "evaluate": "measure accuracy, honesty and calibration of a model",
    "sweep": "run an experiment: a table, a figure or an ablation",
    "plan": "memory, hours and cost of an experiment, before it is run",
    "report": "tables, figures and one HTML page from run directories",
    "grade": "grade mathematical answers from any source",
    "base": "build a base model of the built-in world",
    "dashboard": "save the layout of a W&B workspace to a project",
}
USAGE = f"""carerft {__version__}: confidence-anchored reinforcement finetuning (arXiv 2602.00085)

usage: carerft VERB [key=value ...] [--help]

{chr(10).join(f"  {verb:<10}{text}" for verb, text in VERBS.items())}

examples:
  carerft train model=tiny algorithm=grpo regularizer=srkl regularizer.alpha=0.8 regularizer.beta=0.04 task=world
  carerft train -m regularizer=none,rkl,srkl seed=0,1,2        every combination
  carerft train model=/path/to/a/model task=gsm8k --cfg job    show the composed configuration and stop
  carerft evaluate model=tiny benchmark=world samples=16
  carerft sweep table1 model=tiny                              table 1 of the paper, in miniature
  carerft plan table1 model=qwen2.5-7b hardware=8xh100         memory, hours and cost, before anyone pays
  carerft report outputs/demo
  eval "$(carerft train -sc install=bash)"                     tab completion (bash; also zsh, fish)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0, 1 (the run failed), 2 (the request was wrong), 130 (Ctrl-C)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "-sc" in arguments:
        arguments = _completion(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(VERBS)}"
        return _fail(f"there is no verb {verb!r}", hint)
    return run(verb, rest)


def run(verb: str, arguments: list[str]) -> int:
    """Run a verb's Hydra application on these arguments, printing what a user can mend without a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises, and we print
    module = importlib.import_module(f"carerft.commands.{verb}")
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        if {"-m", "--multirun"} & set(arguments) and {"-c", "--cfg"} & set(arguments):
            raise ConfigError("-m and --cfg together", "a multirun is many configurations: write --cfg without -m")
        overrides = [*shorthands(verb, arguments), *(quiet() if verb == "train" else [])]
        # Completion is installed for the command, everything else is said of the verb.
        sys.argv = ["carerft" if "-sc" in arguments else f"carerft {verb}", *overrides]
        return module.main() or 0
    except CareError as error:
        return _fail(error.what, error.remedy)
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(*explain(verb, arguments, error))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        return _fail(f"{error.filename}: {error.strerror}", "choose another place to write, with hydra.run.dir=...")
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        return 130


def shorthands(verb: str, arguments: list[str]) -> list[str]:
    """Plain directories and `model=PATH` in Hydra's grammar.

    Of a report, `a b` becomes `runs=["a","b"]`, `columns.gsm8k=[..]` `++columns.gsm8k=[..]`, `model=` `of_model=`;
    `model=/a/dir` or `model=org/name` becomes `model=path model.path="..."`.
    """
    from carerft.config.composition import config_directory

    if verb == "report":
        options = [
            a
            for a in arguments
            if a.startswith("-") or re.match(r"(\+|~)*(runs|output|page|columns|model|tracker|hydra)[\w.]*=", a)
        ]
        places = [a for a in arguments if a not in options]
        options = [f"++{a}" if a.startswith("columns.") else a for a in options]  # of any benchmark, listed or not
        options = [f"of_{a}" if a.startswith("model=") else a for a in options]  # `model` itself is a group of Hydra's
        return options + ([f"runs=[{','.join(map(_quote, places))}]"] if places else [])
    models = {file.stem for file in (config_directory() / "model").glob("*.yaml")}
    rewritten: list[str] = []
    for argument in arguments:
        name = argument.removeprefix("model=")
        if name != argument and "/" in name and name not in models and "," not in name:
            rewritten += ["model=path", f"model.path={_quote(name)}"]
        else:
            rewritten.append(argument)
    return rewritten


def _quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def explain(verb: str, arguments: list[str], error: Exception) -> tuple[str, str]:
    """What was wrong with a configuration, and what to write instead: Hydra's message, and the nearest real key."""
    if verb in ("sweep", "plan"):
        verb, arguments = "train", [a for a in arguments if "=" in a]
    messages = [str(e).strip() for e in (error, error.__cause__) if e is not None and str(e).strip()]
    text = "\n  ".join(
        dict.fromkeys(line.strip() for message in messages for line in message.splitlines() if line.strip())
    )
    text = re.sub(r"\n\s*(object_type=\S+|full_key: \S+|To append to your config use \S+)", "", text)
    wrong = re.search(r"Could not override '([^']+)'", text)
    if not wrong:
        group = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
        if not group:
            return text, f"`carerft {verb} --help` lists the groups, `carerft {verb} --cfg job` every key"
        if group[1] == "hydra":
            plugin = "hydra-" + group[2].split("/")[-1].partition("_")[0] + "-launcher"
            hint = f"a launcher of Hydra's may need its plugin: pip install {plugin}"
            return f"hydra/{group[2].replace('/', '=')}: Hydra knows no such choice here", hint
        options = _choices(group[1])
        close = difflib.get_close_matches(group[2], options, n=1)
        return (
            f"{group[1]}={group[2]}: there is no such {group[1]}",
            (f"did you mean {group[1]}={close[0]}? " if close else "") + f"choices: {', '.join(options)}",
        )
    keys = _keys(verb, [a for a in arguments if re.fullmatch(r"\w+=[\w.-]+", a)])
    close = difflib.get_close_matches(wrong[1], keys, n=1, cutoff=0.5) or [
        key for key in keys if key.split(".")[-1] == wrong[1].split(".")[-1]
    ]
    hint = f"did you mean {close[0]}?" if close else f"`carerft {verb} --cfg job` lists every key"
    return text if "could not be converted" in text else f"there is no key {wrong[1]!r}", hint


def _choices(group: str) -> list[str]:
    from carerft.config.composition import config_directory
    from carerft.sweeps.folders import experiments

    sweeps = [name for found in experiments().values() for name in found.sweeps] if group == "experiment" else []
    return sorted([*(file.stem for file in (config_directory() / group).glob("*.yaml")), *sweeps])


def _keys(verb: str, choices: list[str]) -> list[str]:
    """Every dotted key of the verb's configuration with these group choices."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from carerft.config.identity import flatten
    from carerft.sweeps.composition import composing

    with composing():
        try:
            composed = compose(verb, choices)
        except HydraException:
            composed = compose(verb)
        config = OmegaConf.to_container(composed, resolve=False)
    return list(flatten(config)) + list(config)  # type: ignore[arg-type]


def _completion(arguments: list[str]) -> list[str]:
    """Arguments for Hydra's completion of `carerft VERB ...`.

    Hydra asks `carerft -sc query=bash` with the typed line in COMP_LINE; the verb in it belongs to us, not to Hydra.
    """
    line = os.environ.get("COMP_LINE", "")
    verb = next((word for word in line.split()[1:2] if word in VERBS), None)
    if "COMP_LINE" not in os.environ or arguments[0] in VERBS:
        return arguments
    if verb is None:
        print("\n".join(VERBS))
        sys.exit(0)
    shortened = re.sub(rf"^(\s*\S+)\s+{verb}\b", r"\1", line)
    os.environ["COMP_LINE"] = shortened
    os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", len(line))) - (len(line) - len(shortened)))
    return [verb, *arguments]


def _fail(what: str, remedy: str) -> int:
    bold, end = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{bold}error:{end} {what}" + (f"\n  {remedy}" if remedy else ""), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
