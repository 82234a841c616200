"""How a long step tells the operator where it is: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

T = TypeVar("T")
PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    """What every long step takes: `for frame in progress.track(frames, "reading frames"): ...`."""

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """Yield the items and show how many of total (default: len(items)) are done."""
        ...

    def note(self, text: str) -> None:
        """One line that the operator should read."""
        ...


class Silent:
    """Shows nothing; keeps the notes for whoever asks."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        yield from items

    def note(self, text: str) -> None:
        self.notes.append(text)


class Plain:
    """For logs and pipes: a line at the start, one every ten seconds with what is left, one at a long end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        total = _length(items) if total is None else total
        of = "" if total is None else f" of {total}"
        said = began = time.monotonic()
        done = 0
        self.note(what if total is None or total == 1 else f"{what}: {total}")
        for done, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - said >= PLAIN_EVERY_S:
                said = time.monotonic()
                left = f", about {(said - began) * (total - done) / done:.0f} s left" if total else ""
                self.note(f"{what}: {done}{of}, {said - began:.0f} s{left}")
        if said > began:
            self.note(f"{what}: done, {done} in {time.monotonic() - began:.0f} s")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """For a terminal: a bar with count and remaining time; notes stay above it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        total = _length(items) if total is None else total
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with RichProgress(*columns, console=self._console) as bars:
            task = bars.add_task(what, total=total)
            for item in items:
                yield item
                bars.advance(task)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def on_stderr() -> Progress:
    """Bars on a terminal, plain lines in a file or a pipe; stdout holds the results alone."""
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Plain(console)


def _length(items: Iterable[object]) -> int | None:
    return len(items) if isinstance(items, Sized) else None
