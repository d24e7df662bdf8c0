"""Sealed files: AES-256-GCM in chunks, so that a changed, cut, reordered or swapped byte is refused. Format version 1.

header    magic, version, kind of key (0 key file, 1 passphrase), scrypt's log2 N, r, p, ending of the sealed file's
          name, chunk size, 32 random bytes (salt), 8 random bytes (nonces), 16 random bytes (scrypt's salt), 32 bytes
          that depend on the key (its check)
chunks    chunk size bytes each (the last 1 to chunk size), encrypted, each followed by its tag of 16 bytes

The key of a file and its check are HKDF-SHA256 of the master key and the salt, so no two files share a key. A nonce is
the 8 random bytes and the chunk's number (4 bytes). The associated data of a chunk are the header, its number and 1 for
the last chunk, else 0. The content is one or more parts (OpenVINO's .xml and .bin), each after its length in 8 bytes.
Sources: NIST SP 800-38D (GCM), RFC 5869 (HKDF), RFC 7914 (scrypt). Imports the package cryptography when used.
"""

from __future__ import annotations

import hmac
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_vision.errors import UsageError, UserError

SEALED_SUFFIX = ".sealed"
CHUNK_SIZE = 1 << 20
SCRYPT_LOG2_N = 17  # N = 2^17, r = 8, p = 1: 128 MiB and about half a second
_SCRYPT_ACCEPTED = range(14, 19)  # log2 N; at most 256 MiB, whatever a header asks for
_LARGEST_CHUNK = 1 << 26
_MAGIC, _VERSION = b"LVSEALED", 1
_HEADER = struct.Struct(">8sBBBBB16sI32s8s16s32s")
_NUMBER = struct.Struct(">IB")  # chunk number and last flag
_LENGTH = struct.Struct(">Q")
_TAG = 16
_KEY_BYTES = 32
_INSTALL = "needs the package cryptography; pip install 'lit-vision[protect]'"


@dataclass(frozen=True, repr=False)
class MasterKey:
    """The secret that files are sealed with: 32 bytes of a key file, or a passphrase. Never printed.

    Attributes:
        secret: the bytes.
        is_passphrase: the secret is a passphrase, of any length.
        source: the flag or file that it is from, for messages.
    """

    secret: bytes
    is_passphrase: bool
    source: str

    def __repr__(self) -> str:
        """Return the source, without the secret."""
        return f"MasterKey({self.source})"


@dataclass(frozen=True)
class SealedHeader:
    """The fields of a header; see the module."""

    is_passphrase: bool
    scrypt: tuple[int, int, int]  # log2 N, r, p
    suffix: str
    chunk_size: int
    salt: bytes
    nonce: bytes
    scrypt_salt: bytes
    key_check: bytes

    def pack(self) -> bytes:
        """Return the header's bytes."""
        fixed = (_MAGIC, _VERSION, int(self.is_passphrase), *self.scrypt, self.suffix.encode())
        return _HEADER.pack(*fixed, self.chunk_size, self.salt, self.nonce, self.scrypt_salt, self.key_check)


def read_key_file(path: str | os.PathLike[str]) -> MasterKey:
    """Return the key in a file of `lit-vision protect keygen`: 64 hexadecimal digits.

    Raises:
        UserError: no such file, or no key in it.
    """
    flag = f"--key {path}"
    try:
        with open(path, "rb") as file:
            text = file.read(200)
    except OSError as error:
        raise UserError(f"{flag}: cannot be read ({error.strerror}); check the path") from error
    if not re.fullmatch(rb"[0-9a-f]{64}\s*", text):
        raise UserError(f"{flag}: is not a key; give a file of lit-vision protect keygen")
    return MasterKey(bytes.fromhex(text.decode()), False, flag)


def new_key_text() -> str:
    """Return the content of a new key file."""
    return f"{os.urandom(_KEY_BYTES).hex()}\n"


def read_passphrase_file(path: str | os.PathLike[str]) -> MasterKey:
    """Return the passphrase on the first line of a file.

    Raises:
        UserError: no such file, or an empty first line.
    """
    flag = f"--passphrase_file {path}"
    try:
        with open(path, "rb") as file:
            line = file.readline(1 << 12).rstrip(b"\r\n")
    except OSError as error:
        raise UserError(f"{flag}: cannot be read ({error.strerror}); check the path") from error
    return passphrase(line, flag)


def read_key(key: str | os.PathLike[str] | None, passphrase_file: str | os.PathLike[str] | None) -> MasterKey | None:
    """Return the key of a key file or of a file with a passphrase; None without both.

    Raises:
        UserError: as `read_key_file` and `read_passphrase_file`. UsageError (a UserError): both are given.
    """
    if key is not None and passphrase_file is not None:
        raise UsageError("--key, --passphrase_file: a model is sealed with one of them; leave one out")
    if key is not None:
        return read_key_file(key)
    return None if passphrase_file is None else read_passphrase_file(passphrase_file)


def passphrase(secret: str | bytes, source: str) -> MasterKey:
    """Return a passphrase as a key.

    Raises:
        UserError: it is empty.
    """
    secret = secret.encode("utf-8", "surrogateescape") if isinstance(secret, str) else secret
    if not secret:
        raise UserError(f"{source}: the passphrase is empty; give one of several words")
    return MasterKey(secret, True, source)


def seal(
    parts: Sequence[bytes],
    suffix: str,
    key: MasterKey,
    chunk_size: int = CHUNK_SIZE,
    scrypt_log2_n: int | None = None,
) -> Iterator[bytes]:
    """Yield the header and the encrypted chunks of a sealed file.

    Args:
        parts: contents of the files of a model, its main file first.
        suffix: ending of the main file's name, such as ".onnx"; stored readable.
        key: what opens it.
        chunk_size: bytes encrypted at a time.
        scrypt_log2_n: of a passphrase; None is SCRYPT_LOG2_N.

    Raises:
        UserError: the package cryptography is not installed, or too many chunks.
    """
    scrypt = (scrypt_log2_n or SCRYPT_LOG2_N, 8, 1) if key.is_passphrase else (0, 0, 0)
    random = os.urandom(32), os.urandom(8), os.urandom(16)
    header = SealedHeader(key.is_passphrase, scrypt, suffix, chunk_size, *random, b"")
    file_key, check = _derive(key, header)
    header = SealedHeader(key.is_passphrase, scrypt, suffix, chunk_size, *random, check)
    packed = header.pack()
    content = memoryview(b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part)))
    count = -(-len(content) // chunk_size)
    if count > 1 << 32:
        raise UserError(f"{len(content)} bytes in chunks of {chunk_size}: are too many chunks; take larger ones")
    yield packed
    for number in range(count):
        chunk = content[number * chunk_size : (number + 1) * chunk_size]
        nonce, associated = _nonce_and_associated(packed, header.nonce, number, number == count - 1)
        yield encrypt_chunk(file_key, nonce, chunk, associated)


def open_sealed(content: bytes, path: Path, key: MasterKey) -> tuple[str, list[bytes]]:
    """Return the ending and the parts of a sealed file, once every byte of it is verified.

    Args:
        content: of the file.
        path: named in errors.
        key: the key file's or the passphrase.

    Raises:
        UserError: not a sealed file, another key, or bytes that differ from those that were sealed.
    """
    header = read_sealed_header(content, path)
    if header.is_passphrase != key.is_passphrase:
        wanted = "a passphrase (--passphrase_file)" if header.is_passphrase else "a key file (--key)"
        raise UserError(f"{path}: was sealed with {wanted}, not with {key.source}; give that")
    file_key, check = _derive(key, header)
    if not hmac.compare_digest(check, header.key_check):
        what = "passphrase" if key.is_passphrase else "key"
        raise UserError(f"{path}: {key.source} is not the {what} that it was sealed with, or its header was changed")
    packed, body = content[: _HEADER.size], memoryview(content)[_HEADER.size :]
    step, plain = header.chunk_size + _TAG, []
    count = -(-len(body) // step)
    damaged = f"{path}: differs from what was sealed (damaged, cut or changed); take another copy"
    if not 0 < count <= 1 << 32:
        raise UserError(damaged)
    from cryptography.exceptions import InvalidTag

    for number in range(count):
        nonce, associated = _nonce_and_associated(packed, header.nonce, number, number == count - 1)
        try:
            plain.append(decrypt_chunk(file_key, nonce, body[number * step : (number + 1) * step], associated))
        except (InvalidTag, ValueError) as error:
            raise UserError(damaged) from error
    return header.suffix, _split(b"".join(plain), damaged)


def read_sealed_header(content: bytes, path: Path) -> SealedHeader:
    """Return the header at the beginning of a sealed file, its values checked and not yet verified.

    Raises:
        UserError: no sealed file, one of a newer version, or values that `seal` never writes.
    """
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        raise UserError(f"{path}: is not a sealed model; give a file of lit-vision protect seal")
    _, version, kind, log2_n, r, p, suffix, chunk_size, *rest = _HEADER.unpack_from(content)
    if version != _VERSION:
        raise UserError(f"{path}: is sealed in format {version}, this version opens {_VERSION}; update lit-vision")
    ending = re.fullmatch(rb"(\.[a-z0-9]{1,15})\0*", suffix)
    known = (log2_n in _SCRYPT_ACCEPTED and (r, p) == (8, 1)) if kind else (log2_n, r, p) == (0, 0, 0)
    if kind > 1 or not known or not ending or not 0 < chunk_size <= _LARGEST_CHUNK:
        raise UserError(f"{path}: has a header that lit-vision protect seal never writes; take another copy")
    return SealedHeader(bool(kind), (log2_n, r, p), ending[1].decode(), chunk_size, *rest)


def encrypt_chunk(key: bytes, nonce: bytes, plain: bytes | memoryview, associated: bytes) -> bytes:
    """Return the AES-256-GCM encryption of some bytes and its tag of 16 bytes."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key).encrypt(nonce, plain, associated)


def decrypt_chunk(key: bytes, nonce: bytes, sealed: bytes | memoryview, associated: bytes) -> bytes:
    """Return the bytes that `encrypt_chunk` was given.

    Raises:
        cryptography.exceptions.InvalidTag: any of the arguments differs.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key).decrypt(nonce, sealed, associated)


def _nonce_and_associated(header: bytes, random: bytes, number: int, is_last: bool) -> tuple[bytes, bytes]:
    """Return nonce and associated data of a chunk."""
    return random + number.to_bytes(4, "big"), header + _NUMBER.pack(number, is_last)


def _derive(key: MasterKey, header: SealedHeader) -> tuple[bytes, bytes]:
    """Return the key of a file, and the check by which another key is told from a damaged file."""
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    except ImportError as error:
        raise UserError(f"a sealed model {_INSTALL}") from error
    secret = key.secret
    if key.is_passphrase:
        log2_n, r, p = header.scrypt
        secret = Scrypt(salt=header.scrypt_salt, length=_KEY_BYTES, n=1 << log2_n, r=r, p=p).derive(secret)
    both = HKDF(SHA256(), 2 * _KEY_BYTES, salt=header.salt, info=b"lit-vision sealed file 1").derive(secret)
    return both[:_KEY_BYTES], both[_KEY_BYTES:]


def _split(content: bytes, damaged: str) -> list[bytes]:
    """Return the parts of a verified content."""
    parts, at = [], 0
    while at < len(content):
        if at + _LENGTH.size > len(content):
            raise UserError(damaged)
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        parts.append(content[at : at + length])
        at += length
    if at != len(content):
        raise UserError(damaged)
    return parts
