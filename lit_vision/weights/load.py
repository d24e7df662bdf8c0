"""Load weights from a file into a module, with a report, or refuse without changing it.

Every key of the file and of the module is renamed to one common form: `backbone.<timm name>`, `decoder.*` (MAE),
`projection.*` (SimCLR, LeJEPA), `head.*` (classifier). compatibility.py says which keys may be missing or unused, from
the parts of source and target; any other missing, unexpected or reshaped key raises PartialMatchError with the table of
keys. Nothing in a file is ever executed.
"""

import json
import math
import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from timm.models import VisionTransformer
from torch import Tensor, nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.create import has_fixed_size
from lit_vision.backbones.pos_embed import resize_pos_embed
from lit_vision.data.views.image_size import height_and_width
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.io.safetensors_file import save_tensors
from lit_vision.weights import public_packages
from lit_vision.weights.checkpoint_layouts import common_key, read_common, read_file, restore_module
from lit_vision.weights.compatibility import (
    BACKBONE,
    CLASSIFIER,
    UNKNOWN,
    allowed_mismatch,
    known_targets,
    unknown_method_error,
)

# Pre-training ends with `norm` on all tokens; a backbone that averages patches has `fc_norm` after the mean instead
# (He et al. 2022, A.1 and its code). Where the source has `norm` and the target `fc_norm`, the first is dropped and the
# second keeps its initial values.
_NORM, _FC_NORM = "backbone.norm.", "backbone.fc_norm."
_RESIZABLE = ("backbone.pos_embed", "decoder.pos_embed")


class PartialMatchError(UserError):
    """The weights of a file fit a module only in part.

    Attributes:
        head: the message without the table.
        rows: (key, what is wrong, shape in the file, shape in the module).
    """

    def __init__(self, head: str, rows: list[tuple[str, str, str, str]], shown: int = 24) -> None:
        table = [("key", "", "in the file", "in the module"), *rows[:shown]]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
        more = [f"  ... and {len(rows) - shown} more"] if len(rows) > shown else []
        super().__init__("\n".join([head, *lines, *more]))
        self.head, self.rows = head, rows


@dataclass
class LoadReport:
    """Report of `load_into`; keys are in the common form (see the module).

    Attributes:
        path: the file.
        source: its layout.
        target: class of the module.
        matched: keys that were loaded, including the resized ones.
        dropped: keys of the file that were not used.
        new: keys of the module that keep their initial values.
        resized: keys of position embeddings that were resized.
        mean, std: pixel statistics of the training, per channel in [0, 1]; None if the file has none.
        metadata: of the file (safetensors), strings.
        origin: package, version, license and sha256, if the file is a package's (public_packages.py).
    """

    path: str
    source: str
    target: str
    matched: list[str]
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    mean: list[float] | None = None
    std: list[float] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    origin: str = ""

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} matched"]
        for name in ("dropped", "new", "resized"):
            if keys := getattr(self, name):
                parts.append(f"{len(keys)} {name} ({_summary(keys)})")
        if self.mean is None:  # timm's defaults for the name are then used, which may be wrong for these weights
            parts.append("no mean and std in it")
        origin = f"; {self.origin}" if self.origin else ""
        return f"weights: {self.path} ({self.source}) into {self.target}: {', '.join(parts)}{origin}"


def load_into(module: nn.Module, path: str | os.PathLike[str]) -> LoadReport:
    """Copy the weights of a file into a module; nothing is changed unless all keys fit (see compatibility.py).

    A module with buffers `mean` and `std` gets those of the file, if it has them.

    Args:
        module: a Backbone, or a method's network, which declares its parts.
        path: a file of one of the layouts of checkpoint_layouts.py; .safetensors or torch.save's. Or, where no file
            has this name, a name of public_packages.py.

    Returns:
        The report; print it.

    Raises:
        PartialMatchError: a key is missing, unexpected or reshaped; with the table.
        UserError: no such file, no checkpoint, a file that would run code, weights that are not finite, or a source
            that cannot be loaded into this target; or as `public_packages.find`.
    """
    packaged = None if Path(path).exists() else public_packages.find(path)
    report = load_common(module, *read_common(packaged or path), packaged or path)
    if packaged:
        report.origin = public_packages.origin_text(public_packages.origin(path))
        (module if isinstance(module, Backbone) else module.backbone).weights_from = report.origin
    return report


def load_common(
    module: nn.Module, state: dict[str, Tensor], layout: str, metadata: dict[str, str], path: str | os.PathLike[str]
) -> LoadReport:
    """Copy weights that `checkpoint_layouts.read_common` returned into a module, as `load_into`.

    `path` is named in the report and in errors.
    """
    state = dict(state)
    statistics = {name: state.pop(name) for name in ("mean", "std") if name in state}
    if layout.startswith(UNKNOWN):
        raise unknown_method_error(path, layout)
    kind = BACKBONE if isinstance(module, Backbone) else getattr(module, "method_name", type(module).__name__)
    parts = frozenset({"backbone"}) if isinstance(module, Backbone) else getattr(module, "parts", frozenset())
    allowed = allowed_mismatch(layout, kind, parts) if "backbone" in parts else None
    if allowed is None:
        targets = ", ".join(known_targets(layout))
        raise UserError(f"{path}: weights of {layout} cannot be loaded into {kind}; load them into one of {targets}")
    backbone = module if isinstance(module, Backbone) else module.backbone
    if layout == "timm":
        state = restore_module(state, backbone.model)
    prefix = "" if module is backbone else "backbone."
    named = {common_key(name, prefix): (name, value) for name, value in module.state_dict().items()}
    target = {key: value for key, (_, value) in named.items() if key not in ("mean", "std")}

    report = LoadReport(os.fspath(path), layout, kind, [], metadata=metadata)
    grid = stored_grid(state, metadata)
    values, rows = _match(state, target, *_complete(*allowed, state, target, backbone), backbone, grid, report)
    if not any(key.startswith("backbone.") for key in values):
        raise PartialMatchError(
            f"{path}: no weight fits {kind}: another model, or a layout that is not supported yet", rows
        )
    if rows:
        raise PartialMatchError(
            f"{path}: {len(rows)} keys do not fit {kind} ({layout}); give the backbone and backbone_args that the file "
            "was made with; a layout that differs is not supported yet",
            rows,
        )
    if bad := next((key for key, value in values.items() if not value.float().isfinite().all()), ""):
        raise UserError(f"{path}: {bad} is not finite: its training diverged; take an earlier checkpoint")
    module.load_state_dict({named[key][0]: value for key, value in values.items()}, strict=False)
    for name, value in statistics.items():
        setattr(report, name, _rounded(value))
        if isinstance(getattr(module, name, None), Tensor):
            getattr(module, name).copy_(value)
    return report


def _complete(
    drop: tuple[str, ...],
    new: tuple[str, ...],
    state: dict[str, Tensor],
    target: dict[str, Tensor],
    backbone: Backbone,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return `allowed_mismatch`'s patterns with the names of timm's classifier and the change of the last norm."""
    if f"{CLASSIFIER}.*" in drop:
        drop = tuple(f"{name}.*" for name in classifier_names(backbone))

    def has(keys: dict[str, Tensor], prefix: str) -> bool:
        return any(key.startswith(prefix) for key in keys)

    if has(state, _NORM) and not has(state, _FC_NORM) and has(target, _FC_NORM):
        drop, new = (*drop, f"{_NORM}*"), (*new, f"{_FC_NORM}*")
    return drop, new


def _match(
    state: dict[str, Tensor],
    target: dict[str, Tensor],
    drop: tuple[str, ...],
    new: tuple[str, ...],
    backbone: Backbone,
    grid: tuple[int, int] | None,
    report: LoadReport,
) -> tuple[dict[str, Tensor], list[tuple[str, str, str, str]]]:
    """Return the values to load and a row for each key that does not fit; fill the report."""
    values: dict[str, Tensor] = {}
    rows: list[tuple[str, str, str, str]] = []

    def is_shared(key: str) -> bool:
        """False for a key that only has the same name in both: SimCLR's and LeJEPA's `projection` differ."""
        return not (_matches_any(key, drop) and _matches_any(key, new))

    for key, value in state.items():
        if key not in target or not is_shared(key):
            if _matches_any(key, drop):
                report.dropped.append(key)
            else:
                rows.append((key, "unexpected", _shape(value), "-"))
            continue
        wanted = target[key]
        if key in _RESIZABLE:
            resized = _resize(value, wanted, backbone, grid)
            if resized is not None and resized is not value:
                value = resized
                report.resized.append(key)
        if value.shape != wanted.shape:
            rows.append((key, "reshaped", _shape(value), _shape(wanted)))
            continue
        report.matched.append(key)
        values[key] = value.to(wanted.dtype)
    for key, wanted in target.items():
        if key in state and is_shared(key):
            continue
        if _matches_any(key, new):
            report.new.append(key)
        else:
            rows.append((key, "missing", "-", _shape(wanted)))
    return values, rows


def save_backbone(
    path: str | os.PathLike[str],
    backbone: Backbone,
    mean: Any,
    std: Any,
    *,
    half: bool = False,
    **metadata: Any,
) -> Path:
    """Write a backbone as safetensors under timm's names; timm, `load_into` and `load_backbone` read it.

    Args:
        path: ends in .safetensors; its folder is created.
        backbone: its `config` goes into the metadata.
        mean: (3,) numbers or tensor, per channel in [0, 1], that the backbone was trained with.
        std: (3,), likewise.
        half: store floats as float16 (half the size; weights change by at most one part in 2048).
        metadata: further values for the metadata; those that are not strings are written as JSON.

    Returns:
        The path.

    Raises:
        UserError: another suffix, or a value is too large for half precision.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as safetensors; end the name in .safetensors")
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.model.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        if bad := [key for key, value in state.items() if not value.isfinite().all()]:
            raise UserError(f"{path}: values of {bad[0]} are too large for float16; save with half=False")
    notes = {"format": "pt", "lit_vision": "Backbone", "backbone": json.dumps(backbone.config)}
    notes.update(mean=json.dumps(_rounded(mean)), std=json.dumps(_rounded(std)))
    notes.update({key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()})
    atomic_write(path, lambda file: save_tensors(state, file, notes))
    return path


def load_backbone(path: str | os.PathLike[str], img_size: int | None = None) -> tuple[Backbone, LoadReport]:
    """Build the backbone that `save_backbone` described in the file's metadata, and load its weights.

    Args:
        path: the file.
        img_size: side of the images that it shall see, pixels, where it is built for one size: a ViT's position
            embeddings are resized. None: as in the file.

    Returns:
        The backbone and the report, which has mean and std.

    Raises:
        UserError: the file has no such description.
    """
    _, metadata = read_file(path)
    if "backbone" not in metadata:
        raise UserError(f"{path}: its metadata does not name a backbone; build the Backbone and use load_into")
    config = json.loads(metadata["backbone"])
    if img_size is not None and (config["img_size"] is not None or has_fixed_size(config["name"])):
        config["img_size"] = img_size
    backbone = Backbone(**config)
    return backbone, load_into(backbone, path)


def classifier_names(backbone: Backbone) -> tuple[str, ...]:
    """Return the modules of timm's classifier in the common form: `backbone.fc`, `backbone.head.fc`, ..."""
    names = (backbone.model.pretrained_cfg or {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    return tuple(f"backbone.{name}" for name in (*names, "AuxLogits"))  # AuxLogits: Inception's second classifier


def stored_grid(state: dict[str, Tensor], metadata: dict[str, str]) -> tuple[int, int] | None:
    """Return rows and columns of patches in a ViT's file whose metadata give an image size that is not square, or None.

    The number of positions alone does not tell 4 x 16 patches from 8 x 8.

    Args:
        state: in the common form.
        metadata: of the file.
    """
    patch = state.get("backbone.patch_embed.proj.weight")
    for key in ("hyper_parameters", "backbone", "model_args"):
        try:
            found = json.loads(metadata.get(key, "{}"))
            found = (found.get("backbone_args") or {}) if key == "hyper_parameters" else found
            height, width = height_and_width(found["img_size"])
        except (ValueError, TypeError, KeyError, AttributeError, UserError):
            continue  # the metadata of a file may hold any text under this key
        if height != width and patch is not None and patch.ndim == 4:
            return height // patch.shape[2], width // patch.shape[3]
    return None


def _resize(value: Tensor, wanted: Tensor, backbone: Backbone, source: tuple[int, int] | None) -> Tensor | None:
    """Return the position embeddings resized to the wanted grid, or None where that is impossible.

    `source` is the file's grid. If it is not known it is a square, as that of all published weights, or else the wanted
    one.
    """
    if value.ndim != 3 or value.shape[2] != wanted.shape[2] or not isinstance(backbone.model, VisionTransformer):
        return None
    grid = backbone.model.patch_embed.grid_size
    prefix = wanted.shape[1] - grid[0] * grid[1]
    if source is None and value.shape == wanted.shape and math.isqrt(grid[0] * grid[1]) ** 2 != grid[0] * grid[1]:
        return value
    try:
        return resize_pos_embed(value, grid, prefix, source)
    except ValueError:
        return None


def _matches_any(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _rounded(value: Any) -> list[float]:
    return [round(float(v), 6) for v in value]


def _summary(keys: list[str]) -> str:
    """Shorten `decoder.blocks.0.norm1.weight, ...` to `decoder.*`; one or two keys stay in full."""
    prefixes = dict.fromkeys(".".join(k.split(".")[: 2 if k.startswith("backbone.") else 1]) for k in keys)
    names = keys if len(keys) <= 2 else [prefix if prefix in keys else f"{prefix}.*" for prefix in prefixes]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
