"""The first lines of a run: what was chosen, and why."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from carerft.assembly import Subject
from carerft.config import choices
from carerft.config.settings import TrainSettings, VllmSettings
from carerft.rollout import RolloutWorker
from carerft.text import line

WRITTEN, ELSEWHERE = "as written", "by the experiment, the scale or the model's file"


def chosen(
    subject: Subject,
    worker: RolloutWorker,
    device: torch.device,
    words: Sequence[str],
    microbatch: int | None = None,
    problems: int | None = None,
) -> Table:
    """A row for each choice. device: of the policy. words: of the command line. microbatch, problems: of a training."""
    settings, model = subject.settings, subject.settings.model
    group = settings.learner if isinstance(settings, TrainSettings) else settings
    prefix = "learner." if isinstance(settings, TrainSettings) else ""
    named = {word.partition("=")[0].lstrip("+~").partition("@")[0] for word in words}
    machine, world = choices.machine(), choices.knows_world(model.path)
    small = "the built-in model is small" if world else "no GPU" if device.type == "cpu" else "the default"
    table = Table("", "chosen", "why", title=Text(line(model.name)), title_style="bold", title_justify="left")

    def row(name: str, value: Any, key: str, why: str) -> None:
        table.add_row(name, Text(line(value)), Text(WRITTEN if key in named else why))

    def followed(name: str, value: Any, key: str, usual: Any, why: str) -> None:
        """A setting that follows model and machine: carerft.config.choices."""
        row(name, value, key, why if value == usual else ELSEWHERE)

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    row("device", f"{device.type}: {gpu}", f"{prefix}device", "a GPU" if device.type != "cpu" else "no GPU")
    large = choices.large(model.path, group.device)
    why = "a GPU, and a model that is not tiny" if large else small
    usual = choices.precision(model.path, group.device)
    none = f"no bfloat16 before compute capability 8.0: {machine.older}" if large and machine.older else why
    followed("precision", settings.precision, f"{prefix}precision", usual, none)
    if isinstance(settings, TrainSettings):
        checkpointing = settings.learner.gradient_checkpointing
        followed("gradient checkpointing", checkpointing, "learner.gradient_checkpointing", large, why)
    name = "tiny" if model.path == "world" else ""
    why = "vLLM is installed, and there is a GPU" if machine.vllm else small
    if name != "tiny" and machine.gpu and not machine.vllm:
        why = 'no vLLM for GPUs with the first one free: pip install "carerft[vllm]"'
    followed("rollout", settings.rollout.name, "rollout", choices.rollout(name), why)
    if isinstance(settings, TrainSettings):
        count = f", {problems:,} problems" if problems else ""
        row("task", f"{settings.task.name}{count}", "task", "the default" if world else ELSEWHERE)
    benchmarks = ", ".join(settings.benchmark) or "none"
    row("benchmarks", benchmarks, "benchmark", "the task's" if "task" in named else "the default, or of the scale")
    if subject.chat:
        why = "the model ends what it writes as its template ends a turn"
    elif subject.tokenizer.chat_template:
        why = "a base model: it does not end what it writes as its template ends a turn"
    else:
        why = "the tokenizer has no chat template"
    why = why if model.chat is None else f"model.chat={str(model.chat).lower()}, in the model's file"
    row("prompts", "in the chat template" if subject.chat else "plain text", "model.chat", why)
    why = "the model's own"
    if isinstance(settings.rollout, VllmSettings) and not settings.rollout.max_model_len:
        why = "the longest prompt and completion"
    row("context", f"{min(subject.context, worker.context):,} tokens", "rollout.max_model_len", why)
    if microbatch:
        why = "the default" if device.type != "cpu" else "fits into half of the memory"
        row("microbatch", f"{microbatch:,} tokens", "learner.tokens_per_microbatch", why)
    return table
