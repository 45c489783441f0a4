"""What other packages say while they are imported is not for a user of this one."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "modules", ["carerft.assembly, carerft.rollout.vllm, carerft.report.build", "carerft.commands.plan"]
)
def test_an_import_prints_nothing(modules: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}"], capture_output=True, text=True, cwd=tmp_path, timeout=240
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_numa_message_alone_is_left_out(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    import os

    import torch

    from carerft.rollout.engine import _without_numa_message

    def says(*_: object) -> int:
        os.write(2, b"[W] Warning: NUMA binding: Using MEMBIND policy\nsomething else\n")
        return 7

    kernels = torch.ops._C
    monkeypatch.setattr(type(kernels), "__getattr__", lambda self, name: says, raising=False)
    with _without_numa_message():
        assert kernels.init_cpu_memory_env([0]) == 7
    assert capfd.readouterr().err == "something else\n"
    assert "init_cpu_memory_env" not in vars(kernels)
