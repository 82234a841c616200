"""Runs one task of a comparison in a fresh process.

A process of its own keeps the memory of a daemon apart from everything else, and a fit that runs out of it
costs that kind alone. It ends with the process that asked.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NoReturn

from calibrate.compare_tasks import Failed, Task
from calibrate.mishaps import explained
from inspectord.linux import die_with_parent

INTERRUPTED = 130
ENDING = (signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 10.0  # for a fit that is told to stop: it removes what it has begun
FRESH = multiprocessing.get_context("spawn")


def ask(task: Task, work: Path) -> Any:
    """The task's answer, or Failed; its temporary files go below work, so that they end with it."""
    receiving, sending = FRESH.Pipe(duplex=False)
    process = FRESH.Process(target=_work, args=(task, sending, os.getpid(), work))
    try:
        process.start()
        sending.close()
        with contextlib.suppress(EOFError):
            return receiving.recv()
        process.join()
    except BaseException:
        _stop(process)
        raise
    finally:
        receiving.close()
        if process.pid is not None:
            process.join()
    if process.exitcode == -signal.SIGKILL:
        return Failed("it was killed; most likely memory ran out: take fewer or smaller tiles, or --resize")
    return Failed(f"it ended with code {process.exitcode} and without an answer; see the lines above")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Being told to end, or losing the terminal, raises KeyboardInterrupt once: folders and workers go too.

    What is ignored, as below nohup, stays ignored.
    """
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> NoReturn:
    for number in ENDING:  # whoever ends a session sends both, and clearing up takes a moment
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stop(process: SpawnProcess) -> None:
    if process.pid is None:
        return
    process.terminate()  # not by SIGINT: a job in a shell's background is begun with that ignored
    process.join(PATIENCE_S)
    process.kill()


def _answer(task: Task) -> Any:
    try:
        return task.run()
    except ModuleNotFoundError as error:
        return Failed(f"{error.name} is not installed; `pip install 'inspectord[train]'`")
    except Exception as error:
        if known := explained(error):
            return Failed(known[0])
        traceback.print_exc()
        return Failed(f"it broke: {type(error).__name__}: {error}; report this with the lines above")


def _work(task: Task, answer: Connection, parent: int, work: Path) -> None:
    die_with_parent(parent)
    os.environ["TMPDIR"] = tempfile.tempdir = str(work)
    try:
        with interruptible():
            answer.send(_answer(task))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
