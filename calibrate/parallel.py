"""Fits of positions at the same time: one after the other, in processes of this box, or on a cluster.

A unit of work is a function of a module and its arguments, all to be pickled. Whoever computes it does so
with one thread, whose sums come in one order: results are the same, bit by bit, wherever they are computed on
the same kind of processor. (Small matrices lose nothing by it: PaDiM's blocks took six times the processor
time with two, and gave other bits.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from calibrate.options import FitOptions
from inspectord.errors import FitError
from inspectord.linux import die_with_parent

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Unit = tuple[Any, ...]
PROCESS_MB = 150  # of a process with its libraries, before it is given any work; measured 104


class Workers(Protocol):
    """Who computes units of work."""

    def run(self, function: Callable[..., R], units: Iterable[Unit]) -> Iterator[R]:
        """function(*unit) of each unit, in order. Units are drawn when their turn comes, a few ahead.

        Raises what function raises, and FitError where nobody is left who could compute it.
        """
        ...


@contextmanager
def workers(options: FitOptions) -> Iterator[Workers]:
    """As the options have it. Raises FitError where a cluster can't be used."""
    if options.on is not None:
        from calibrate.cluster import Cluster

        with Cluster(options.on, known=True) as cluster:
            yield cluster
    elif options.jobs > 1:
        with Processes(options.jobs) as processes:
            yield processes
    else:
        yield Here()


def together(options: FitOptions) -> int:
    """Units that lie in this box's memory at the same time; of a cluster's, one being sent, one received."""
    return 2 if options.on else options.jobs


def alone(function: Callable[..., R], unit: Unit) -> R:
    """function(*unit) with one thread, in a process that computes nothing but units.

    Never set back: another thread of the same process may be in the middle of one.
    """
    threadpool_limits(limits=1)
    return function(*unit)


class Here:
    """One unit after the other, in this process."""

    def run(self, function: Callable[..., R], units: Iterable[Unit]) -> Iterator[R]:
        for unit in units:
            with threadpool_limits(limits=1):
                found = function(*unit)
            yield found


class Processes:
    """As many units at a time as there are processes; these end with this one, however it ends."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._before = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
        )

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # nobody waits for what is under way
            for child in set(multiprocessing.active_children()) - self._before:
                child.terminate()
        self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[..., R], units: Iterable[Unit]) -> Iterator[R]:
        try:
            yield from in_order(lambda unit: self._pool.submit(alone, function, unit), units, self._count)
        except BrokenProcessPool as error:
            raise FitError(
                f"one of {self._count} processes that fit positions was killed, most likely for memory; "
                "give fewer --jobs, or free some"
            ) from error


class Promise(Protocol[R_co]):
    """What submitting a unit gives at once."""

    def result(self) -> R_co: ...


def in_order(submit: Callable[[Unit], Promise[R]], units: Iterable[Unit], at_once: int) -> Iterator[R]:
    """Results in the order of the units, at most `at_once` of which are under way."""
    left = iter(units)
    running = deque(submit(unit) for unit in islice(left, at_once))
    while running:
        yield running.popleft().result()
        running.extend(submit(unit) for unit in islice(left, 1))


def _begin(parent: int) -> None:
    """In a fresh process: the parent alone answers Ctrl-C, and nothing outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
