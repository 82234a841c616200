"""Runs one task of a comparison in a fresh process.

`python -m calibrate.compare_worker ANSWER PARENT` reads a pickled task from standard input and writes the
pickled answer to the file ANSWER; it ends with the process PARENT. A process of its own keeps the memory of
a daemon apart from everything else, and a fit that runs out of it costs that kind alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from calibrate.compare_tasks import Failed, Task
from calibrate.mishaps import explained

INTERRUPTED = 130
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ENDING = (signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 10.0  # for a fit that is told to stop: it removes what it has begun


def ask(task: Task, work: Path) -> Any:
    """The task's answer, or Failed; its temporary files go below work, so that they end with it."""
    answer = work / "answer.pickle"
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "calibrate.compare_worker", str(answer), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {"TMPDIR": str(work)}) as process:
        try:
            process.communicate(pickle.dumps(task))
        except BaseException:
            _stop(process)
            raise
    if process.returncode == -signal.SIGKILL:
        return Failed("it was killed; most likely memory ran out: take fewer or smaller tiles, or --resize")
    if not answer.is_file():
        return Failed(f"it ended with code {process.returncode} and without an answer; see the lines above")
    return pickle.loads(answer.read_bytes())


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


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # not by SIGINT: a job in a shell's background is begun with that ignored
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def main() -> int:
    _die_with(int(sys.argv[2]))
    try:
        with interruptible():
            answer = _answer(pickle.load(sys.stdin.buffer))
            Path(sys.argv[1]).write_bytes(pickle.dumps(answer))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
