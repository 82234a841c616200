"""What only Linux says of a process, and does for one: its peak of memory, and an end with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Literal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def peak_mb(pid: int | Literal["self"] = "self") -> float:
    """Most resident memory of a process since its program started, shared pages included.

    0 where the process is gone. Not ru_maxrss: that survives exec, so a child of a large process knows the
    parent's.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def die_with_parent(parent: int | None = None) -> None:
    """The kernel kills this process with its parent, even inside a call that never returns.

    Where prctl is forbidden it doesn't, and nothing else happens.
    parent is the id of that process, where it is known: if it ended before this call, so does this process.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
