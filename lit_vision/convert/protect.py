"""Seal, unseal, sign and verify the file of a model, make keys, and look for a watermark in it.

io/sealed.py has the format of sealed files, io/signatures.py the signatures, methods/watermark.py the mark. README.md
says what each does not protect from.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.pruned import places_before_pruning
from lit_vision.errors import UserError
from lit_vision.io import sealed, signatures
from lit_vision.io.atomic import atomic_path, atomic_write
from lit_vision.io.sealed import SEALED_SUFFIX, MasterKey
from lit_vision.methods.watermark import WatermarkReading, read_watermark, watermark_layer
from lit_vision.predict.models import load_method, resolve_model_file
from lit_vision.predict.writers import check_not_existing, check_output_path
from lit_vision.weights.protected_files import held_file, model_protection, read_model_files

if TYPE_CHECKING:
    from torch import Tensor


def make_keys(path: Path, signing: bool = False) -> list[Path]:
    """Write a new key that only its owner can read, and return the files.

    Args:
        path: a new file; for signing it holds the private key, and `path`.pub the public one.
        signing: make a pair of keys to sign and verify with; else one to seal and mark with.

    Raises:
        UserError: a file exists already, or cannot be written.
    """
    public = Path(f"{path}.pub")
    if signing:
        check_not_existing(public, False, "keygen")
        private_text, public_text = signatures.new_signing_keys()
    else:
        private_text = sealed.new_key_text().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            file.write(private_text)
        if signing:
            public.write_bytes(public_text)
    except FileExistsError as error:
        raise UserError(f"keygen {path}: exists already, and a lost key opens nothing; choose another name") from error
    except OSError as error:
        raise UserError(f"keygen {path}: cannot be written ({error.strerror}); choose another place") from error
    return [path, public] if signing else [path]


def seal_model(model: str | Path, key: MasterKey, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write a sealed copy of a model's file; the model itself stays as it is. No plaintext is written.

    Args:
        model: a run's folder or a model's file; an .xml takes its .bin along.
        key: opens it again.
        out: the copy; None is the file's name with .sealed added.
        overwrite: replace `out` if it exists.

    Returns:
        The copy's path.

    Raises:
        UserError: no such model, one that is sealed already, or a file that exists or cannot be written.
    """
    source = resolve_model_file(model)
    if source.suffix.lower() == SEALED_SUFFIX:
        raise UserError(f"{source}: is sealed already; give the model that it was made of")
    if out is not None and not str(out).endswith(SEALED_SUFFIX):
        raise UserError(f"--out {out}: a sealed model's name ends in {SEALED_SUFFIX}; add it")
    path = check_output_path(out or f"{source}{SEALED_SUFFIX}", overwrite)
    parts = list(read_model_files(source).values())
    pieces = sealed.seal(parts, source.suffix.lower(), key)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.writelines(pieces)

    atomic_write(path, write)
    return path


def unseal_model(model: str | Path, key: MasterKey, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write the model inside a sealed file in plain; returns its path.

    Args:
        model: a file of `seal_model`.
        key: that it was sealed with.
        out: with the ending of the model inside; None is the name without .sealed.
        overwrite: replace `out` if it exists.

    Raises:
        UserError: no sealed file, another key, a damaged file, or a file that exists or cannot be written.
    """
    source = resolve_model_file(model)
    if source.suffix.lower() != SEALED_SUFFIX:
        raise UserError(f"{source}: is not sealed; give a file of lit-vision protect seal")
    with model_protection(key):
        held = held_file(source)
    assert held is not None  # as the name ends in .sealed
    stem = source.with_suffix("")
    default = stem if stem.suffix.lower() == held.suffix else Path(f"{stem}{held.suffix}")
    if out is not None and not str(out).lower().endswith(held.suffix):
        raise UserError(f"--out {out}: the model inside is a {held.suffix}; end its name so")
    path = check_output_path(out or default, overwrite)
    if len(held.parts) > 1:
        check_not_existing(path.with_suffix(".bin"), overwrite)
    with atomic_path(path) as temporary:
        for file, content in zip((temporary, temporary.with_suffix(".bin")), held.parts):
            file.write_bytes(content)
    return path


def sign_model(model: str | Path, private_key: Path, overwrite: bool = False) -> Path:
    """Write the signature of a model's file beside it, FILE.sig; returns its path.

    Args:
        model: a run's folder, or a model's file, sealed or not; an .xml is signed with its .bin.
        private_key: PEM file of an elliptic curve.
        overwrite: replace a signature that is there.

    Raises:
        UserError: no such model, no private key, a signature that exists, or model-signing is not installed.
    """
    source = resolve_model_file(model)
    signature = check_output_path(signatures.signature_path(source), overwrite, "sign")
    signatures.sign_files(read_model_files(source), source.name, private_key, signature)
    return signature


def verify_model(model: str | Path, public_key: Path) -> Path:
    """Check the signature beside a model's file, of which nothing is parsed; returns the model's path.

    Raises:
        UserError: no such model, no signature, another key's or of other bytes, or model-signing is not installed.
    """
    source = resolve_model_file(model)
    files = read_model_files(source)
    signatures.verify_files(files, source, signatures.signature_path(source), public_key, "--key")
    return source


def check_watermark(model: str | Path, key: MasterKey) -> WatermarkReading:
    """Return how many bits of the watermark of a key a model's convolution gives wrongly, and the p-value.

    Of a pruned model the mark may be older or younger than the pruning. Both are read: with the channels in their
    places of before, and as the model is. The better reading is returned, its p-value doubled.

    Args:
        model: a run's folder, a checkpoint or a .safetensors; a torch network is needed.
        key: of the file that `Classifier(watermark=...)` was given.

    Raises:
        UserError: no such model, another format, or no convolution that can hold the mark.
    """
    source = resolve_model_file(model)
    if source.suffix.lower() not in (".ckpt", ".pt", ".pth", ".safetensors"):
        raise UserError(f"{source}: a mark is read from torch's weights; give a run, its .ckpt or a .safetensors")
    method, _ = load_method(source)
    readings = [read_watermark(weight, key.secret, name) for name, weight in _marked_weights(method.backbone)]
    best = min(readings, key=lambda reading: reading.p_value)
    return replace(best, p_value=min(1.0, len(readings) * best.p_value))


def _marked_weights(backbone: Backbone) -> list[tuple[str, Tensor]]:
    """Return name and weight of the convolutions that may hold the mark: one, or two of a pruned model.

    Raises:
        UserError: no convolution can.
    """
    pruned = backbone.config.get("pruned")
    if pruned is None:
        return [watermark_layer(backbone)]
    before = Backbone(**{name: value for name, value in backbone.config.items() if name != "pruned"})
    name, weight = watermark_layer(before)
    now = backbone.get_submodule(name).weight.detach()
    found = [(name, places_before_pruning(now, pruned.get(name.removeprefix("model."), {}), weight.shape))]
    try:
        return [*found, watermark_layer(backbone)]
    except UserError:  # too small by now, so the mark cannot be younger
        return found
