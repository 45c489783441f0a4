"""What the README says can be done, done as it is printed there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def test_the_example_regularizer_trains(tmp_path: Path):
    (tmp_path / "mine.py").write_text(block("python", "class ForwardKL"))
    (tmp_path / "my_conf" / "regularizer").mkdir(parents=True)
    (tmp_path / "my_conf" / "regularizer" / "forward_kl.yaml").write_text(block("yaml", "forward_kl"))
    said = re.search(r"`PYTHONPATH=\. carerft (train --config-dir my_conf regularizer=forward_kl)`", README)
    assert said
    small = ["steps=3", "rollout.prompts_per_batch=4", "learner.updates_per_batch=2", "benchmark=none", "tracker=none"]
    command = [sys.executable, "-m", "carerft", *said[1].split(), *small, "hydra.run.dir=run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["regularizer/value"] < 1e-6 < metrics[1]["regularizer/value"]  # 0 at the base, then above


def test_every_file_that_the_readme_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
