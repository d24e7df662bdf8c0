"""Bytes of protected model files: sealed ones are opened in memory, signed ones checked before anything is parsed.

`model_protection` says, for a block of code, how files are opened; every reader of model files asks `held_file` first
and parses what it returns in place of the file. Within a block that requires signatures a file without one is refused,
whoever reads it. Blocks are per thread (a context variable), as models are loaded in one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from lit_vision.errors import UserError
from lit_vision.io import sealed
from lit_vision.io.sealed import SEALED_SUFFIX, MasterKey
from lit_vision.io.signatures import signature_path, verify_files


@dataclass(frozen=True)
class HeldFile:
    """A model's file in memory.

    Attributes:
        suffix: ending of its name that says its format, lower case; of a sealed one that of the file inside.
        parts: its content, and that of the .bin of an .xml.
    """

    suffix: str
    parts: list[bytes]


@dataclass
class _Protection:
    """The keys of a block and the files opened in it; see `model_protection`."""

    key: MasterKey | None
    ask_passphrase: Callable[[str], str] | None
    public_key: Path | None
    held: dict[Path, HeldFile] = field(default_factory=dict)


_current: ContextVar[_Protection | None] = ContextVar("model_protection", default=None)


@contextmanager
def model_protection(
    key: MasterKey | None = None,
    require_signature: str | os.PathLike[str] | None = None,
    ask_passphrase: Callable[[str], str] | None = None,
) -> Iterator[None]:
    """Open the model files that are read within the block with a key, and only if they are signed.

    The contents are kept until the end of the block, so that a file that is read twice has the same bytes.

    Args:
        key: opens sealed files.
        require_signature: a public key's file; files without a signature of it beside them are refused.
        ask_passphrase: called with the path of a file that was sealed with a passphrase, where there is no key.
    """
    public_key = None if require_signature is None else Path(require_signature)
    token = _current.set(_Protection(key, ask_passphrase, public_key))
    try:
        yield
    finally:
        _current.reset(token)


def held_file(path: Path) -> HeldFile | None:
    """Return the verified content of a sealed file or of one that must be signed; None for others, read from the disk.

    Raises:
        UserError: no key for a sealed file, another key, bytes that differ, no valid signature, or a file that cannot
            be read.
    """
    protection, is_sealed = _current.get() or _Protection(None, None, None), path.suffix.lower() == SEALED_SUFFIX
    if not is_sealed and protection.public_key is None:
        return None
    absolute = path.absolute()
    if absolute not in protection.held:
        protection.held[absolute] = _open(path, is_sealed, protection)
    return protection.held[absolute]


def format_suffix(path: Path) -> str:
    """Return the ending that says a model file's format, lower case; of a sealed file that of the file inside.

    Raises:
        UserError: as `held_file`, for a sealed file.
    """
    suffix = path.suffix.lower()
    held = held_file(path) if suffix == SEALED_SUFFIX else None
    return held.suffix if held else suffix


def refuse_unsigned(source: str | os.PathLike[str]) -> None:
    """Refuse weights that are no file of the user's where signatures are required.

    Raises:
        UserError: the block requires signatures.
    """
    protection = _current.get()
    if protection is not None and (key := protection.public_key) is not None:
        raise UserError(f"--require_signature {key}: {os.fspath(source)} is no signed file; export it and sign that")


def read_model_files(path: Path) -> dict[str, bytes]:
    """Return the contents of a model's files by the names that signatures give them: ".", or .xml and .bin.

    Raises:
        UserError: a folder (a sharded checkpoint), or a file that cannot be read.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder, which is neither sealed nor signed; export it as one file first")
    files = {".": path} if path.suffix.lower() != ".xml" else {p.name: p for p in (path, path.with_suffix(".bin"))}
    try:
        return {name: file.read_bytes() for name, file in files.items()}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check the path") from error


def _open(path: Path, is_sealed: bool, protection: _Protection) -> HeldFile:
    files = read_model_files(path)
    if protection.public_key is not None:
        verify_files(files, path, signature_path(path), protection.public_key, "--require_signature")
    parts = list(files.values())
    if not is_sealed:
        return HeldFile(path.suffix.lower(), parts)
    key = protection.key
    if key is None and protection.ask_passphrase and sealed.read_sealed_header(parts[0], path).is_passphrase:
        key = sealed.passphrase(protection.ask_passphrase(str(path)), "the passphrase")
    if key is None:
        raise UserError(
            f"{path}: is sealed; predict, serve, embed, search and fewshot and lit_vision.load open it with key "
            "or passphrase_file (--key, --passphrase_file), and lit-vision protect unseal writes it in plain"
        )
    return HeldFile(*sealed.open_sealed(parts[0], path, key))
