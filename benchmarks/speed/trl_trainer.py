"""What both of TRL's scripts share: GRPOTrainer's configuration, and the clock that times its steps from outside."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from transformers import TrainerCallback


def grpo_config(directory: str, work: dict, beta: float, learning_rate: float, **settings: Any) -> Any:
    """A GRPOConfig without logging, saving or evaluation. work: its number of steps, and of warm-up steps."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=directory,
        max_steps=work["warmup"] + work["steps"],
        loss_type="grpo",
        beta=beta,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )


class Clock(TrainerCallback):
    """Reads the wall and the CPU clock after every step; a step lasts from one reading to the next.

    after_warmup: called once, before the first measured step.
    """

    def __init__(self, warmup: int, device: str = "cpu", after_warmup: Callable[[], object] = lambda: None):
        self.warmup, self.device, self.after_warmup = warmup, device, after_warmup
        self.readings: list[tuple[float, float]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if len(self.readings) == self.warmup:
            self.after_warmup()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.readings.append((time.perf_counter(), time.process_time()))

    on_step_end = on_train_begin

    def measured(self) -> tuple[list[float], list[float]]:
        """Wall seconds and CPU seconds of each step after the warm-up."""
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self.readings)][self.warmup :]
        return [wall for wall, _ in steps], [cpu for _, cpu in steps]
