"""The service: units that systemd accepts, and `install-service`."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import inspectord
from inspectord.cli import main
from inspectord.errors import SettingsError
from inspectord.service import plan, refuse_hidden
from inspectord.settings import load_settings

SYSTEMD = Path(__file__).parent.parent / "systemd"
UNIT = SYSTEMD / "inspectord@.service"
MOST_EXPOSURE = 2.0


def tool(*command, code=0):
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def installed(root, *more):
    """A station below root, with a program where its unit expects one."""
    program = root / "opt/inspectord/bin/inspectord"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    code = main(["install-service", "s1", "--root", str(root), "--prefix", "/opt/inspectord", *more])
    assert code == 0
    return root / "etc/systemd/system/inspectord@.service"


# The unit


def test_the_installed_unit_passes_systemd_analyze_verify(tmp_path, capsys):
    unit = installed(tmp_path)
    program = tmp_path / "opt/inspectord/bin/inspectord"
    # verify looks for programs below / only.
    unit.write_text(unit.read_text().replace("/opt/inspectord/bin/inspectord", str(program)))
    instance = unit.with_name("inspectord@s1.service")
    instance.symlink_to(unit.name)
    assert tool("systemd-analyze", "verify", "--man=no", str(instance)) == ""


def test_a_wrong_directive_would_not_pass(tmp_path):
    unit = tmp_path / "inspectord@s1.service"
    unit.write_text(UNIT.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=30
    )
    assert "WatchdogSecs" in found.stderr


def test_the_exposure_of_the_unit_is_low():
    threshold = f"--threshold={MOST_EXPOSURE * 10:.0f}"
    found = tool("systemd-analyze", "security", "--no-pager", "--offline=true", threshold, str(UNIT))
    level = float(re.search(r"exposure level for \S+: (\d+\.\d)", found).group(1))
    assert level <= MOST_EXPOSURE


def test_what_systemd_misses_in_the_unit_is_named_in_it():
    """Each point that systemd-analyze deducts for a directive that is not set has its reason in the file."""
    found = tool("systemd-analyze", "security", "--no-pager", "--offline=true", str(UNIT))
    missed = re.findall(r"^✗ (\w+)=", found, re.MULTILINE)
    assert {"MemoryDenyWriteExecute", "PrivateDevices", "PrivateNetwork"} <= set(missed)
    for directive in missed:
        assert f"{directive}=" in UNIT.read_text(), directive


def test_the_unit_waits_longer_than_a_cameras_heartbeat_before_it_starts_again():
    assert int(re.search(r"^RestartSec=(\d+)$", UNIT.read_text(), re.MULTILINE).group(1)) > 3


# Account and folders


def test_sysusers_makes_the_account(tmp_path):
    (tmp_path / "etc").mkdir()
    tool("systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "inspectord.sysusers"))
    user = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if "inspectord" in line)
    assert user.endswith(":/:/usr/sbin/nologin")
    groups = dict(line.split(":", 1) for line in (tmp_path / "etc/group").read_text().splitlines())
    assert set(groups) == {"inspectord", "video", "render"}
    assert groups["video"].endswith(":inspectord")
    assert groups["render"].endswith(":inspectord")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_tmpfiles_makes_the_shared_folders(tmp_path):
    (tmp_path / "etc/inspectord/keys").mkdir(parents=True)
    (tmp_path / "etc/inspectord/keys/server.key_secret").touch(0o644)
    tool("systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "inspectord.sysusers"))
    tool("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(SYSTEMD / "inspectord.tmpfiles"))
    group = int(
        re.search(r"^inspectord:x:(\d+)", (tmp_path / "etc/group").read_text(), re.MULTILINE).group(1)
    )
    expected = {
        "etc/inspectord": (0o755, 0),
        "etc/inspectord/keys": (0o750, group),
        "etc/inspectord/keys/allowed": (0o750, group),
        "etc/inspectord/keys/server.key_secret": (0o600, 0),
        "var/lib/inspectord": (0o755, 0),
        "var/lib/inspectord/recipes": (0o755, 0),
    }
    for name, (mode, owner_group) in expected.items():
        found = (tmp_path / name).stat()
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (mode, 0, owner_group), name


# install-service


def test_a_dry_run_prints_every_file_and_command_and_writes_nothing(tmp_path, capsys):
    assert main(["install-service", "s1", "--dry-run", "--root", str(tmp_path), "--prefix", "/opt/x"]) == 0
    told = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for target in plan("s1", Path("/opt/x")):
        assert f"==> {tmp_path}{target.path} <==\n{target.text}" in told
    assert "ExecStart=/opt/x/bin/inspectord run" in told
    following = told.split("\nnext:\n")[1]
    commands = ["systemd-sysusers", "systemd-tmpfiles", "systemctl daemon-reload", "keygen", "check --config"]
    places = [following.index(command) for command in [*commands, "systemctl enable --now inspectord@s1"]]
    assert places == sorted(places)


def test_the_installed_configuration_is_of_its_station(tmp_path):
    installed(tmp_path)
    settings = load_settings(tmp_path / "etc/inspectord/s1.toml")
    assert settings.station == "s1"
    assert settings.state_dir == Path("/var/lib/inspectord/s1")
    assert settings.inference.cache_dir == Path("/var/cache/inspectord/s1")
    assert settings.recipes_dir == Path("/var/lib/inspectord/recipes")


def test_a_second_install_keeps_the_configuration_and_renews_the_units(tmp_path):
    unit = installed(tmp_path)
    config = tmp_path / "etc/inspectord/s1.toml"
    unit.write_text("old")
    config.write_text("mine")
    installed(tmp_path)
    assert config.read_text() == "mine"
    assert "WatchdogSec=" in unit.read_text()


@pytest.mark.parametrize("place", ["/home/ann/venv", "/root/venv", "/tmp/venv", "/run/user/1/venv"])
def test_a_program_that_the_sandbox_would_hide_is_refused_and_a_dry_run_warns(place, tmp_path, capsys):
    root = ["--root", str(tmp_path)]
    assert main(["install-service", "s1", "--prefix", place, *root]) == 78
    assert f"{place} is below" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["install-service", "s1", "--dry-run", "--prefix", place, *root]) == 0
    said = capsys.readouterr()
    assert f"warning: {place} is below" in said.err
    assert "WatchdogSec=" in said.out
    refuse_hidden([Path("/opt/inspectord"), Path("/usr/bin/python3"), Path("/homework")])


@pytest.mark.parametrize("name", ["a/b", "", "../x", "a b", "recipes", "x" * 41])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(SettingsError):
        plan(name, Path("/opt/inspectord"))


def test_a_program_path_reaches_systemd_as_it_is():
    unit = plan("s1", Path("/opt/50%/v"))[0].text
    assert "ExecStart=/opt/50%%/v/bin/inspectord run" in unit
    with pytest.raises(SettingsError, match="blanks"):
        plan("s1", Path("/opt/my venv"))


def test_without_the_rights_the_answer_is_77_and_names_the_file(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("inspectord.service.tempfile.NamedTemporaryFile", refuse)  # root may write anywhere
    assert main(["install-service", "s1", "--root", str(tmp_path), "--prefix", "/opt/x"]) == 77
    assert "inspectord@.service (Permission denied); run as root" in capsys.readouterr().err


def test_an_installed_package_has_the_files_with_it():
    shipped = {path.name for path in files(inspectord).joinpath("systemd").iterdir()}
    assert shipped == {path.name for path in SYSTEMD.iterdir()}
    project = tomllib.loads((SYSTEMD.parent / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["inspectord.systemd"] == ["*"]
