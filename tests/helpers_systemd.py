"""A real systemd in a container (systemd-nspawn) with this checkout installed in it as a service."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
PREFIX = Path("/opt/inspectord")
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
TARGET = """
[Unit]
Description=As much of a system as the service needs
Requires=basic.target
After=basic.target
AllowIsolate=yes
"""
# The interpreter may lie in somebody's home, and its library would be looked for there.
ENVIRONMENT = "[Service]\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1\n"


class Container:
    """A system of its own below root: the host's /usr, Python and this checkout in /opt, all read-only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._log = root.parent / "boot.log"
        _lay_out(root)

    def boot(self, limit_s: float = 20.0) -> None:
        """Skips the test where no container can be had, with the reason that nspawn or systemd gives."""
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--link-journal=no"]
        command += ["--private-network", "--machine=inspectord-test", f"--directory={self.root}"]
        # The filters of addresses and devices are programs that systemd loads into the kernel.
        command += ["--capability=all", "--system-call-filter=bpf"]
        command += [f"--bind-ro={there}:{here}" for there, here in _bindings().items()]
        environment = os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                [*command, "--boot"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        end_s = time.monotonic() + limit_s
        while not self._runs():
            if self._nspawn.poll() is not None or time.monotonic() > end_s:
                self.close()
                pytest.skip(f"no systemd boots here: {self._log.read_text(errors='replace')[-200:].strip()}")
            time.sleep(0.1)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command inside; its output, stdout and stderr together."""
        inside = ["nsenter", "--all", f"--target={self._leader()}", *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def await_show(self, unit: str, name: str, wanted: str, limit_s: float = 20.0) -> None:
        end_s = time.monotonic() + limit_s
        while (found := self.show(unit, name)) != wanted:
            assert time.monotonic() < end_s, f"{name} is {found}, not {wanted}:\n{self.log(unit)}"
            time.sleep(0.1)

    def log(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def processes(self) -> list[str]:
        """The command lines of all that runs inside."""
        found = psutil.Process(self._nspawn.pid).children(recursive=True)
        return [" ".join(process.cmdline()) for process in found]

    def drop_in(self, unit: str, text: str) -> None:
        folder = self.root / f"etc/systemd/system/{unit}.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(f"[Service]\n{text}\n")
        self.run("systemctl", "daemon-reload")

    def close(self) -> None:
        if self._nspawn.poll() is None:
            self._nspawn.terminate()  # a clean shutdown of the system inside
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()

    def _runs(self) -> bool:
        if not self._leader():
            return False
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def _leader(self) -> int:
        """The host's number of the container's process 1."""
        try:
            children = psutil.Process(self._nspawn.pid).children()
            return next((child.pid for child in children if "systemd" in child.name()), 0)
        except psutil.NoSuchProcess:
            return 0


def _lay_out(root: Path) -> None:
    for name in ("etc/systemd/system/inspectord@.service.d", "usr", "root", "tmp", "var/log", "opt/python"):
        (root / name).mkdir(parents=True)
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    shutil.copy("/usr/lib/os-release", root / "etc/os-release")
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    units = root / "etc/systemd/system"
    (units / "test.target").write_text(TARGET)
    (units / "default.target").symlink_to("test.target")
    (units / "inspectord@.service.d/python.conf").write_text(ENVIRONMENT)
    _lay_out_program(root / PREFIX.relative_to("/"))


def _lay_out_program(prefix: Path) -> None:
    """A virtual environment whose packages are this one's."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("bin", f"lib/python{version}/site-packages", "source/inspectord"):
        (prefix / name).mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text(f"home = /opt/python/bin\nversion = {version}\n")
    (prefix / "bin/python").symlink_to(f"/opt/python/bin/python{version}")
    program = prefix / "bin/inspectord"
    program.write_text(
        f"#!{PREFIX}/bin/python\nimport sys\nsys.path.insert(0, '{PREFIX}/source')\n"
        "from inspectord.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)


def _bindings() -> dict[Path, Path]:
    """What of the host is seen inside, and where."""
    packages = Path(site.getsitepackages()[0])
    inside = PREFIX / packages.relative_to(sys.prefix) if packages.is_relative_to(sys.prefix) else packages
    return {
        Path("/usr"): Path("/usr"),
        Path(sys.base_prefix): Path("/opt/python"),
        packages: inside,
        ROOT / "inspectord": PREFIX / "source/inspectord",
    }
