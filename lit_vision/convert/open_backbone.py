"""Open the backbone of any file of weights: this project's, timm's, or another project's that `import` knows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.backbones.backbone import Backbone
from lit_vision.convert.import_source import config_of_timm_export, license_of, resolve_source
from lit_vision.convert.import_target import build
from lit_vision.convert.import_writer import statistics
from lit_vision.errors import UserError
from lit_vision.io.checkpoint_digest import MANIFEST
from lit_vision.predict.models import load_method, resolve_model_file
from lit_vision.weights.checkpoint_layouts import (
    OUTSIDE,
    read_file_and_content,
    stored_hyper_parameters,
    to_common_keys,
)
from lit_vision.weights.compatibility import BACKBONE, METHODS, UNKNOWN
from lit_vision.weights.detect_architecture import detect_architecture
from lit_vision.weights.load import load_common
from lit_vision.weights.model_metadata import METADATA_KEY

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OpenedBackbone:
    """A backbone and what its file says of it.

    Attributes:
        backbone: on the CPU, with the file's weights.
        mean, std: of the pixels, per channel, in [0, 1].
        size: side of the images that it was trained on, pixels; None if the file does not say it, or not square.
        license: of the weights; "" if not stated.
        file: that was read.
    """

    backbone: Backbone
    mean: Sequence[float]
    std: Sequence[float]
    size: int | None
    license: str
    file: Path


def open_backbone(source: str | os.PathLike[str]) -> OpenedBackbone:
    """Open the backbone of a run's folder, a folder of the Hub or a file; heads, decoders and projections are left out.

    Raises:
        UserError: no such path, no weights in it, a file that needs `lit-vision import` because its shapes do not
            decide the architecture, or that is damaged.
        PartialMatchError: keys do not fit; with the table.
    """
    path = Path(source).expanduser()
    config: Mapping[str, Any] = {}
    if path.is_dir() and ((path / "checkpoints").is_dir() or (path / MANIFEST).is_file()):
        path = resolve_model_file(path)
    else:
        path, config = resolve_source(path)
    tensors, metadata, content = read_file_and_content(path)
    try:
        state, layout = to_common_keys(tensors, metadata)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    described = "lit_vision" in metadata or "backbone" in stored_hyper_parameters(metadata)
    if layout.startswith(UNKNOWN) or (described and (layout in METHODS or layout in ("Dense", BACKBONE))):
        return _open_own(path, metadata, content)
    if not config and "architecture" in metadata:
        config = config_of_timm_export(metadata)
    return _open_foreign(path, state, layout, metadata, config)


def _open_own(path: Path, metadata: Mapping[str, str], content: object) -> OpenedBackbone:
    """Open a file of this project; `content` is that of a torch.save file."""
    method, description = load_method(path)
    written = content.get("card") if isinstance(content, dict) else json.loads(metadata.get(METADATA_KEY) or "{}")
    size = (written or {}).get("size") or method.backbone.config["img_size"] or json.loads(metadata.get("size", "null"))
    mean, std = ([round(float(v), 6) for v in values] for values in (method.mean, method.std))
    license = description.license or metadata.get("license", "")
    return OpenedBackbone(method.backbone, mean, std, size if isinstance(size, int) else None, license, path)


def _open_foreign(
    path: Path, state: dict[str, Tensor], layout: str, metadata: dict[str, str], config: Mapping[str, Any]
) -> OpenedBackbone:
    """Open a file of another project; `state` is in the common form."""
    state = {key: value for key, value in state.items() if not key.startswith(("decoder.", "projection.", OUTSIDE))}
    name, arguments = detect_architecture(state, config, layout=layout)
    if name is None:
        raise UserError(
            f"{path}: its shapes do not decide the architecture; convert it first: lit-vision import {path} "
            "--backbone NAME --out OUT.safetensors"
        )
    backbone, state, layout = build(name, arguments, state, layout, config, path, method_args={}, backbone_only=True)
    assert isinstance(backbone, Backbone)
    report = load_common(backbone, state, layout, metadata, path)
    pixels, _ = statistics(backbone, report, config, {})
    size = arguments.get("img_size")
    license = license_of(layout, metadata, config)
    return OpenedBackbone(
        backbone, pixels["mean"], pixels["std"], size if isinstance(size, int) else None, license, path
    )
