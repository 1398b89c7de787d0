"""Signatures: whose corpus it is, and that it is still the one that was signed. By ed25519, over the manifest's bytes.

The last manifest names every shard with its sha256 and the results of the stages before by their digests; so whoever
holds it, its signature and the public key can check the whole. Beside MANIFEST.json lie `MANIFEST.json.sig`, the 64
bytes of the signature, and `MANIFEST.json.pub`, the key that it can be checked with: what anyone's tools read.

    ssh-keygen or openssl ─► key ─► sign ─► MANIFEST.json.sig ─► check, with a public key that was got elsewhere
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from sharding.storage.output import Output

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_MAX_KEY_BYTES = 1 << 16
_MAX_MANIFEST_BYTES = 1 << 32
_MAKE_ONE = "`ssh-keygen -t ed25519 -f KEY` makes one"


def sign(output: storage.Location, key_file: storage.Location) -> str:
    """Sign the finished corpus.

    Args:
        output: the run's output folder.
        key_file: an ed25519 private key without a passphrase, as OpenSSH or in PEM.

    Returns:
        The fingerprint of its public key, as ssh-keygen shows it.

    Raises:
        RequestError: the file is no such key, or `cryptography` isn't installed.
        MillError: the output holds no finished run, or the store refused.
    """
    key = _private_key(key_file)
    at = Output(os.fspath(output))
    manifest.require(output, manifest.STAGES[-1])
    if not storage.exists(at.success):
        raise MillError(f"{at.success} is missing: the run did not finish; sign when it has")
    signature = key.sign(storage.read_bytes(at.manifest("pack"), _MAX_MANIFEST_BYTES))
    storage.write_bytes(at.public_key, _spelled(key.public_key()))
    storage.write_bytes(at.signature, signature)
    return fingerprint(key.public_key())


def unsigned(output: storage.Location, public_key_file: storage.Location) -> str | None:
    """What is wrong with the signature of an output; None where its manifest is the one that the key's owner signed.

    Args:
        output: the run's output folder.
        public_key_file: the owner's ed25519 public key, as OpenSSH or in PEM; never the one beside the manifest, which
            anyone may have put there.

    Raises:
        RequestError: the file is no such key, or `cryptography` isn't installed.
        MillError: the store refused.
    """
    key = _public_key(public_key_file)
    from cryptography.exceptions import InvalidSignature

    at = Output(os.fspath(output))
    if not storage.exists(at.signature):
        return "is not there: the corpus is not signed; its owner signs it with `thoughtmill sign`"
    signature = storage.read_bytes(at.signature, _MAX_KEY_BYTES)
    try:
        key.verify(signature, storage.read_bytes(at.manifest("pack"), _MAX_MANIFEST_BYTES))
    except InvalidSignature:
        beside = storage.read_bytes(at.public_key, _MAX_KEY_BYTES) if storage.exists(at.public_key) else b""
        if beside and beside.split()[:2] != _spelled(key).split()[:2]:
            return f"was made with another key than {public_key_file} ({fingerprint(key)})"
        return "is not that of the manifest beside it: one of them was changed since the corpus was signed"
    return None


def fingerprint(key: Ed25519PublicKey) -> str:
    """The fingerprint of a key as ssh-keygen shows it: "SHA256:" and 43 characters."""
    blob = base64.b64decode(_spelled(key).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def fingerprint_in(public_key_file: storage.Location) -> str:
    """The fingerprint of a public key in a file.

    Raises:
        RequestError: see `unsigned`.
    """
    return fingerprint(_public_key(public_key_file))


def _spelled(key: Ed25519PublicKey) -> bytes:
    """The line that OpenSSH keeps in a .pub file."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def _private_key(file: storage.Location) -> Ed25519PrivateKey:
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _read(file)
    load = serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
    try:
        key = load(data, password=None)
    except TypeError as error:
        said = f"{file} has a passphrase: `ssh-keygen -p -f COPY` takes it from a copy, or take a key of its own"
        raise RequestError(f"--key: {said}; {_MAKE_ONE}") from error
    except Exception as error:
        raise RequestError(f"--key: {file} is no private key in OpenSSH's form or in PEM: {_MAKE_ONE}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RequestError(f"--key: {file} is a key of another kind than ed25519: {_MAKE_ONE}")
    return key


def _public_key(file: storage.Location) -> Ed25519PublicKey:
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = _read(file)
    load = (
        serialization.load_pem_public_key if data.lstrip().startswith(b"-----") else serialization.load_ssh_public_key
    )
    try:
        key = load(data)
    except Exception as error:
        said = "is no public key in OpenSSH's form or in PEM: it is the file that ends in .pub"
        raise RequestError(f"--public-key: {file} {said}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise RequestError(f"--public-key: {file} is a key of another kind than ed25519: {_MAKE_ONE}")
    return key


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise RequestError("signatures need cryptography: pip install 'thoughtmill[sign]'") from error
    return serialization


def _read(file: storage.Location) -> bytes:
    try:
        with Path(file).open("rb") as opened:
            return opened.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise RequestError(f"{file}: cannot read the key: {error.strerror}") from error
