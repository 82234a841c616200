"""Who vouches for a recipe: an Ed25519 signature beside recipe.toml, over the recipe's content hash.

`signature` is JSON: {"public_key": BASE64, "signature": BASE64}. It is not part of the recipe, whose content
hash is the same before and after. Needs the cryptography package, which only those load who check or sign.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inspectord.errors import RecipeError, SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FILE = "signature"
DOMAIN = b"inspectord recipe v1\n"  # a signature made for anything else never fits a recipe
LARGEST_BYTES = 4096  # of a key or a signature file


@dataclass(frozen=True, slots=True)
class Signature:
    """What the file `signature` says; nothing is proven by it until its key is known and it was checked."""

    public_key: bytes  # 32 bytes
    value: bytes  # 64 bytes

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public_key)

    def fits(self, product: str, content_hash: str) -> bool:
        """True where the recipe was signed with the key that is named here."""
        return _fits(_library_key(self.public_key), self.value, signed_bytes(product, content_hash))


class TrustedKey:
    """The public key of security.trusted_key: only what its private half signed is run."""

    def __init__(self, path: Path) -> None:
        """Raises SettingsError where path is no Ed25519 public key, or cryptography is not installed."""
        check_library()
        self._path = path
        self._key = _read_public_key(path)
        self.fingerprint = fingerprint(self._key.public_bytes_raw())

    def check(self, recipe: Path, product: str, content_hash: str) -> None:
        """Raises RecipeError for a recipe folder that is unsigned, or whose signature is not of this key."""
        step = f"`calibrate sign {product} {recipe.name} --key PRIVATE` with the private half of {self._path}"
        found = read_signature(recipe)
        if found is None:
            raise RecipeError(f"recipe {recipe} is not signed; use {step}")
        if found.fingerprint != self.fingerprint:
            raise RecipeError(
                f"recipe {recipe} is signed by {found.fingerprint[:16]}, trusted is {self.fingerprint[:16]}; "
                f"use {step}"
            )
        if not _fits(self._key, found.value, signed_bytes(product, content_hash)):
            raise RecipeError(
                f"recipe {recipe}: its signature is not of these contents; restore it, or use {step}"
            )


def read_signature(recipe: Path) -> Signature | None:
    """The signature of a recipe folder, None where it has none. Raises RecipeError where it is damaged."""
    path = recipe / FILE
    try:
        table = json.loads(_bounded(path))
        found = Signature(
            *(base64.b64decode(table[name], validate=True) for name in ("public_key", "signature"))
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"{path} is damaged; sign the recipe again with `calibrate sign`") from error
    if len(found.public_key) != 32 or len(found.value) != 64:
        raise RecipeError(f"{path} is damaged; sign the recipe again with `calibrate sign`")
    return found


def signed_bytes(product: str, content_hash: str) -> bytes:
    """What is signed: content_hash covers recipe.toml and, through it, every file of the recipe."""
    return DOMAIN + f"{content_hash}\n{product}\n".encode()


def fingerprint(public_key: bytes) -> str:
    """SHA-256 of a raw Ed25519 public key, as 64 hexadecimal digits."""
    return hashlib.sha256(public_key).hexdigest()


def has_library() -> bool:
    from importlib.util import find_spec

    return find_spec("cryptography") is not None


def check_library() -> None:
    """Raises SettingsError where signatures can't be checked on this box."""
    if not has_library():
        raise SettingsError(
            "signatures need the cryptography package, which is not installed; `pip install cryptography`"
        )


def _read_public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_bounded(path))
    except OSError as error:
        raise SettingsError(
            f"can't read security.trusted_key {path}: {error.strerror}; correct it"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(
            f"{path} is no public key in PEM; give the signing.pub.pem of `calibrate keygen`"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{path} is no Ed25519 key; give the signing.pub.pem of `calibrate keygen`")
    return key


def _bounded(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")  # a pipe would be waited for
    with path.open("rb") as file:
        return file.read(LARGEST_BYTES)


def _library_key(public_key: bytes) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(public_key)


def _fits(key: Ed25519PublicKey, value: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(value, signed)
    except InvalidSignature:
        return False
    return True
