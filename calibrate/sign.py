"""Keys and signatures for sites whose daemons run only recipes that somebody vouches for."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.store import owned_version
from inspectord.errors import SettingsError, StateError
from inspectord.recipe import Recipe
from inspectord.signature import FILE, check_library, fingerprint, signed_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE, PUBLIC = "signing.pem", "signing.pub.pem"


def make_keys(folder: Path) -> str:
    """Write signing.pem (PKCS8, mode 0600) and signing.pub.pem into folder; the key's fingerprint.

    Raises StateError where either is there already: a lost key can't be made again.
    """
    check_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (PRIVATE, PUBLIC):
        if os.path.lexists(folder / name):
            raise StateError(f"{folder / name} is there already; keep it, or give another folder")
    _write_new(folder / PRIVATE, private, 0o600)
    _write_new(folder / PUBLIC, public, 0o644)
    return fingerprint(key.public_key().public_bytes_raw())


def sign(recipes_dir: Path, product: str, version: str | None, key_path: Path) -> tuple[Recipe, str]:
    """Verify a version (default: the newest) and put a signature beside it; the recipe and the fingerprint.

    Raises SettingsError for a key that can't be used, RecipeError for a recipe that does not verify.
    """
    check_library()
    key = _read_private_key(key_path)
    recipe = owned_version(recipes_dir, product, version)
    public = key.public_key().public_bytes_raw()
    table = {"public_key": public, "signature": key.sign(signed_bytes(recipe.spec.product, recipe.hash))}
    text = json.dumps({name: base64.b64encode(value).decode() for name, value in table.items()}, indent=1)
    _replace(recipe.path / FILE, text.encode() + b"\n")
    return recipe, fingerprint(public)


def _read_private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SettingsError(
            f"can't read the key {path}: {error.strerror}; give another with --key"
        ) from error
    except TypeError as error:
        raise SettingsError(
            f"the key {path} is encrypted; sign with a decrypted copy: `openssl pkey -in {path} -out FILE`"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{path} is no private key in PEM; make one with `calibrate keygen`") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path} is no Ed25519 key; make one with `calibrate keygen`")
    if path.stat().st_mode & 0o077:
        raise SettingsError(f"{path} can be read by others than its owner; run `chmod 600 {path}`")
    return key


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, data: bytes) -> None:
    """The whole file or the one before it, also after a power cut."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_new(fresh, data, 0o644)
        os.replace(fresh, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
