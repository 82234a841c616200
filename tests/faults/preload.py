"""Small C libraries that stand between a process and libc, built where they are needed."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# In a folder that only this user can write: a library that is preloaded must not be somebody else's.
BUILT = Path.home() / ".cache/inspectord-faults"


def library(name: str) -> Path:
    """Where the library of tests/faults/NAME.c lies, once lacking(name) has said None."""
    digest = hashlib.sha256((HERE / f"{name}.c").read_bytes()).hexdigest()[:12]
    return BUILT / f"{name}-{digest}.so"


@functools.cache
def lacking(name: str) -> str | None:
    """Why the library can't be had on this machine; it is built at the first call."""
    path = library(name)
    if path.exists():
        return None
    if shutil.which("cc") is None:
        return "no C compiler"
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        built = Path(folder) / path.name
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(built), str(HERE / f"{name}.c"), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            return f"cc: {done.stderr[:200]}"
        built.replace(path)
    return None
