"""Curve keys as files, in the format of pyzmq's zmq.auth: made, carried to the gateways, and read.

    KEYS/server.key_secret  the daemon's; never leaves the box
    KEYS/server.key         its public half; every client needs it
    KEYS/NAME.key_secret    a client's, NAME = local on the box itself; carried to a gateway and deleted here
    KEYS/allowed/NAME.key   public keys of the clients that may connect

Needs pyzmq and the standard library, for gateways.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from inspectord.errors import SettingsError

SERVER, LOCAL = "server", "local"
LARGEST_BYTES = 64 * 1024  # a key file has 400


@dataclass(frozen=True, slots=True)
class Keys:
    """What a client needs to be let in, and to know whom it talks to; keys are Z85 text of 40 characters."""

    server: str
    public: str
    secret: str

    @classmethod
    def load(cls, folder: str | Path, name: str | None = None) -> Keys:
        """From folder/server.key and folder/NAME.key_secret; without a name `local`, or the only one there.

        Raises SettingsError where one is missing, no key, or readable by others.
        """
        folder = Path(folder)
        secret = folder / f"{name or _only_client(folder)}.key_secret"
        public_key, secret_key = read_secret(secret)
        return cls(read_public(folder / f"{SERVER}.key"), public_key, secret_key)

    def apply(self, socket: zmq.Socket[Any]) -> None:
        """To be called before connect."""
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, self.server)
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.secret)


def read_public(path: Path) -> str:
    """The public key in a file, which may lie in a folder that others fill. Raises SettingsError."""
    return _read(path)[0]


def read_secret(path: Path, others_may_read: bool = False) -> tuple[str, str]:
    """The public and the secret key in a file. Raises SettingsError, also where it is no longer a secret."""
    public, secret = _read(path)
    if secret is None:
        raise SettingsError(f"{path} has no secret key; give the .key_secret file that belongs to it")
    found = path.stat()
    # As ssh does: somebody else's file, as below a service manager, is their responsibility.
    if found.st_uid == os.getuid() and found.st_mode & 0o077 and not others_may_read:
        raise SettingsError(f"{path} can be read by others; run: chmod 600 {path}")
    return public, secret


def server_keys(folder: Path) -> tuple[str, str]:
    """The daemon's keys: systemd's credential server.key_secret where there is one, else the folder's.

    Raises SettingsError with the command that makes them.
    """
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(given, f"{SERVER}.key_secret") if given else None
    # The unit gives a text that is no key where there is none: a missing credential would fail it.
    if credential is not None and credential.exists() and b"secret-key" in credential.read_bytes():
        return read_secret(credential, others_may_read=True)
    path = folder / f"{SERVER}.key_secret"
    if not path.exists():
        raise SettingsError(
            f"security.mode is curve and there is no key {path}; make it with "
            f"`inspectord keygen --keys {folder}`"
        )
    return read_secret(path)


def keygen(folder: Path, client: str) -> list[str]:
    """Make what is missing of the server's and a client's keys, and let the client in; tells what was done.

    Nothing is ever overwritten. Raises SettingsError where the client's name can't be used (again).
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", client) or client == SERVER:
        raise SettingsError(f"no client can be called {client!r}; use up to 40 letters, digits, - and _")
    secret, allowed = folder / f"{client}.key_secret", folder / "allowed" / f"{client}.key"
    if allowed.exists() and not secret.exists():
        raise SettingsError(
            f"the client {client} has its key already; choose another name, or delete {allowed} first"
        )
    try:
        for each in (folder, allowed.parent):
            each.mkdir(parents=True, exist_ok=True)
        done = _pair(folder / f"{SERVER}.key_secret", folder / f"{SERVER}.key")
        return done + _pair(secret, allowed)
    except OSError as error:
        raise SettingsError(
            f"can't write keys to {folder} ({error.strerror}); run as its owner, or give another with --keys"
        ) from error


def _pair(secret: Path, public: Path) -> list[str]:
    """Both halves in their places; a secret that is there is kept, and its public half made from it."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=secret.parent) as folder:  # mode 0700
        made_public, made_secret = (Path(path) for path in create_certificates(folder, "key"))
        made_secret.chmod(0o600)
        made_public.chmod(0o644)
        done = [f"{'made' if _place(made_secret, secret) else 'kept'} {secret}"]
        key = read_secret(secret)[0]
        if public.exists() and read_public(public) != key:
            raise SettingsError(f"{public} does not belong to {secret}; move one of the two away")
        if read_public(made_public) != key:
            text = made_public.read_text(encoding="utf-8")
            made_public.write_text(text.replace(read_public(made_public), key), encoding="utf-8")
        return [*done, f"{'made' if _place(made_public, public) else 'kept'} {public}"]


def _place(made: Path, target: Path) -> bool:
    """A link appears whole or not at all, and never over another file; False where there is one."""
    with made.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(made, target)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> tuple[str, str | None]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_BYTES:  # a pipe would never end
            raise ValueError("no key file")
        keys = load_certificate(path)
        if any(len(z85.decode(key)) != 32 for key in keys if key is not None):
            raise ValueError("not 40 characters of Z85")
        public, secret = (key.decode("ascii") if key is not None else None for key in keys)
    except OSError as error:
        raise SettingsError(
            f"can't read the key {path} ({error.strerror}); make keys with `inspectord keygen`"
        ) from error
    except (ValueError, KeyError, IndexError, UnicodeError, struct.error) as error:
        raise SettingsError(f"{path} is no key of `inspectord keygen`; copy it again") from error
    return str(public), secret


def _only_client(folder: Path) -> str:
    names = {path.name.removesuffix(".key_secret") for path in folder.glob("*.key_secret")} - {SERVER}
    if LOCAL in names:
        return LOCAL
    if len(names) != 1:
        raise SettingsError(
            f"{'several' if names else 'no'} client keys (NAME.key_secret) in {folder}; "
            f"on the daemon's box make them with `inspectord keygen --keys {folder}`, on another copy there "
            "the two files that `inspectord keygen --client NAME` named"
        )
    return names.pop()
