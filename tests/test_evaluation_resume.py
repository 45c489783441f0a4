"""A real `carerft evaluate` that is killed while it samples goes on by the same command, and keeps what it has."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.engines import needs_vllm
from helpers.runs import ENVIRONMENT, read_lines

from carerft.evaluation import QUESTIONS_AT_ONCE

SAMPLES = 2
NAME = "world_transfer"


def start(directory: Path, backend: str, questions: int) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "carerft", "evaluate", "model=tiny", f"benchmark={NAME}",
        f"samples={SAMPLES}", f"benchmark.{NAME}.limit={questions}", "evaluation.bootstrap=20", f"rollout={backend}",
        f'hydra.run.dir="{directory}"',
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=ENVIRONMENT,  # from before W&B's service was started here, which would hold on to a killed process's run
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "questions"),
    [("transformers", 150), pytest.param("vllm", 1100, marks=[needs_vllm, pytest.mark.slow])],
)
def test_a_killed_evaluation_continues_and_samples_nothing_again(tmp_path, backend, questions):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    path = cut / "evaluation" / f"{NAME}.jsonl"
    process = start(cut, backend, questions)
    deadline = time.monotonic() + 240
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert json.loads((cut / "manifest.json").read_text())["status"] == "running"

    # Part of a question, as a kill in the middle of a write leaves it, and marks by which to know what is kept.
    found = path.read_text().splitlines()
    assert QUESTIONS_AT_ONCE[backend] * SAMPLES <= len(found) < questions * SAMPLES
    kept = [json.dumps({**json.loads(line), "text": f"kept {i}"}) for i, line in enumerate(found[: 50 * SAMPLES + 1])]
    path.write_text("\n".join([*kept, kept[-1][:40]]))
    for directory in (cut, whole):
        process = start(directory, backend, questions)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output

    one, other = (read_lines(directory / "evaluation" / path.name) for directory in (cut, whole))
    done = 50 * SAMPLES
    assert [record["text"] for record in one[:done]] == [f"kept {i}" for i in range(done)]
    keys = ("problem_id", "sample", "text", "correct", "tokens")
    again, uncut = ([tuple(record[key] for key in keys) for record in records] for records in (one, other))
    assert again[done:] == uncut[done:]
    assert [key[:2] for key in again] == [key[:2] for key in uncut] and len(uncut) == questions * SAMPLES
    assert json.loads((cut / "manifest.json").read_text())["status"] == "done"
