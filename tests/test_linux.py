"""What Linux says of a process, and does for one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from inspectord.linux import peak_mb

ROOT = Path(__file__).parent.parent
PEAK = "from inspectord.linux import peak_mb; print(peak_mb())"
FAT = f"import os, sys; held = b'1' * 300_000_000; os.execv(sys.executable, [sys.executable, '-c', {PEAK!r}])"


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_peak_of_memory_is_that_of_the_program_and_not_of_the_one_before_it():
    assert 5 < float(python(PEAK).stdout) < 200
    assert 5 < float(python(FAT).stdout) < 200


def test_the_peak_of_memory_stays_when_the_memory_is_given_back():
    code = "held = b'1' * 300_000_000; del held; " + PEAK
    assert float(python(code).stdout) > 300_000_000 / 2**20


def test_another_process_has_its_own_peak_and_one_that_is_gone_has_none():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert 0 < peak_mb(process.pid) < 200
    process.communicate(b"\n", timeout=60)
    assert peak_mb(process.pid) == 0


def test_a_process_ends_at_once_where_its_parent_has_ended_before():
    code = "import sys; from inspectord.linux import die_with_parent; die_with_parent(int(sys.argv[1]))"
    assert python(code, os.getpid()).returncode == 0
    assert python(code, 2**22 + 1).returncode == 1  # no process has that id


def test_a_process_ends_with_its_parent_though_it_hears_no_signal(tmp_path):
    here = tmp_path / "here"
    child = (
        "import os, signal, time; from inspectord.linux import die_with_parent; die_with_parent()\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"os.symlink(str(os.getpid()), {str(here)!r}); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT)
    until = time.monotonic() + 60
    while not here.is_symlink() and time.monotonic() < until:
        time.sleep(0.01)
    place = Path("/proc") / here.readlink()
    assert place.exists()
    process.kill()
    process.wait(timeout=10)
    while place.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not place.exists()
