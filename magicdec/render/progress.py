"""Progress on stderr: bars on a terminal, elsewhere plain lines where they are asked for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

REFRESH_S = 0.5  # how often a bar counts the seconds while nothing happens
LINE_S = 1.5  # longest silence without a terminal, as far as the thread gets its turn

Advance = Callable[[int], object]


@contextmanager
def progress_bar(total: int, title: str, unit: str, *, quiet: bool = False) -> Iterator[Advance]:
    """Show a bar while the block runs, unless stderr is no terminal or `quiet`.

    Yields:
        What to call with the number of units done since the last call.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=unit, leave=False, disable=quiet or None) as bar:
        yield bar.update


class Reporter:
    """Tells how far a long job is, at least every two seconds or so, whether stderr is a terminal or not.

    A thread repeats how far the job is, so that steps which tell nothing themselves are not silent either. Use it as a context.

    Args:
        say: Receives sentences for people.
    """

    def __init__(self, say: Callable[[str], object] = lambda words: None):
        self._say = say
        self._terminal = sys.stderr.isatty()
        self._running: list[_Step] = []  # the one that did something last is the last
        self._told_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def say(self, words: str) -> None:
        """Tell people something."""
        self._say(words)
        self._told_s = time.monotonic()

    @contextmanager
    def bar(self, total: int, title: str, unit: str) -> Iterator[Advance]:
        """Show progress while the block runs; with a total of 0 only what runs, and for how long.

        Yields:
            What to call with the number of units done since the last call.
        """
        with progress_bar(total, title, unit, quiet=not self._terminal) as advance:
            step = _Step(total, title, unit)

            def done(units: int) -> None:
                step.done += units
                if self._running[-1] is not step:
                    self._running.remove(step)
                    self._running.append(step)
                advance(units)

            step.refresh = lambda: advance(0)
            self._running.insert(0, step)  # the first to do something comes to the end
            try:
                yield done
            finally:
                self._running.remove(step)

    def _repeat(self) -> None:
        while not self._ended.wait(REFRESH_S):
            step = next(iter(self._running[-1:]), None)
            if step is None:
                continue
            if self._terminal:
                step.refresh()
            elif time.monotonic() - self._told_s >= LINE_S - REFRESH_S:
                print(step.line(), file=sys.stderr, flush=True)
                self._told_s = time.monotonic()


class _Step:
    """What runs, and how far it is.

    Args:
        total: Units in all; 0 if they are not counted.
        title: What runs.
        unit: Name of a unit.
    """

    def __init__(self, total: int, title: str, unit: str):
        self.total, self.title, self.unit, self.done = total, title, unit, 0
        self.started_s = time.monotonic()
        self.refresh: Callable[[], object] = lambda: None

    def line(self) -> str:
        """How far it is, in words."""
        elapsed_s = time.monotonic() - self.started_s
        if not self.total:
            return f"{self.title}: for {elapsed_s:.0f} s"
        left = f", {elapsed_s * (self.total - self.done) / self.done:.0f} s left" if self.done else ""
        return f"{self.title}: {self.done} of {self.total} {self.unit}s{left}"
