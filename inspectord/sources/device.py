"""Find and open one camera of a GenTL producer."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import harvesters.core
from genicam import gentl
from harvesters.core import Harvester, ParameterKey, ParameterSet

from inspectord.errors import SourceError
from inspectord.settings import GenicamSource

# It times its waits by time.time(): a wall clock set back by an hour made a wait of 0.2 s one of an hour.
harvesters.core.time = SimpleNamespace(time=time.monotonic, sleep=time.sleep)
logging.getLogger("harvesters").setLevel(logging.ERROR)  # its warnings come with tracebacks, once a frame

EVENT_WAIT_MS = 20  # longest wait inside the driver, where no signal is seen


class Device:
    """An opened camera; harvesters' own objects stay in here and in the source that uses them."""

    def __init__(self, source: GenicamSource) -> None:
        check_producer(source)
        self._harvester = Harvester()
        try:
            self._harvester.add_file(str(source.cti))
            self._harvester.update()
            info = choose(self._harvester.device_info_list, source)
            self.acquirer = self._create(info, source)
        except BaseException:
            self._harvester.reset()
            raise
        self._status_at_open = self._status()

    @property
    def nodes(self) -> Any:
        return self.acquirer.remote_device.node_map

    def is_gone(self) -> bool:
        """True where the producer says that the device is no longer open to us."""
        return self._status_at_open is not None and self._status() != self._status_at_open

    def close(self) -> None:
        with contextlib.suppress(gentl.GenericException):
            self.acquirer.destroy()
        with contextlib.suppress(gentl.GenericException):
            self._harvester.reset()

    def _create(self, info: Any, source: GenicamSource) -> Any:
        config = ParameterSet(
            {
                ParameterKey.ENABLE_AUTO_CHUNK_DATA_UPDATE: source.chunks,
                ParameterKey.TIMEOUT_PERIOD_ON_UPDATE_EVENT_DATA_CALL: EVENT_WAIT_MS,
            }
        )
        on_sigint = signal.getsignal(signal.SIGINT)
        try:
            return self._harvester.create(info, config=config)
        except (gentl.AccessDeniedException, gentl.ResourceInUseException) as error:
            raise SourceError(
                f"camera {describe(info)} is in use; close the other program or wait for its heartbeat"
            ) from error
        except gentl.GenericException as error:
            raise SourceError(f"camera {describe(info)} can't be opened: {error}; check its link") from error
        finally:
            signal.signal(signal.SIGINT, on_sigint)  # create() puts its own handler in

    def _status(self) -> int | None:
        try:
            return int(self.acquirer.device.module.access_status)
        except gentl.GenericException:
            return None


def choose(infos: list[Any], source: GenicamSource) -> Any:
    """The one device that matches serial, model and user_id; raises SourceError listing what is there."""
    wanted = {"serial_number": source.serial, "model": source.model, "user_defined_name": source.user_id}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    found = [
        info for info in infos if all(info.property_dict.get(key) == value for key, value in wanted.items())
    ]
    if len(found) == 1:
        return found[0]
    there = "; ".join(describe(info) for info in infos) or "no camera at all"
    asked = ", ".join(f"{key} {value!r}" for key, value in wanted.items()) or "an open choice"
    if found:
        raise SourceError(f"{len(found)} cameras match {asked}; set serial to one of: {there}")
    raise SourceError(
        f"no camera matches {asked}; {source.cti.name} finds: {there}; check power, link and serial"
    )


def describe(info: Any) -> str:
    known = info.property_dict
    name = f", user_id {known['user_defined_name']!r}" if known.get("user_defined_name") else ""
    return f"model {known.get('model')!r}, serial {known.get('serial_number')!r}{name} ({known.get('id_')})"


def check_producer(source: GenicamSource) -> None:
    """Raises SourceError for a .cti that is missing, unreadable or not for this machine."""
    if not source.cti.is_file():
        raise SourceError(
            f"no GenTL producer {source.cti}; install the camera maker's, and set cti to its .cti file"
        )
    if not os.access(source.cti, os.R_OK):
        raise SourceError(f"can't read GenTL producer {source.cti}; give the service's user access to it")
    try:
        ctypes.CDLL(str(source.cti))  # harvesters would only log a failure, and find no camera
    except OSError as error:
        raise SourceError(
            f"can't load GenTL producer {source.cti}: {error}; install it for this machine"
        ) from error
