"""What the README and the pages of docs/ say can be done, done as it is printed there."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.configurations import settings

from carerft.cli import COMMANDS, expand_model

ROOT = Path(__file__).parent.parent
FILES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("experiments/**/*.md"),
    ROOT / "carerft/world/README.md",
]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
README = PAGES["README.md"]


def command(words: list[str], directory: Path) -> str:
    """What `carerft WORDS` prints in this directory."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *filter(None, [os.environ.get("PYTHONPATH")])])}
    given = [sys.executable, "-m", "carerft", *words]
    done = subprocess.run(given, capture_output=True, text=True, cwd=directory, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def block(page: str, language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def run_example(page: str, group: str, name: str, python: str, directory: Path) -> list[dict[str, float]]:
    """Write down the example's module and YAML file, run the command that is said of it, and return the metrics."""
    (directory / "mine.py").write_text(block(page, "python", python))
    (directory / "my_conf" / group).mkdir(parents=True)
    (directory / "my_conf" / group / f"{name}.yaml").write_text(block(page, "yaml", f"name: {name}"))
    said = re.search(rf"`PYTHONPATH=\. carerft (train --config-dir my_conf {group}={name})`", PAGES[page])
    assert said
    small = ["steps=3", "rollout.prompts_per_batch=4", "learner.updates_per_batch=2", "benchmark=none", "tracker=none"]
    command([*said[1].split(), *small, "hydra.run.dir=run"], directory)
    return [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]


def test_the_example_regularizer_trains(tmp_path: Path):
    metrics = run_example("docs/method.md", "regularizer", "hellinger", "Hellinger", tmp_path)
    assert metrics[0]["regularizer/value"] < 1e-6 < metrics[1]["regularizer/value"]  # 0 at the base, then above


def test_the_example_algorithm_trains(tmp_path: Path):
    metrics = run_example("docs/method.md", "algorithm", "cispo", "CISPO", tmp_path)
    assert len(metrics) == 3 and metrics[0]["policy/clip_fraction"] == 0.0
    assert all(line["learner/grad_norm"] > 0 for line in metrics)


def test_an_algorithm_with_a_parameter_of_its_own_trains(tmp_path: Path):
    """At a run's first step the ratio is 1 and the penalty 0: the gradient is GRPO's times the gain, which is 2."""
    ours = run_example("docs/faq.md", "algorithm", "bold", "Bold", tmp_path)
    small = ["steps=1", "rollout.prompts_per_batch=4", "learner.updates_per_batch=2", "benchmark=none", "tracker=none"]
    command(["train", *small, "hydra.run.dir=grpo"], tmp_path)
    grpo = json.loads((tmp_path / "grpo" / "metrics.jsonl").read_text())
    assert ours[0]["learner/grad_norm"] == pytest.approx(2 * grpo["learner/grad_norm"], rel=1e-4)


def test_the_table_of_estimators_is_what_its_command_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["estimators.py", "--markdown"])
    runpy.run_path(str(ROOT / "benchmarks/method/estimators.py"), run_name="__main__")
    table = capsys.readouterr().out.split("On-policy:\n\n")[1].split("\n\n")[0]
    assert table in PAGES["docs/method.md"]


def test_the_tutorial_is_one_session(tmp_path: Path):
    """Its files are written and its commands run in their order, and each leaves what the page says of it."""
    printed: dict[str, str] = {}
    for language, title, text in re.findall(
        r'```(\w+)(?: title="([^"]+)")?\n(.*?)```', PAGES["docs/tutorial.md"], re.S
    ):
        if title:
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(text)
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                carerft, *words = shlex.split(line, comments=True)
                assert carerft == "carerft"
                printed[line] = command(words, tmp_path)
    runs = tmp_path / "runs"
    assert [len((runs / name / "metrics.jsonl").read_text().splitlines()) for name in ("first",)] == [8]
    assert sorted(path.name for path in (runs / "first/evaluation").glob("step_*")) == [
        f"step_{n}" for n in (0, 2, 4, 6, 8)
    ]
    last = json.loads((runs / "first/metrics.jsonl").read_text().splitlines()[-1])
    # The reward is correctness + 0.2 brevity.
    assert last["reward/mean"] == pytest.approx(last["reward/correctness/mean"] + 0.2 * last["reward/brevity/mean"])
    assert (runs / "first/model_best/model.safetensors").is_file()
    assert len(list((runs / "sweep").rglob("evaluation.json"))) == 2
    assert (runs / "report/index.html").is_file()
    assert [sum("completions" in text for line, text in printed.items() if "carerft show" in line)] == [2]
    assert any("vllm serve sums-model" in text for text in printed.values())
    after = next(text for line, text in printed.items() if "steps=8" in line)  # its own questions, not another's
    assert re.search(r"  carerft evaluate --config-dir=\S+conf model=\S+first/model benchmark=exam samples=16\n", after)
    values = [
        json.loads((runs / name / "evaluation.json").read_text())["benchmarks"]["exam"]["metrics"]["accuracy"]["value"]
        for name in ("exported", "base")
    ]
    assert values[0] != values[1]  # what is handed on is the finetuned model


@pytest.mark.parametrize("page", ["README.md", "docs/runs.md", "docs/measuring.md", "docs/paper.md"])
def test_every_command_of_a_page_composes(page: str):
    lines = "".join(re.findall(r"```bash\n(.*?)```", PAGES[page], re.DOTALL)).replace("\\\n", " ").splitlines()
    ours = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("carerft ")]
    assert ours
    for verb, *words in ours:
        assert verb in COMMANDS
        if verb in ("train", "evaluate"):
            many = "-m" in words
            first = [word.partition(",")[0] if many else word for word in words if word != "-m"]
            assert settings(*expand_model(first), verb=verb), words


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 100 and len(README.split()) <= 1000


def headings(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str):
    """As the files stand on GitHub. `make docs` checks the same of the site."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", PAGES[page]):
        if not target.startswith("http"):
            path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
            assert path.is_file(), target
            assert not anchor or anchor in headings(path.read_text()), f"{target}#{anchor}"


def test_the_site_has_every_page():
    nav = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in PAGES if page not in nav and "miniature" not in page] == []


def test_figures_in_the_repository_are_small():
    figures = [path for folder in ("docs", "experiments") for path in (ROOT / folder).rglob("*.[ps][nv]g")]
    assert figures and sum(path.stat().st_size for path in figures) < 1e6
