"""Showing how far a long step is: a bar on a terminal, a plain line now and then in a file or a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rmlora.wording import counted, duration

__all__ = ["ProgressDisplay"]

_INTERVAL = 10.0
"""Seconds between two plain lines."""


class ProgressDisplay:
    """Progress of one step, shown while the ``with`` block runs.

        >>> with ProgressDisplay(Console(), "merging", noun="MB", plural="MB") as display:    # doctest: +SKIP
        ...     display.update(12, total=40)                                                  # doctest: +SKIP

    On a terminal a bar is redrawn and disappears at the end. Elsewhere a line is printed every ten seconds, so a step that
    takes less prints none: ``merging: 12 of 40 MB (30 %), about 23 s left``.

    Args:
        console: where to show it.
        title: what is being done.
        noun: what is counted; used with a total.
        plural: of ``noun``; None adds an s.
        interval: seconds between two plain lines.
        clock: of seconds.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        *,
        noun: str = "step",
        plural: str | None = None,
        interval: float = _INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._title, self._noun, self._plural = console, title, noun, plural
        self._interval, self._clock = interval, clock
        self._done, self._total, self._detail = 0.0, 0.0, ""
        self._began = self._counted_from = clock()
        self._first = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressDisplay:
        """Start showing it."""
        self._began = self._counted_from = self._clock()
        if self._console.is_interactive:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[count]}", markup=False),
                TextColumn("{task.fields[detail]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=self._console,
                transient=True,
            )
            self._bar.add_task(self._title, total=None, count="", detail="", left="")
            self._bar.start()
        elif not self._console.quiet:
            self._thread = threading.Thread(target=self._print_lines, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing it."""
        self.close()

    def close(self) -> None:
        """Stop showing it. Safe to call twice."""
        self._stop.set()
        if self._bar is not None:
            self._bar.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def start_at(self, done: float) -> None:
        """Say how much was done before this step began, so that the time left is estimated from the rest."""
        self._done = self._first = done
        self._counted_from = self._clock()

    def update(
        self,
        done: float | None = None,
        *,
        total: float | None = None,
        title: str | None = None,
        detail: str | None = None,
    ) -> None:
        """Record how far the step is.

        Args:
            done: units done; None leaves it.
            total: units in all; None leaves it.
            title: what is being done now; None leaves it.
            detail: figures to show beside it; None leaves them.
        """
        self._done = self._done if done is None else done
        self._total = self._total if total is None else total
        self._detail = self._detail if detail is None else detail
        self._title = self._title if title is None else title
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], description=self._title, completed=self._done, total=self._total or None,
                count=self._count(), detail=self._detail, left="left" if self._total else "",
            )  # fmt: skip

    def line(self) -> str:
        """Return the plain line."""
        elapsed = self._clock() - self._began
        parts = [f"{self._title}: {self._count()}" if self._total else self._title]
        if self._detail:
            parts.append(self._detail)
        left = self._seconds_left()
        parts.append(f"{duration(elapsed)} so far" if left is None else f"about {duration(left)} left")
        return ", ".join(parts)

    def _count(self) -> str:
        if not self._total:
            return ""
        share = min(self._done / self._total, 1.0)
        return f"{self._done:,.0f} of {counted(round(self._total), self._noun, self._plural)} ({share:.0%})"

    def _seconds_left(self) -> float | None:
        """Return the seconds that the rest takes at the speed so far; None if that is not known."""
        progress = self._done - self._first
        if not self._total or progress <= 0:
            return None
        return max(self._total - self._done, 0.0) * (self._clock() - self._counted_from) / progress

    def _print_lines(self) -> None:
        while not self._stop.wait(self._interval):
            self._console.print(f"  {self.line()}", markup=False, highlight=False, soft_wrap=True)
