"""Sign files and verify signatures with local keys, through OpenSSF's model-signing (FILE.sig, a sigstore bundle).

What is hashed are bytes that the caller holds, so that the caller can parse the very bytes that were verified. The
files are those of `model_signing sign key` and `verify key`, for a model of one file. Imports model-signing when used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write

SIGNATURE_SUFFIX = ".sig"
_LARGEST_SIGNATURE = 1 << 20


def signature_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file's signature: its name with .sig added."""
    return Path(f"{os.fspath(path)}{SIGNATURE_SUFFIX}")


def new_signing_keys() -> tuple[bytes, bytes]:
    """Return a new private key (ECDSA on the curve P-256) and its public key, as the content of PEM files.

    Raises:
        UserError: the package cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise _not_installed(error) from error
    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret, private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign_files(files: Mapping[str, bytes], name: str, private_key: Path, signature: Path) -> None:
    """Write the signature of files.

    Args:
        files: contents by name; a single file has the name ".", as for model-signing.
        name: of the model, informative.
        private_key: PEM file of an elliptic curve (P-256, P-384, P-521), not encrypted.
        signature: file to write, replaced if it exists.

    Raises:
        UserError: model-signing is not installed, no private key, or the file cannot be written.
    """
    signing = _import("signing")
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except OSError as error:
        raise UserError(f"--key {private_key}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # cryptography raises ValueError, TypeError and its own, as the content may be
        raise UserError(
            f"--key {private_key}: is not a private key to sign with; give one of lit-vision protect keygen --signing"
        ) from error
    config.set_hashing_config(_held_files(files, name))
    atomic_write(signature, lambda file: config.sign(Path(name), file))


def verify_files(files: Mapping[str, bytes], path: Path, signature: Path, public_key: Path, flag: str) -> None:
    """Check that a signature of a key is one of these bytes.

    Args:
        files: contents by name, as for `sign_files`.
        path: of the model, for messages.
        signature: the file beside it.
        public_key: PEM file.
        flag: that names the key, for messages.

    Raises:
        UserError: model-signing is not installed, no such key or signature, another key, or other bytes.
    """
    verifying = _import("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except OSError as error:
        raise UserError(f"{flag} {public_key}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # as for private keys
        raise UserError(
            f"{flag} {public_key}: is not a public key; give the .pub of lit-vision protect keygen --signing"
        ) from error
    if not signature.is_file():
        raise UserError(f"{path}: has no signature {signature.name} beside it ({flag}); sign it, or take a signed copy")
    refused = (
        f"{path}: its signature {signature.name} is not one of {public_key} for these bytes ({flag}); do not use it"
    )
    if signature.stat().st_size > _LARGEST_SIGNATURE:
        raise UserError(refused)
    config.set_hashing_config(_held_files(files, path.name))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a note on signatures of old versions
            config.verify(path, signature)
    except Exception as error:  # a signature is a stranger's file: json, base64, protobuf and cryptography may raise
        raise UserError(refused) from error


def _held_files(files: Mapping[str, bytes], name: str) -> Any:
    """Return model-signing's configuration of hashes that hashes these bytes and reads no file."""
    hashing, manifest = _import("hashing"), _import("manifest")

    class HeldFiles(hashing.Config):  # type: ignore[name-defined]
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            items = []
            for file, content in files.items():
                digest = hashing.hashing.Digest("sha256", hashlib.sha256(content).digest())
                items.append(manifest.FileManifestItem(path=PurePosixPath(file), digest=digest))
            method = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
            return manifest.Manifest(name, items, manifest.SerializationType.from_args(method))

    return HeldFiles()


def _import(module: str) -> Any:
    """Return a module of model-signing.

    urllib3, which comes along, would bind a port of ::1 to learn whether there is IPv6; it is not asked to.
    """
    with_ipv6, first = socket.has_ipv6, "urllib3" not in sys.modules
    try:
        socket.has_ipv6 = False
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise _not_installed(error) from error
    finally:
        socket.has_ipv6 = with_ipv6
        if first and (connection := sys.modules.get("urllib3.util.connection")):
            connection.HAS_IPV6 = with_ipv6  # type: ignore[attr-defined]


def _not_installed(error: ImportError) -> UserError:
    return UserError(f"signatures: {error.name} is not installed; pip install 'lit-vision[protect]'")
