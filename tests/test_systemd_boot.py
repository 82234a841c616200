"""The shipped unit below a real systemd: its sandbox, its watchdog, its restarts. Needs root and nspawn."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import genicam
import pytest
import tomli_w
from helpers_recipe import activate_version, write_recipe
from helpers_systemd import PREFIX, Container

from inspectord.cli import main

UNIT = "inspectord@s1"
CONFIG = Path("/etc/inspectord/s1.toml")
PROGRAM = str(PREFIX / "bin/inspectord")
VIKY = Path("/opt/inspectord/lib") / Path(*Path(genicam.__file__).parts[-4:-1]) / "viky.cti"

# What a hole in a library could be used for, tried in the daemon's place: the error's name for each.
PROBE = """
import ctypes, errno, json, os, socket
def send(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"x", (address, 3956))
def unshare_user():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
def error(attempt, *arguments):
    try:
        attempt(*arguments)
        return "none"
    except OSError as caught:
        return errno.errorcode[caught.errno]
key = "/server.key_secret"
print(json.dumps({
    "internet": error(send, "8.8.8.8"), "loopback": error(send, "127.0.0.1"),
    "camera": error(send, "169.254.1.1"), "discovery": error(send, "255.255.255.255"),
    "packets": error(socket.socket, socket.AF_PACKET, socket.SOCK_RAW),
    "state": error(open, "/var/lib/inspectord/s1/probe", "w"),
    "recipes": error(open, "/var/lib/inspectord/recipes/probe", "w"),
    "program": error(open, "/opt/inspectord/probe.py", "a"),
    "key": error(open, "/etc/inspectord/keys" + key),
    "credential": error(open, os.environ["CREDENTIALS_DIRECTORY"] + key),
    "chown": error(os.chown, "/var/lib/inspectord/s1", os.getuid(), os.getgid()),
    "namespace": error(unshare_user),
    "home": error(os.listdir, "/root"), "init": error(os.stat, "/proc/1"),
}))
"""
ALLOWED = {"loopback", "camera", "discovery", "state", "credential"}

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("systemd-nspawn") is None,
    reason="a container needs root and systemd-nspawn (Debian package systemd-container)",
)


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    container = Container(tmp_path_factory.mktemp("systemd") / "root")
    root = container.root
    assert main(["install-service", "s1", "--root", str(root), "--prefix", str(PREFIX)]) == 0
    write_recipe(root / "var/lib/inspectord/recipes", "demo")
    write_recipe(root / "var/lib/inspectord/recipes", "ball", shape=(400, 400, 1), least=1.0)
    (root / CONFIG.relative_to("/")).write_text(tomli_w.dumps(configuration()))
    container.boot()
    container.run(PROGRAM, "keygen", "--config", str(CONFIG))
    yield container
    container.close()


def configuration():
    """A simulated line, and a camera of the simulated GenTL producer: both kinds of code in the sandbox."""
    line = {"kind": "line", "rate_hz": 20.0, "width": 64, "height": 64}
    camera = {"kind": "genicam", "cti": str(VIKY), "serial": "0", "pixel_format": "Mono8"}
    return {
        "station": "s1",
        "state_dir": "/var/lib/inspectord/s1",
        "inference": {"threads": 1, "cache_dir": "/var/cache/inspectord/s1"},
        "cameras": [
            {"name": "line", "recipe": "demo", "deadline_ms": 2000.0, "source": line},
            {"name": "viky", "recipe": "ball", "deadline_ms": 2000.0, "source": camera},
        ],
    }


@pytest.fixture
def running(container):
    container.run("systemctl", "reset-failed")
    container.run("systemctl", "start", UNIT)
    return container


def status(container):
    told = container.run(PROGRAM, "status", "--config", str(CONFIG))
    return json.loads(told[told.index("{") : told.rindex("}") + 1])


def seq(container, camera):
    return status(container)["cameras"][camera]["last_seq"]


def process_status(container):
    """Fields of /proc/PID/status of the daemon."""
    pid = container.show(UNIT, "MainPID")
    lines = container.run("cat", f"/proc/{pid}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_service_starts_and_inspects_inside_its_sandbox(running):
    """Nothing that it needs is denied: a call outside the filter kills it here."""
    running.drop_in(f"{UNIT}.service", "SystemCallErrorNumber=")
    running.run("systemctl", "restart", UNIT)
    assert running.show(UNIT, "ActiveState") == "active"
    before = {name: seq(running, name) for name in ("line", "viky")}
    time.sleep(1)
    state = status(running)
    assert state["state"] == "ready", state["troubles"]
    assert all(state["cameras"][name]["last_seq"] > last for name, last in before.items())
    found = process_status(running)
    assert (found["CapEff"], found["NoNewPrivs"], found["Seccomp"]) == ("0" * 16, "1", "2")
    assert found["Uid"].split()[0] != "0"


def test_the_sandbox_refuses_all_but_what_inspection_needs(container):
    for words in ("addr add 192.168.3.1/24 dev lo", "route replace default dev lo"):
        container.run("ip", *words.split())
    (container.root / "opt/inspectord/probe.py").write_text(PROBE)
    python = f"{PREFIX}/bin/python {PREFIX}/probe.py"
    container.run("systemctl", "stop", UNIT)
    container.drop_in(f"{UNIT}.service", f"Type=oneshot\nRestart=no\nExecStart=\nExecStart={python}")
    container.run("systemctl", "start", UNIT)
    container.drop_in(f"{UNIT}.service", "")
    told = next(line for line in container.log(UNIT).splitlines() if line.startswith('{"internet"'))
    found = json.loads(told)
    assert {name for name, error in found.items() if error == "none"} == ALLOWED, found


def test_the_secret_key_is_a_credential_that_the_daemon_can_not_read_elsewhere(running):
    key = running.root / "etc/inspectord/keys/server.key_secret"
    assert (key.stat().st_uid, key.stat().st_mode & 0o777) == (0, 0o600)
    copy = running.run("cat", f"/run/credentials/{UNIT}.service/server.key_secret")
    assert copy == key.read_text()


def test_a_reload_changes_the_recipe_in_the_same_process(running):
    pid = running.show(UNIT, "MainPID")
    recipes = running.root / "var/lib/inspectord/recipes"
    write_recipe(recipes, "demo", version="v2", limit=0.9, activate=False)
    activate_version(recipes, "demo", "v2")
    running.run("systemctl", "reload", UNIT)
    end_s = time.monotonic() + 10
    while status(running)["cameras"]["line"]["recipe"] != "demo/v2":
        assert time.monotonic() < end_s, running.log(UNIT)
    running.await_show(UNIT, "ActiveState", "active")
    assert running.show(UNIT, "MainPID") == pid


def test_a_daemon_that_hangs_is_aborted_by_the_watchdog_and_started_again(running):
    running.drop_in(f"{UNIT}.service", "WatchdogSec=2")
    running.run("systemctl", "restart", UNIT)
    pid, boot_id = running.show(UNIT, "MainPID"), status(running)["boot_id"]
    restarts = int(running.show(UNIT, "NRestarts"))
    running.run("kill", "-STOP", pid)
    running.await_show(UNIT, "Result", "watchdog")
    running.await_show(UNIT, "NRestarts", str(restarts + 1))
    running.await_show(UNIT, "ActiveState", "active")
    assert running.show(UNIT, "MainPID") != pid
    assert status(running)["boot_id"] != boot_id


def test_a_stop_is_clean_and_leaves_no_process(running):
    running.run("systemctl", "stop", UNIT)
    assert running.show(UNIT, "Result") == "success"
    assert '"event": "stopped"' in running.log(UNIT)
    assert not [command for command in running.processes() if "inspectord" in command]


def test_wrong_settings_are_not_tried_again_and_again(container):
    (container.root / "etc/inspectord/wrong.toml").write_text("cameras = 3\n")
    container.run("systemctl", "start", "inspectord@wrong", check=False)
    container.await_show("inspectord@wrong", "ActiveState", "failed")
    assert container.show("inspectord@wrong", "ExecMainStatus") == "78"
    assert container.show("inspectord@wrong", "NRestarts") == "0"
    assert "wrong.toml: cameras" in container.log("inspectord@wrong")


def test_a_station_without_a_key_says_what_is_missing(running):
    running.run("systemctl", "stop", UNIT)
    key = running.root / "etc/inspectord/keys/server.key_secret"
    key.rename(key.with_suffix(".away"))
    running.run("systemctl", "start", UNIT, check=False)
    key.with_suffix(".away").rename(key)
    running.await_show(UNIT, "ActiveState", "failed")
    assert "there is no key /etc/inspectord/keys/server.key_secret" in running.log(UNIT)
