"""How the ring lies in memory: control block, slot owners, header table, pixels."""

from __future__ import annotations

import math
from enum import IntEnum
from mmap import mmap
from typing import Any

import numpy as np

from inspectord.errors import RingError
from inspectord.frame import FrameHeader, FrameStatus
from inspectord.memory import PAGE

MAGIC, VERSION = b"inspring", 2
ALIGN = 64  # a cache line, and what OpenVINO asks of shared tensors
NO_SLOT = -1
PART_ID_BYTES = 80


class SlotState(IntEnum):
    FREE = 0
    WRITING = 1
    READY = 2
    TAKEN = 3


CONTROL = np.dtype(
    [("magic", "S8"), ("written", "u8"), ("taken", "u8")]
    + [(name, "u4") for name in ("version", "slots", "height", "width", "channels", "headers")],
    align=True,
)
OWNER = np.dtype([("index", "u8"), ("state", "u4")], align=True)
ENTRY = np.dtype(
    [("index", "u8"), ("writing", "u4"), ("slot", "i4"), ("status", "i4"), ("simulated", "u4")]
    + [(name, "i8") for name in ("frame_id", "trigger_id", "encoder", "exposed_ns", "fetched_ns")]
    + [("last_trigger", "i8")]  # counted up to this entry, which may have none of its own
    + [("part_id_size", "u4"), ("part_id", f"V{PART_ID_BYTES}")],
    align=True,
)


def control_block(slots: int, frame_shape: tuple[int, int, int], headers: int) -> bytes:
    """The control block of a new ring."""
    control = np.zeros(1, CONTROL)
    control[0] = (MAGIC, 0, 0, VERSION, slots, *frame_shape, headers)
    return control.tobytes()


def control_of(memory: mmap) -> Any:
    """The control block in shared memory. Raises RingError where there is none of this version."""
    control = np.frombuffer(memory, CONTROL, 1)
    if bytes(control["magic"][0]) != MAGIC or int(control["version"][0]) != VERSION:
        raise RingError(
            "the shared memory is no ring of this version; start the daemon and its cameras together"
        )
    return control


def layout(slots: int, frame_shape: tuple[int, int, int], headers: int) -> tuple[int, int, int, int]:
    """Byte offsets of owners, entries and pixels, and the bytes from one slot's pixels to the next's."""
    entries_at = PAGE + _up(slots * OWNER.itemsize, ALIGN)
    pixels_at = _up(entries_at + headers * ENTRY.itemsize, PAGE)
    return PAGE, entries_at, pixels_at, _up(math.prod(frame_shape), ALIGN)


def fill(entry: Any, header: FrameHeader, index: int, slot: int, last_trigger: int) -> None:
    """Write a header; the index goes first, as a foreign index marks the old entry as overwritten."""
    entry["index"] = index
    entry["writing"] = slot != NO_SLOT
    entry["slot"] = slot
    entry["status"] = header.status
    entry["simulated"] = header.simulated
    for name in ("frame_id", "trigger_id", "encoder", "exposed_ns", "fetched_ns"):
        entry[name] = getattr(header, name)
    entry["last_trigger"] = last_trigger
    part_id = header.part_id.encode("utf-8", "replace")[-PART_ID_BYTES:]
    entry["part_id_size"] = len(part_id)
    entry["part_id"] = part_id


def header_of(entry: Any) -> FrameHeader:
    """The header as it was put; a part id cut inside a character loses that character."""
    part_id = entry["part_id"].tobytes()[: int(entry["part_id_size"])]
    return FrameHeader(
        status=FrameStatus(int(entry["status"])),
        frame_id=int(entry["frame_id"]),
        trigger_id=int(entry["trigger_id"]),
        encoder=int(entry["encoder"]),
        part_id=part_id.decode("utf-8", "ignore"),
        exposed_ns=int(entry["exposed_ns"]),
        fetched_ns=int(entry["fetched_ns"]),
        simulated=bool(entry["simulated"]),
    )


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
