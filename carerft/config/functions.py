"""Functions of a user's own, named by a file and a name in it: `mine.py:score`."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import walk_tb
from typing import Any

from carerft.errors import ConfigError, reason

Function = Callable[..., Any]


def is_reference(text: str) -> bool:
    """Whether a setting's value names a function of a file, rather than one of this package."""
    return ".py:" in text


def path(reference: str) -> Path:
    """The file that a reference names."""
    return Path(reference.rpartition(":")[0]).expanduser().resolve()


def load_function(reference: str, key: str) -> Function:
    """The function that `FILE.py:NAME` names. key: of the setting, for errors.

    The file is run once in a process, as Python imports a module; modules beside it can be imported by it. Raises
    ConfigError: no such file or function, or the file cannot be run (its line is named).
    """
    file, name = path(reference), reference.rpartition(":")[2]
    if not file.is_file():
        raise ConfigError(f"{key}={reference}: there is no file {file}", "write FILE.py:FUNCTION")
    module_name = f"carerft_user_{file.stem}_{abs(hash(str(file))):x}"
    module = sys.modules.get(module_name) or _run(file, module_name, f"{key}={reference}")
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module_name]
        names = f"it has {', '.join(own)}" if own else "it has none"
        raise ConfigError(f"{key}={reference}: {file} has no function {name!r}; {names}", "write FILE.py:FUNCTION")
    return function


def _run(file: Path, name: str, setting: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # the user's code can raise anything
        sys.modules.pop(name)
        remedy = "correct the file"
        if "relative import" in str(error):
            remedy = "import a file beside it by its name alone: `import other`, `from other import name`"
        raise ConfigError(f"{setting}: {where(error, file)}", remedy) from error
    return module


def where(error: BaseException, file: Path | None = None) -> str:
    """An exception of the user's code in one line, with the innermost line of their file: `mine.py:3: KeyError: a`."""
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{Path(error.filename).name}:{error.lineno}: "
    frames = ((frame.f_code.co_filename, number) for frame, number in walk_tb(error.__traceback__))
    own = [(name, number) for name, number in frames if file is None or name == str(file)]
    if not place and own:
        place = f"{Path(own[-1][0]).name}:{own[-1][1]}: "
    return f"{place}{type(error).__name__}: {reason(error)}"


def accepted(function: Function, given: dict[str, Any], name: str) -> dict[str, Any]:
    """Those arguments that the function has a parameter for; all, if it takes `**anything`. name: of the function.

    Raises ConfigError if it has a parameter, without a default, of another name.
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if unknown := [p.name for p in named if p.default is p.empty and p.name not in given]:
        raise ConfigError(
            f"{name} has a parameter {unknown[0]!r}; it can be given {', '.join(given)}",
            "name it as one of these, or leave it out",
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return given
    return {p.name: given[p.name] for p in named if p.name in given}
