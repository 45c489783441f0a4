"""What the terminal shows: its consoles, the log, and the bars of long work.

Off a terminal (a file, a pipe, a cluster's log) no line is wrapped, and there are no bars.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from logging import LogRecord
from typing import Any, ClassVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

WIDE = 10_000  # columns off a terminal
PATIENCE_S = 2.0  # that a batch may take before a bar shows it


def open_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Standard output, or standard error."""
    made = Console(stderr=stderr, quiet=quiet)
    return made if made.is_terminal else Console(stderr=stderr, quiet=quiet, width=WIDE)


class LogHandler(RichHandler):
    """rich's on a terminal; elsewhere a line for each line of a message."""

    def emit(self, record: LogRecord) -> None:
        if self.console.is_terminal:
            return super().emit(record)
        try:
            when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
            self.console.file.write(f"{when} {record.levelname:<8} {self.format(record)}\n")
            self.flush()
        except Exception:
            self.handleError(record)


class Bar(Progress):
    """The one look of every progress bar. Its tasks are counted in `unit`, but for those that name another."""

    on_screen: ClassVar[list["Bar"]] = []
    """rich has one live display at a time: whoever finds one adds a row to it."""

    def __init__(self, console: Console, unit: str, transient: bool = False):
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
            transient=transient,
            disable=console.quiet or not console.is_terminal,
        )
        self._unit = unit

    def add_task(self, description: str, *arguments: Any, **fields: Any) -> TaskID:
        return super().add_task(description, *arguments, **{"unit": self._unit, "shown": "", **fields})

    def start(self) -> None:
        super().start()
        if not self.disable:
            self.on_screen.append(self)

    def stop(self) -> None:
        super().stop()
        if self in self.on_screen:
            self.on_screen.remove(self)


@contextmanager
def sampling_bar(sequences: int) -> Iterator[Callable[[int, int], None]]:
    """Sequences and tokens per second of a batch that takes longer than two seconds. Yields a function to be told, now
    and then, how many sequences have ended since the last time and how many tokens were sampled."""
    own = None if Bar.on_screen else Bar(open_console(stderr=True), "sequences", transient=True)
    bar, begun, task = own or Bar.on_screen[-1], time.monotonic(), None
    ended = tokens = 0

    def advance(more_ended: int, more_tokens: int) -> None:
        nonlocal ended, tokens, task
        ended, tokens = ended + more_ended, tokens + more_tokens
        seconds = time.monotonic() - begun
        if bar.disable or seconds < PATIENCE_S:
            return
        if task is None:
            if own:
                own.start()
            task = bar.add_task("sampling", total=sequences, unit="sequences")
        bar.update(task, completed=ended, shown=f"{tokens / seconds:,.0f} tokens/s")

    try:
        yield advance
    finally:
        if task is not None:
            bar.remove_task(task)
            if own:
                own.stop()
