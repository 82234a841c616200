"""A network of its own behind a cable: a namespace and a veth pair, gone again whatever happens."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from contextlib import suppress
from types import TracebackType
from typing import Self


@functools.cache
def no_namespaces() -> str | None:
    """Why they can't be had here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2"
    try:
        with Namespace():
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr!r:.100}"


class Namespace:
    """here: this end's address; commands inside begin with `words`. One at a time in a process."""

    def __init__(self) -> None:
        number = os.getpid()
        self.name = f"faults{number}"
        self.words = ["ip", "netns", "exec", self.name]
        self._ends = (f"fh{number}", f"ft{number}")
        net = f"10.{200 + (number >> 14) % 50}.{(number >> 6) & 255}"
        self.here, self.there = (f"{net}.{(number & 63) * 4 + end}" for end in (1, 2))

    def __enter__(self) -> Self:
        here, there = self._ends
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
            _ip("addr", "add", f"{self.here}/30", "dev", here)
            _ip("link", "set", here, "up")
            _ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", there)
            _ip("-n", self.name, "link", "set", "lo", "up")
            self.plug()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for command in (("link", "del", self._ends[0]), ("netns", "del", self.name)):
            with suppress(subprocess.CalledProcessError):
                _ip(*command)

    def pull(self) -> None:
        """The cable: nothing arrives any more in either direction, and neither end is told by the other."""
        _ip("-n", self.name, "link", "set", self._ends[1], "down")

    def plug(self) -> None:
        _ip("-n", self.name, "link", "set", self._ends[1], "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)
