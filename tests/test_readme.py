"""What the README and docs/method.md say can be done, done as it is printed there."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/method.md")}


def block(page: str, language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def run_example(page: str, group: str, name: str, tmp_path: Path) -> list[dict[str, float]]:
    """Write down the example's module and YAML file, run the command that is said of it, and return the metrics."""
    (tmp_path / "mine.py").write_text(block(page, "python", "@dataclass"))
    (tmp_path / "my_conf" / group).mkdir(parents=True)
    (tmp_path / "my_conf" / group / f"{name}.yaml").write_text(block(page, "yaml", f"name: {name}"))
    said = re.search(rf"`PYTHONPATH=\. carerft (train --config-dir my_conf {group}={name})`", PAGES[page])
    assert said
    small = ["steps=3", "rollout.prompts_per_batch=4", "learner.updates_per_batch=2", "benchmark=none", "tracker=none"]
    command = [sys.executable, "-m", "carerft", *said[1].split(), *small, "hydra.run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def test_the_example_regularizer_trains(tmp_path: Path):
    metrics = run_example("README.md", "regularizer", "hellinger", tmp_path)
    assert metrics[0]["regularizer/value"] < 1e-6 < metrics[1]["regularizer/value"]  # 0 at the base, then above


def test_the_example_algorithm_trains(tmp_path: Path):
    metrics = run_example("docs/method.md", "algorithm", "cispo", tmp_path)
    assert len(metrics) == 3 and metrics[0]["policy/clip_fraction"] == 0.0
    assert all(line["learner/grad_norm"] > 0 for line in metrics)


def test_the_table_of_estimators_is_what_its_command_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["estimators.py", "--markdown"])
    runpy.run_path(str(ROOT / "benchmarks/method/estimators.py"), run_name="__main__")
    table = capsys.readouterr().out.split("On-policy:\n\n")[1].split("\n\n")[0]
    assert table in PAGES["docs/method.md"]


def test_every_file_that_the_pages_point_to_is_there():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert ((ROOT / page).parent / target).exists(), target
