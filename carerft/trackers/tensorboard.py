"""TensorBoard: event files in the run directory, for `tensorboard --logdir outputs`."""

import io
import json
from pathlib import Path

import numpy as np

from carerft.trackers.tracker import Outcome, Tracker


class TensorboardTracker(Tracker):
    """`tensorboard/` of a run directory. When a run is continued, TensorBoard drops the steps after `step`."""

    def __init__(self, directory: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._step = step
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, metrics: dict[str, float]) -> None:
        self._step = int(metrics["step"])
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, self._step)

    def show(self, outcome: Outcome) -> None:
        from PIL import Image

        for name, value in outcome.numbers().items():
            self._writer.add_scalar(name, value, self._step)
        for name, data in outcome.figures().items():
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            self._writer.add_image(name, pixels, self._step, dataformats="HWC")
        for name, (columns, rows) in outcome.tables().items():
            self.table(name, self._step, columns, rows)

    def table(self, name: str, step: int, columns: list[str], rows: list[list[str | float | bool | None]]) -> None:
        # TensorBoard renders Markdown; four spaces before each line make a code block.
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
        self._writer.add_text(name, "\n".join(f"    {line}" for line in lines), step)

    def finish(self, failed: bool) -> None:
        self._writer.close()
