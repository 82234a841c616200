"""What went wrong, in one line: the command line and the workers of a comparison say the same."""

from __future__ import annotations

import errno

from inspectord.errors import InspectordError

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
NO_MEMORY, IO_ERROR = 71, 74  # sysexits' EX_OSERR and EX_IOERR


def explained(error: Exception) -> tuple[str, int] | None:
    """One line that says what to do, and an exit code; None where the code is at fault."""
    if isinstance(error, InspectordError):
        return " ".join(str(error).split()), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; scale down with --resize, or take fewer or smaller tiles", NO_MEMORY
    if isinstance(error, OSError) and error.errno in DISK:
        step = "use an account that may" if isinstance(error, PermissionError) else "check the disk"
        return f"{error.strerror}: {error.filename or 'while writing'}; {step}", IO_ERROR
    return None
