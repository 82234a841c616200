"""Units of work on a cluster of dask.distributed: everything they need travels with them.

No file system is shared, and nothing stays on a worker: the scheduler holds a unit's arguments until its
result is fetched, so that a unit whose worker died is computed elsewhere. Whoever reaches the scheduler can
run code on all workers; dask's `dask scheduler` neither asks who calls nor encrypts, so it belongs into a
network of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import platform
import queue
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from calibrate.parallel import Unit, alone, in_order
from inspectord import __version__
from inspectord.errors import FitError

R = TypeVar("R")
SCHEME = "dask://"
ANSWER_S = 10.0  # to reach the scheduler, as long again for its greeting, and for a first worker to be there
PATIENT_S = 30.0  # the same where it answered before: by then there is work to lose
ADDRESSES = 5  # of one name that can be tried in that time
SHORT = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)  # what can be freed
AHEAD = 2  # units a thread of a worker: the next one travels while one is computed
# What results depend on. dask asks for its own version itself.
PACKAGES = ("numpy", "scipy", "torch")  # torch for some kinds only


class Cluster:
    """Workers of the scheduler at dask://host:port, waited for longer where it is known to have answered.

    Raises FitError where none are, or of other versions.
    """

    def __init__(self, address: str, known: bool = False) -> None:
        self._address, self._patience_s = address, PATIENT_S if known else ANSWER_S
        try:
            from distributed import Client
        except ModuleNotFoundError as error:
            if error.name not in ("distributed", "dask"):
                raise
            raise FitError("--on needs dask: `pip install 'inspectord[cluster]'`, or give --jobs") from error
        no_answer = (
            f"no dask scheduler answers at {address}; start one there with `dask scheduler`, or give "
            "--jobs to fit on this box"
        )
        if not _greets(address, self._patience_s):
            raise FitError(no_answer)
        try:
            # Not the default client: nothing else in this process is to find itself on a cluster.
            self._client = Client(
                "tcp://" + address.removeprefix(SCHEME), timeout=self._patience_s, set_as_default=False
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise FitError(no_answer) from error

    def __enter__(self) -> Cluster:
        try:
            self._check()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def run(self, function: Callable[..., R], units: Iterable[Unit]) -> Iterator[R]:
        from dask import config
        from distributed import KilledWorker

        run, ours = uuid.uuid4().hex[:8], installed()
        numbered = ((number, *unit) for number, unit in enumerate(units))

        def submit(unit: Unit) -> Any:
            number, *arguments = unit
            # It says "consider scattering", but what is scattered to a worker is lost with it.
            with config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
                key = f"calibrate-{run}-{number}"
                return self._client.submit(computed, ours, function, tuple(arguments), key=key, pure=False)

        try:
            yield from in_order(submit, numbered, AHEAD * sum(self._client.nthreads().values()))
        except ModuleNotFoundError as error:
            raise FitError(f"a worker of {self._address} lacks {error.name}; install it there") from error
        except KilledWorker as error:
            raise FitError(
                f"workers of {self._address} died again and again at the same unit, most likely for memory; "
                "give a smaller --memory-mb or --tile, or workers with more"
            ) from error
        except (CancelledError, asyncio.CancelledError, OSError) as error:
            raise FitError(
                f"the dask scheduler at {self._address} is gone; start it, and fit again"
            ) from error

    def _check(self) -> None:
        """Workers are there, and have what this box has."""
        try:
            self._client.wait_for_workers(1, timeout=self._patience_s)
        except TimeoutError as error:
            raise FitError(
                f"the dask scheduler at {self._address} has no workers; start some with "
                f"`dask worker tcp://{self._address.removeprefix(SCHEME)} --nthreads 1`"
            ) from error
        for worker, theirs in self._client.run(installed, on_error="return").items():
            if isinstance(theirs, ModuleNotFoundError):
                raise FitError(f"worker {worker} lacks {theirs.name}; install inspectord {__version__} there")
            if isinstance(theirs, BaseException):
                raise FitError(f"worker {worker} does not run what it is given: {theirs}")
            _same(theirs, installed(), worker)


def _greets(address: str, patience_s: float) -> bool:
    """A scheduler is there, known after twice the patience: dask's own client tries again and again, waits
    for a name as long as the system does, and takes what another server says for a length.
    """
    host, _, port = address.removeprefix(SCHEME).rpartition(":")
    reports: queue.SimpleQueue[bool] = queue.SimpleQueue()

    async def greet(where: str) -> None:
        from distributed.comm import connect

        (await asyncio.wait_for(connect(where, timeout=patience_s), patience_s)).abort()

    def call() -> None:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), patience_s / ADDRESSES) as found:
                there, at, *_ = found.getpeername()
            reports.put(True)
            asyncio.run(greet(f"tcp://[{there}]:{at}" if ":" in there else f"tcp://{there}:{at}"))
            reports.put(True)
        except Exception:  # whatever went wrong, it is no scheduler
            reports.put(False)

    threading.Thread(target=call, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        return reports.get(timeout=patience_s) and reports.get(timeout=patience_s)
    return False


def installed() -> dict[str, str | None]:
    """What is installed here, by name; None where a package is not."""
    found: dict[str, str | None] = {"inspectord": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def computed(wanted: dict[str, str | None], function: Callable[..., R], unit: Unit) -> R:
    """function(*unit), on a worker; of those that came late nobody has asked yet what they have.

    Raises FitError where the worker's box is at fault: its temporary files tell the operator nothing.
    """
    worker = platform.node()
    _same(installed(), wanted, worker)
    try:
        return alone(function, unit)
    except (OSError, MemoryError) as error:
        why, hint = "Out of memory", "free some there"
        if isinstance(error, OSError):
            why = error.strerror or str(error) or type(error).__name__
            hint = hint if error.errno in SHORT else "mend it there"
        raise FitError(f"{why}, on worker {worker}; {hint}, or leave that worker out") from error


def _same(theirs: dict[str, str | None], ours: dict[str, str | None], worker: str) -> None:
    """Raises FitError where results might differ."""
    for name, mine in ours.items():
        other = theirs[name]
        if None not in (mine, other) and other != mine:
            raise FitError(
                f"worker {worker} has {name} {other}, this box {mine}; install the same there, or results "
                "would not be the same"
            )
