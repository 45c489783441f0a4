"""What the terminal shows of long work, and what a file gets instead."""

import io
import logging
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.configurations import settings
from rich.console import Console

from carerft import terminal
from carerft.assembly import Subject
from carerft.commands.application import show_next
from carerft.commands.chosen import chosen
from carerft.config.choices import Machine, assuming
from carerft.config.settings import ModelSettings
from carerft.model.loading import load_model
from carerft.rollout.transformers import TransformersWorker
from carerft.terminal import Bar, LogHandler, open_console, sampling_bar
from carerft.training.interruption import interruption

LONG = "/a/directory/" + "x" * 300


def test_off_a_terminal_a_line_is_a_line(capsys: pytest.CaptureFixture[str]):
    open_console().print(f"written: {LONG}")
    show_next({"measure it": ["carerft", "evaluate", f"model={LONG}", "benchmark=[math500,gsm8k]"]})
    assert capsys.readouterr().out.splitlines() == [
        f"written: {LONG}", "measure it:", f"  carerft evaluate model={LONG} 'benchmark=[math500,gsm8k]'",
    ]  # fmt: skip


def test_a_log_line_keeps_its_length(capsys: pytest.CaptureFixture[str]):
    handler = LogHandler(console=open_console())
    handler.emit(logging.LogRecord("x", logging.WARNING, "", 1, "first %s\nsecond", (LONG,), None))
    first, second = capsys.readouterr().out.splitlines()
    assert first.split(" ", 1)[1] == f"WARNING  first {LONG}" and second == "second"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal of 120 columns, on which batches are slow."""
    made = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(terminal, "open_console", lambda stderr=False: made)
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.0)
    return made


def test_a_slow_batch_has_a_bar_of_its_own_or_a_row_of_the_one_that_is_there(screen: Console):
    with sampling_bar(4) as advance:
        advance(1, 10)
        (bar,) = Bar.on_screen
        (task,) = bar.tasks
        assert (task.completed, task.total, task.fields["unit"]) == (1, 4, "sequences")
        assert task.fields["shown"].endswith("tokens/s")
    assert Bar.on_screen == []
    with Bar(screen, "steps") as training:
        training.add_task("srkl", total=2)
        with sampling_bar(4) as advance:
            advance(3, 10)
            assert Bar.on_screen == [training] and [task.completed for task in training.tasks] == [0, 3]
        assert [task.description for task in training.tasks] == ["srkl"]
    assert isinstance(screen.file, io.StringIO)
    assert "sequences" in screen.file.getvalue() and "steps" in screen.file.getvalue()


def test_off_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.0)
    with Bar(open_console(), "steps") as bar, sampling_bar(4) as advance:
        bar.advance(bar.add_task("srkl", total=2))
        advance(4, 10)
    assert capsys.readouterr() == ("", "")


def test_a_signal_before_the_first_step_stops_at_once():
    steps = 0
    with pytest.raises(KeyboardInterrupt), interruption(lambda: steps > 0):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it waits for a step")
    with interruption(lambda: steps > 0) as stop_requested:
        steps = 1
        signal.raise_signal(signal.SIGINT)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_while_modules_are_imported_is_one_line():
    code = (
        "import sys\nclass Interrupted:\n    def find_spec(self, name, *_):\n        if name == 'hydra':\n"
        "            raise KeyboardInterrupt\nsys.meta_path.insert(0, Interrupted())\n"
        "from carerft.__main__ import main\nsys.argv = ['carerft', 'train']\nsys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nstopped\n")


def test_the_first_lines_say_what_was_chosen_and_why(capsys: pytest.CaptureFixture[str]):
    words = ["learner.precision=bfloat16", "steps=3"]
    subject = Subject(settings(*words), *load_model(ModelSettings(path="world"), torch.device("meta")))
    worker = TransformersWorker(subject.policy, [0], 0)
    open_console().print(chosen(subject, worker, torch.device("cpu"), words, 512, 7))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    said = {row[0]: row[1:] for row in rows if len(row) == 3}
    assert said["precision"] == ["bfloat16", "as written"]
    assert said["gradient checkpointing"] == ["False", "the built-in model is small"]
    assert said["rollout"] == ["transformers", "the built-in model is small"]
    assert said["task"] == ["world, 7 problems", "the default"] and said["microbatch"][0] == "512 tokens"
    with assuming(Machine(gpu=True, vllm=False, older="Tesla T4, compute capability 7.5")):
        subject = replace(subject, settings=settings("model=qwen2.5-3b", "task=math"))
        open_console().print(chosen(subject, worker, torch.device("cpu"), [], 512, 7))
    assert "│ no bfloat16 before compute capability 8.0: Tesla T4, compute capability 7.5 " in capsys.readouterr().out
    assert said["prompts"][0] == "plain text" and said["context"][0] == "8,192 tokens"
