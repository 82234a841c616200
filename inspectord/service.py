"""`inspectord install-service`: the systemd files of a station, from this package to where systemd looks."""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import inspectord
from inspectord.errors import AccessError, InspectordError, SettingsError, StateError

SHIPPED = files(inspectord) / "systemd"
SHIPPED_PREFIX = "/opt/inspectord"  # in the ExecStart= of the shipped unit
SHIPPED_STATION = "station1"  # in the shipped configuration
# ProtectHome= and PrivateTmp= of the unit hide these from the daemon.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
UNIT = Path("/etc/systemd/system/inspectord@.service")
SYSUSERS = Path("/etc/sysusers.d/inspectord.conf")
TMPFILES = Path("/etc/tmpfiles.d/inspectord.conf")


@dataclass(frozen=True, slots=True)
class Target:
    """A file to be written; path as the running system will see it."""

    path: Path
    text: str
    replace: bool = True  # False: what is there already belongs to the site


def install(station: str, root: Path, prefix: Path | None, dry_run: bool) -> None:
    """Write the files of a station below root and print what to do next; dry_run only prints.

    prefix is the virtual environment as the service will see it, None for this one. Raises SettingsError for
    a name or place that can't work, AccessError without the rights, StateError where the disk refuses.
    """
    targets = plan(station, prefix)
    try:
        refuse_hidden([prefix] if prefix else own_places())
    except SettingsError as error:
        if not dry_run:
            raise
        print(f"warning: {error}", file=sys.stderr)
    for target in targets:
        place = root / target.path.relative_to("/")
        keep = not target.replace and place.exists()
        if dry_run:
            print(f"==> {place}{' (there already, kept as it is)' if keep else ''} <==")
            if not keep:
                print(target.text)
        else:
            print(f"{'kept' if keep else 'wrote'} {place}")
            if not keep:
                _write(place, target.text)
    print("next:")
    for command, why in next_commands(station, (prefix or Path(sys.prefix)) / "bin"):
        print(f"  {command:<72} # {why}")


def plan(station: str, prefix: Path | None) -> list[Target]:
    """What belongs where. Raises SettingsError."""
    _check_station(station)
    return [
        Target(UNIT, _unit(prefix or Path(sys.prefix))),
        Target(SYSUSERS, _shipped("inspectord.sysusers")),
        Target(TMPFILES, _shipped("inspectord.tmpfiles")),
        Target(
            config_path(station), _shipped("inspectord.toml").replace(SHIPPED_STATION, station), replace=False
        ),
    ]


def own_places() -> list[Path]:
    """Where this program and its Python are."""
    return [Path(sys.prefix), Path(sys.executable).resolve(), Path(inspectord.__file__).resolve()]


def config_path(station: str) -> Path:
    return Path(f"/etc/inspectord/{station}.toml")


def next_commands(station: str, programs: Path) -> list[tuple[str, str]]:
    """Command and reason, in order."""
    config = config_path(station)
    return [
        (f"systemd-sysusers {SYSUSERS}", "the account"),
        (f"systemd-tmpfiles --create {TMPFILES}", "folders and their owners"),
        ("systemctl daemon-reload", "the unit"),
        (f"{programs}/inspectord keygen", "once a box, for tcp:// endpoints"),
        (f"editor {config}", "cameras, products, who may connect"),
        (f"{programs}/calibrate fit PICTURES --product P --recipes /var/lib/inspectord/recipes", "a recipe"),
        (f"{programs}/inspectord check --config {config}", "as root, before the first start"),
        (f"systemctl enable --now inspectord@{station}", "now and at every boot"),
        (f"{programs}/inspectord status --config {config}", "is it ready?"),
    ]


def refuse_hidden(paths: list[Path]) -> None:
    """Raises SettingsError for a program that the unit's sandbox would hide from itself."""
    for path in paths:
        for hidden in HIDDEN:
            if path.is_relative_to(hidden):
                raise SettingsError(
                    f"{path} is below {hidden}, which the service can't see (ProtectHome=, PrivateTmp=); "
                    f"install into a virtual environment in {SHIPPED_PREFIX}, with a Python outside {hidden}"
                )


def _check_station(station: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", station):
        raise SettingsError(f"{station!r} is no name for a station; use up to 40 letters, digits, - and _")
    if station == "recipes":
        raise SettingsError("/var/lib/inspectord/recipes is for recipes; give the station another name")


def _unit(prefix: Path) -> str:
    # In a unit, % begins a specifier and a blank ends a word.
    program = str(prefix).replace("%", "%%")
    if not prefix.is_absolute() or re.search(r"[\s\"'\\$;]", program):
        raise SettingsError(f"{prefix} can't stand in a unit; give an absolute path without blanks or quotes")
    return _shipped("inspectord@.service").replace(SHIPPED_PREFIX, program)


def _shipped(name: str) -> str:
    return (SHIPPED / name).read_text(encoding="utf-8")


def _write(place: Path, text: str) -> None:
    """All of it or nothing: systemd may read it at any time."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as new:
            new.write(text)
        Path(new.name).chmod(0o644)
        Path(new.name).replace(place)
    except OSError as error:
        raise _cause(place, error) from error


def _cause(place: Path, error: OSError) -> InspectordError:
    if isinstance(error, PermissionError):
        return AccessError(
            f"can't write {place} ({error.strerror}); run as root, or look first with --dry-run"
        )
    return StateError(f"can't write {place} ({error.strerror}); see to its folder, then run again")
