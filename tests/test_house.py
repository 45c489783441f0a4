"""The rooms of carerft and what each may import: docs/architecture.md shows the same as a picture.

Every import counts, those inside functions and those for type checkers as well.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "text", "terminal"},
    {"objective", "metrics"},
    {"config"},
    {"processes"},
    {"world", "grading", "runs"},
    {"tasks"},
    {"model"},
    {"rollout"},
    {"training"},
    {"evaluation"},
    {"sweeps"},
    {"planning"},
    {"report"},
    {"trackers"},
    {"assembly"},
    {"integrations"},  # imported by trainers of others
    {"commands", "cli"},  # cli imports a command by its name; torchrun starts `train` as a module of its own
    {"__main__"},
]
"""From the bottom: a room imports from its own floor and from those below it."""


def imported(file: Path, package: str) -> set[str]:
    """The modules of `package` that a file imports, by their full names: `from carerft.model import lora` is both
    carerft.model and carerft.model.lora."""
    return {name for name in imports(ast.parse(file.read_text())) if name.split(".")[0] == package}


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def rooms_of(names: set[str]) -> set[str]:
    """The rooms that modules of carerft are in. The package itself, which holds the version, is none."""
    return {name.split(".")[1] for name in names if "." in name} & set().union(*FLOORS)


def room(file: Path) -> str:
    """The room that a file of carerft is in: a package, or a module at the top."""
    return file.relative_to(ROOT / "carerft").parts[0].removesuffix(".py")


FILES = sorted((ROOT / "carerft").rglob("*.py"))
IMPORTS: dict[str, set[str]] = {name: set() for floor in FLOORS for name in floor}
"""The other rooms that each room imports."""
for path in FILES:
    if room(path) != "__init__":
        IMPORTS[room(path)] |= rooms_of(imported(path, "carerft")) - {room(path)}


def test_every_room_has_a_floor_and_there_are_few():
    entries = {path.stem for path in (ROOT / "carerft").iterdir() if path.name != "__pycache__"}
    assert entries == {"__init__", *set().union(*FLOORS)} and len(entries) <= 25


def test_no_import_runs_back_up():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    upwards = [(a, b) for a, others in IMPORTS.items() for b in others if floor[b] > floor[a]]
    assert upwards == []


def test_no_rooms_import_each_other_in_a_circle():
    def reached(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        for other in IMPORTS[name]:
            reached(other, (*path, name))

    for name in IMPORTS:
        reached(name, ())


@pytest.mark.parametrize("pure", ["objective", "metrics"])
def test_what_is_minimised_and_what_is_measured_is_pure(pure: str):
    assert IMPORTS[pure] <= {"errors"}


def test_the_configuration_knows_nobody_above_it():
    assert IMPORTS["config"] <= {"errors", "text", "terminal", "objective", "metrics"}


def test_a_machine_that_only_learns_needs_no_hydra():
    """benchmarks/speed/learner.py and gpu.sh are for machines that have torch and transformers, and little else."""
    ours = ("speed/learner_ours.py", "speed/learner_work.py", "gpu/figures.py", "gpu/right.py")
    waiting, seen = [ROOT / "benchmarks" / name for name in ours], set()
    while waiting:
        tree = ast.parse(waiting.pop().read_text())
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]  # as it is imported
        for name in imports(tree) - seen:
            seen.add(name)
            path = ROOT / name.replace(".", "/")
            waiting += [found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()]
    assert "carerft.training.learner" in seen and not {"hydra", "omegaconf"} & {name.split(".")[0] for name in seen}


def test_sampling_does_not_know_training():
    assert "training" not in IMPORTS["rollout"]


def test_a_report_and_a_tracker_do_not_know_each_other():
    assert "trackers" not in IMPORTS["report"] and "report" not in IMPORTS["trackers"]


def test_only_the_command_line_imports_commands():
    assert {name for name, others in IMPORTS.items() if "commands" in others} <= {"cli"}
    assert {name for name, others in IMPORTS.items() if "cli" in others} <= {"__main__", "commands"}
    by_name = [path for path in FILES if "import_module" in path.read_text()]
    assert by_name == [ROOT / "carerft" / "cli.py"]


@pytest.mark.parametrize(("folder", "other"), [("benchmarks", "experiments"), ("experiments", "benchmarks")])
def test_benchmarks_and_experiments_do_not_import_each_other(folder: str, other: str):
    assert not any(imported(file, other) for file in (ROOT / folder).rglob("*.py"))
    assert not any(imported(file, folder) for file in FILES)


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "README.md", "docs/method.md"])
def test_the_files_that_a_page_names_are_there(page: str):
    named = re.findall(r"`((?:benchmarks|carerft|conf|docs|experiments|tests)/[\w./-]*)`", (ROOT / page).read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
