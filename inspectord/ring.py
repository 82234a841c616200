"""The ring: frames in shared memory from one camera process (producer) to the daemon (consumer).

A table of headers, longer than the pixel slots, keeps every trigger in order whether or not its pixels
survive. Every change of state is ordered so that a process killed between any two stores leaves a ring
that recover() can mend. States change under SharedLock; threads of one process must share one Ring object,
as record locks don't divide them. Pixels are copied outside the lock.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import time
from dataclasses import replace
from typing import Any

import numpy as np

from inspectord.errors import RingError
from inspectord.frame import Frame, FrameHeader, FrameStatus, Pixels
from inspectord.memory import SharedLock, await_event, reserve
from inspectord.ring_layout import (
    ENTRY,
    NO_SLOT,
    OWNER,
    SlotState,
    control_block,
    control_of,
    fill,
    header_of,
    layout,
)

LOCK_PATIENCE_S = 0.25  # a lock is held for microseconds; longer means a stopped process holds it


class Ring:
    """One producer, one consumer; make it with create() in the daemon and attach() in the camera process."""

    def __init__(self, memory_fd: int, event_fd: int) -> None:
        self.fds = (memory_fd, event_fd)
        self._memory: mmap.mmap | None = mmap.mmap(memory_fd, 0)
        self._control: Any = control_of(self._memory)
        control = self._control
        self.slots = int(control["slots"][0])
        height, width, channels = (int(control[name][0]) for name in ("height", "width", "channels"))
        self.frame_shape = (height, width, channels)
        self._headers = int(control["headers"][0])
        owners_at, entries_at, pixels_at, stride = layout(self.slots, self.frame_shape, self._headers)
        self._owners: Any = np.frombuffer(self._memory, OWNER, self.slots, owners_at)
        self._entries: Any = np.frombuffer(self._memory, ENTRY, self._headers, entries_at)
        size = math.prod(self.frame_shape)
        self._pixels = [
            np.frombuffer(self._memory, np.uint8, size, pixels_at + i * stride).reshape(1, *self.frame_shape)
            for i in range(self.slots)
        ]
        self._lock = SharedLock(memory_fd)
        self._to_release: list[Frame] = []

    @classmethod
    def create(cls, slots: int, frame_shape: tuple[int, int, int], headers: int = 1024) -> Ring:
        """A new ring of slots frames of shape (height, width, channels).

        Raises RingError where that much memory isn't free.
        """
        if slots < 1 or headers < max(2, slots) or min(frame_shape) < 1:
            raise RingError(f"no ring of {slots} slots, {headers} headers and frames {frame_shape} can be")
        *_, pixels_at, stride = layout(slots, frame_shape, headers)
        memory_fd = reserve(pixels_at + slots * stride, "ring")
        os.pwrite(memory_fd, control_block(slots, frame_shape, headers), 0)
        return cls(memory_fd, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @classmethod
    def attach(cls, memory_fd: int, event_fd: int) -> Ring:
        """The ring behind inherited descriptors, which it owns from here on."""
        return cls(memory_fd, event_fd)

    def slot(self, index: int) -> Pixels:
        """Writable contiguous view of shape (1, height, width, channels), 64-byte aligned."""
        return self._pixels[index]

    # --- producer ---

    @property
    def last_trigger(self) -> int:
        """The last trigger id that was entered, by whichever producer; 0 before the first.

        Kept with the entries, so that a producer killed between a count and its entry has counted nothing.
        """
        return int(self._entry(int(self._control["written"][0]) - 1)["last_trigger"])

    def put(self, header: FrameHeader, pixels: Pixels | None = None) -> FrameHeader | None:
        """Enter a frame; returns the header that lost its pixels to a full ring, if one did.

        That is the oldest frame not yet taken, or this one where the consumer holds every slot. It stays
        in order and reaches the consumer as DISPLACED. pixels: uint8 of the ring's frame shape.
        """
        if header.status is not FrameStatus.OK:
            pixels = None
        if pixels is not None and pixels.shape != self.frame_shape:
            raise RingError(f"a frame of shape {pixels.shape} is not the ring's {self.frame_shape}")
        with self._lock.held():
            slot, displaced = self._claim() if pixels is not None else (NO_SLOT, None)
            if pixels is not None and slot == NO_SLOT:
                header = displaced = replace(header, status=FrameStatus.DISPLACED)
            entry = self._enter(header, slot)
        if pixels is not None and slot != NO_SLOT:
            np.copyto(self._pixels[slot][0], pixels)
            with self._lock.held():
                self._owners[slot]["state"] = SlotState.READY
                entry["writing"] = 0
        os.eventfd_write(self.fds[1], 1)
        return displaced

    def wait_free(self, timeout_s: float, slots: int = 1) -> bool:
        """True as soon as so many slots are free; put() then displaces nothing. For replays, which wait."""
        deadline = time.monotonic() + timeout_s
        while not self._has_room(slots):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.0005)
        return True

    def _has_room(self, slots: int) -> bool:
        behind = int(self._control["written"][0]) - int(self._control["taken"][0])
        return behind < self._headers and int((self._owners["state"] == SlotState.FREE).sum()) >= slots

    def _claim(self) -> tuple[int, FrameHeader | None]:
        """A slot for the next frame, and the header of the frame it was taken from, if it was."""
        states = self._owners["state"]
        free = np.flatnonzero(states == SlotState.FREE)
        if free.size:
            return int(free[0]), None
        ready = np.flatnonzero(states == SlotState.READY)
        if not ready.size:
            return NO_SLOT, None
        slot = int(ready[np.argmin(self._owners["index"][ready])])
        entry = self._entry(int(self._owners[slot]["index"]))
        entry["status"] = FrameStatus.DISPLACED
        return slot, header_of(entry)

    def _enter(self, header: FrameHeader, slot: int) -> Any:
        """Fill the next entry; counting it comes last, so that a kill before leaves no half entry behind."""
        index = int(self._control["written"][0])
        entry = self._entry(index)
        overrun = index - int(self._control["taken"][0]) >= self._headers
        if overrun and entry["status"] == FrameStatus.OK and entry["slot"] != NO_SLOT:
            entry["status"] = FrameStatus.DISPLACED
            self._owners[int(entry["slot"])]["state"] = SlotState.FREE
        if slot != NO_SLOT:
            self._owners[slot] = (index, SlotState.WRITING)
        fill(entry, header, index, slot, header.trigger_id if header.trigger_id >= 0 else self.last_trigger)
        self._control["written"][0] = index + 1
        return entry

    # --- consumer ---

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame in order, or None after timeout_s; hand each one with a slot back by release()."""
        deadline = time.monotonic() + timeout_s
        while True:
            frame = self._take_now(max(0.0, deadline - time.monotonic()))
            left_s = deadline - time.monotonic()
            if frame is not None or left_s <= 0:
                return frame
            await_event(self.fds[1], left_s)

    @property
    def is_empty(self) -> bool:
        """True where every frame that was entered has been taken."""
        return bool(self._control["taken"][0] == self._control["written"][0])

    def release(self, frame: Frame) -> None:
        """Free a taken frame's slot. Never waits long: what can't be freed now is freed by the next call."""
        if frame.slot is not None:
            self._to_release.append(frame)
        with contextlib.suppress(TimeoutError), self._lock.held(LOCK_PATIENCE_S):
            self._free_released()

    def recover(self) -> bool:
        """Mend what a dead producer left; True where a frame was in mid-write, which is now CAMERA_LOST.

        Only after the producer's end; a new one then attaches and continues.
        """
        with self._lock.held():
            written = int(self._control["written"][0])
            last = self._entry(written - 1)  # of a new ring: an entry of zeros
            cut = bool(last["writing"])
            if cut:
                last["status"], last["slot"] = FrameStatus.CAMERA_LOST, NO_SLOT
                last["writing"] = 0
            for slot, owner in enumerate(self._owners):
                if owner["state"] == SlotState.WRITING or self._is_stray(slot):
                    owner["state"] = SlotState.FREE
        os.eventfd_write(self.fds[1], 1)
        return cut

    def close(self) -> None:
        """Give the descriptors back; the memory goes with its last view."""
        if self._memory is None:
            return
        memory, self._memory = self._memory, None
        self._control = self._owners = self._entries = None
        self._pixels = []
        with contextlib.suppress(BufferError):  # a tensor still looks at a slot; its end frees the memory
            memory.close()
        for fd in self.fds:
            os.close(fd)

    def _take_now(self, patience_s: float) -> Frame | None:
        if self.is_empty:
            return None
        try:
            with self._lock.held(patience_s):
                self._free_released()
                return self._take_locked()
        except TimeoutError:
            return None

    def _take_locked(self) -> Frame | None:
        index = int(self._control["taken"][0])
        entry = self._entry(index)
        if int(entry["index"]) != index:  # overwritten: the consumer stalled for a whole table of headers
            frame = Frame(FrameHeader(FrameStatus.DISPLACED, frame_id=-1), index, None)
        elif entry["writing"]:
            return None
        else:
            header, slot = header_of(entry), int(entry["slot"])
            if header.status is not FrameStatus.OK or slot == NO_SLOT:
                frame = Frame(header, index, None)
            else:
                self._owners[slot]["state"] = SlotState.TAKEN
                frame = Frame(header, index, slot)
        self._control["taken"][0] = index + 1
        return frame

    def _free_released(self) -> None:
        while self._to_release:
            frame = self._to_release.pop()
            owner = self._owners[frame.slot]
            if owner["index"] == frame.index and owner["state"] == SlotState.TAKEN:  # not released before
                owner["state"] = SlotState.FREE

    def _is_stray(self, slot: int) -> bool:
        """A READY slot that no entry names any more: its producer died while it displaced the frame."""
        owner = self._owners[slot]
        entry = self._entry(int(owner["index"]))
        named = entry["index"] == owner["index"] and entry["slot"] == slot
        return bool(owner["state"] == SlotState.READY and not (named and entry["status"] == FrameStatus.OK))

    def _entry(self, index: int) -> Any:
        return self._entries[index % self._headers]
