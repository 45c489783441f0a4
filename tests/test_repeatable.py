"""The same command gives the same run on the same machine, at several threads and beside other work too."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.models import random_rollouts, tiny_model
from helpers.runs import PLAN, lines, weights

from carerft.training.hidden_states import best_layout, completion_states


@pytest.fixture
def busy() -> Iterator[None]:
    """A process that keeps a processor busy, so that threads come to their work in another order each time."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield
        process.kill()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_gradient_of_states_that_completions_share_repeats(busy: None, two_threads: None):
    """The first token of each of 32 completions is predicted by the same state, so its gradient is a sum."""
    model = tiny_model()
    layout = best_layout(model, share_prompts=True)
    rollouts = random_rollouts(16, 32)
    index = torch.arange(16 * 32)
    direction = torch.randn(int(rollouts.lengths.sum()), 32, generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        model.zero_grad()
        completion_states(model, rollouts, index, layout).backward(direction)
        return model.get_input_embeddings().weight.grad.clone()

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(60))


def test_two_steps_repeat(tmp_path: Path):
    """Of two runs at the same time, of which each disturbs the other."""
    started = []
    for seed, name in enumerate(("one", "other")):
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": str(seed)}  # for the order of sets
        command = [sys.executable, "-m", "carerft", "train", *PLAN, "steps=2", f'hydra.run.dir="{tmp_path / name}"']
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment))
    try:
        assert [process.wait(300) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()  # which does nothing to one that has ended
    assert weights(tmp_path / "one") == weights(tmp_path / "other")
    assert lines(tmp_path / "one") == lines(tmp_path / "other")
