"""Weights from a file into a module, with a report, or not at all.

Every key of the file and of the module is renamed to one common form: `backbone.<timm name>`, `decoder.*` (MAE), `projection.*`
(SimCLR), `head.*` (classifier). What may then be left over is written down in compatibility.py, per pair of source layout and target; any
other missing, unexpected or reshaped key raises PartialMatchError with the table of keys. Nothing in a file is ever executed.
"""

import json
import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lit_vision.backbones.backbone import Backbone, is_plain_vit
from lit_vision.backbones.pos_embed import resize_pos_embed
from lit_vision.errors import UserError
from lit_vision.io.hashing import sha256_of_file
from lit_vision.weights.checkpoint_layouts import common_key, read_common, read_file, to_common_keys
from lit_vision.weights.compatibility import ALLOWED_MISMATCHES

# Pre-training ends with `norm` on all tokens; a body that averages patches has `fc_norm` after the mean instead (papers: He et al.
# 2022, A.1 and its code). Where the source has the first and the target the second, one goes and the other starts anew.
_NORM, _FC_NORM = "backbone.norm.", "backbone.fc_norm."
_RESIZABLE = ("backbone.pos_embed", "decoder.pos_embed")
_TARGETS = ("MAE", "SimCLR", "Classifier", "Backbone")


class PartialMatchError(UserError):
    """A file that fits a module only in part. `rows` holds (key, what is wrong, shape in the file, shape in the module)."""

    def __init__(self, head: str, rows: list[tuple[str, str, str, str]], shown: int = 24) -> None:
        table = [("key", "", "in the file", "in the module"), *rows[:shown]]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]
        more = [f"  ... and {len(rows) - shown} more"] if len(rows) > shown else []
        super().__init__("\n".join([head, *lines, *more]))
        self.head, self.rows = head, rows


@dataclass
class LoadReport:
    """What `load_into` did. Keys are in the common form (`backbone.<timm name>`, `decoder.*`, `projection.*`, `head.*`).

    Attributes:
        path: the file.
        source: its layout.
        target: class of the module.
        matched: keys loaded, resized ones included.
        dropped: keys of the file that the target has no use for.
        new: keys of the module that keep their initial values.
        resized: keys whose position table was resized.
        mean, std: pixel statistics that the weights want, per channel in [0, 1]; None where the file does not say.
        metadata: the file's own (safetensors), strings.
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

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} matched"]
        for name in ("dropped", "new", "resized"):
            if keys := getattr(self, name):
                parts.append(f"{len(keys)} {name} ({_summary(keys)})")
        if self.mean is None:  # timm's for the name are then used, which other weights of that shape may not want
            parts.append("no mean and std in it")
        return f"weights: {self.path} ({self.source}) into {self.target}: {', '.join(parts)}"


def load_into(module: nn.Module, path: str | os.PathLike) -> LoadReport:
    """Copies the weights of a file into a module; nothing is changed unless all of it fits by the rules.

    A module with buffers `mean` and `std` gets those of the file, where it has them.

    Args:
        module: a Backbone, MAE, SimCLR or Classifier.
        path: a file of one of the layouts of checkpoint_layouts.py; .safetensors or torch.save's.

    Returns:
        The report; print it.

    Raises:
        PartialMatchError: a key is missing, unexpected or reshaped; with the table.
        UserError: no such file, no checkpoint, a file that would run code, or a pair of source and target without a rule.
    """
    return load_common(module, *read_common(path), path)


def load_common(
    module: nn.Module, state: dict[str, Tensor], layout: str, metadata: dict[str, str], path: str | os.PathLike
) -> LoadReport:
    """`load_into` for what `checkpoint_layouts.read_common` gave; `path` is for the report and the errors."""
    state = dict(state)
    statistics = {name: state.pop(name) for name in ("mean", "std") if name in state}
    kind = next((c.__name__ for c in type(module).__mro__ if c.__name__ in _TARGETS), type(module).__name__)
    if (layout, kind) not in ALLOWED_MISMATCHES:
        raise UserError(
            f"{path}: weights of {layout} have no rule to enter {kind}; load into one of {_known_targets(layout)}"
        )
    backbone = module if isinstance(module, Backbone) else module.backbone
    prefix = "" if module is backbone else "backbone."
    own = {common_key(name, prefix): (name, value) for name, value in module.state_dict().items()}
    target = {key: value for key, (_, value) in own.items() if key not in ("mean", "std")}

    report = LoadReport(os.fspath(path), layout, kind, [], metadata=metadata)
    values, rows = _match(state, target, *_allowed_mismatch(layout, kind, state, target, backbone), backbone, report)
    if not any(key.startswith("backbone.") for key in values):
        raise PartialMatchError(
            f"{path}: no weight fits {kind}: another model, or a layout that is not supported yet", rows
        )
    if rows:
        raise PartialMatchError(
            f"{path}: {len(rows)} keys do not fit {kind} ({layout}); give the backbone and backbone_args that the file was made with; "
            "a layout that differs is not supported yet",
            rows,
        )
    module.load_state_dict({own[key][0]: value for key, value in values.items()}, strict=False)
    for name, value in statistics.items():
        setattr(report, name, _rounded(value))
        if isinstance(getattr(module, name, None), Tensor):
            getattr(module, name).copy_(value)
    return report


def _allowed_mismatch(
    layout: str, kind: str, state: dict[str, Tensor], target: dict[str, Tensor], backbone: Backbone
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns that may be dropped and that may start anew, for this very pair of state and target."""
    drop, new = ALLOWED_MISMATCHES[layout, kind]
    if "<classifier>" in drop:
        drop = tuple(f"{name}.*" for name in classifier_names(backbone))

    def has(keys: dict[str, Tensor], start: str) -> bool:
        return any(key.startswith(start) for key in keys)

    if has(state, _NORM) and not has(state, _FC_NORM) and has(target, _FC_NORM):
        drop, new = (*drop, f"{_NORM}*"), (*new, f"{_FC_NORM}*")
    return drop, new


def _match(
    state: dict[str, Tensor],
    target: dict[str, Tensor],
    drop: tuple[str, ...],
    new: tuple[str, ...],
    backbone: Backbone,
    report: LoadReport,
) -> tuple[dict[str, Tensor], list[tuple[str, str, str, str]]]:
    """The values to load, and a row for each key that does not fit; fills the report."""
    values: dict[str, Tensor] = {}
    rows: list[tuple[str, str, str, str]] = []
    for key, value in state.items():
        if key not in target:
            if _matches_any(key, drop):
                report.dropped.append(key)
            else:
                rows.append((key, "unexpected", _shape(value), "-"))
            continue
        wanted = target[key]
        if key in _RESIZABLE and value.shape != wanted.shape:
            resized = _resized(value, wanted, backbone)
            if resized is not None:
                value = resized
                report.resized.append(key)
        if value.shape != wanted.shape:
            rows.append((key, "reshaped", _shape(value), _shape(wanted)))
            continue
        report.matched.append(key)
        values[key] = value.to(wanted.dtype)
    for key, wanted in target.items():
        if key in state:
            continue
        if _matches_any(key, new):
            report.new.append(key)
        else:
            rows.append((key, "missing", "-", _shape(wanted)))
    return values, rows


def read_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the file's own names; `mean` and `std` (3,) are among them where the file implies them.

    Raises:
        UserError: no such file, no checkpoint, a damaged one, or one that would run code.
    """
    state, metadata = read_file(path)
    common, _ = to_common_keys(state, metadata)
    return {**state, **{name: common[name] for name in ("mean", "std") if name in common}}


def sha256_of(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes: what tables and releases name a set of weights by."""
    return sha256_of_file(path)


def save_backbone(
    path: str | os.PathLike,
    backbone: Backbone,
    mean: Any,
    std: Any,
    *,
    half: bool = False,
    **metadata: Any,
) -> Path:
    """Writes a body as safetensors under timm's names, so that timm loads it too; `load_into` and `load_backbone` read it back.

    Args:
        path: ends in .safetensors; its folder is made.
        backbone: the body; its `config` goes into the metadata.
        mean: (3,) numbers or tensor, per channel in [0, 1], that the body was trained with.
        std: (3,), likewise.
        half: store floats as float16 (half the size; weights change by at most one part in 2048).
        metadata: anything more; values that are no strings are written as JSON.

    Returns:
        The path.

    Raises:
        UserError: another suffix, or half precision cannot hold a value.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are published as safetensors; end the name in .safetensors")
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.model.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        if bad := [key for key, value in state.items() if not value.isfinite().all()]:
            raise UserError(f"{path}: float16 cannot hold {bad[0]}; save with half=False")
    notes = {"format": "pt", "lit_vision": "Backbone", "backbone": json.dumps(backbone.config)}
    notes.update(mean=json.dumps(_rounded(mean)), std=json.dumps(_rounded(std)))
    notes.update({key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")  # a kill leaves the old file whole
    save_file(state, beside, metadata=notes)
    os.replace(beside, path)
    return path


def load_backbone(path: str | os.PathLike) -> tuple[Backbone, LoadReport]:
    """The body that `save_backbone` wrote, built from the file's own description. The report has mean and std.

    Raises:
        UserError: the file has no such description.
    """
    _, metadata = read_file(path)
    if "backbone" not in metadata:
        raise UserError(f"{path}: does not say which backbone it holds; build the Backbone and use load_into")
    backbone = Backbone(**json.loads(metadata["backbone"]))
    return backbone, load_into(backbone, path)


def classifier_names(backbone: Backbone) -> tuple[str, ...]:
    """Modules that timm's classifier of this family is made of, in the common form: `backbone.fc`, `backbone.head.fc`, ..."""
    names = (backbone.model.pretrained_cfg or {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    return tuple(f"backbone.{name}" for name in (*names, "AuxLogits"))  # AuxLogits: Inception's second classifier


def _resized(value: Tensor, wanted: Tensor, backbone: Backbone) -> Tensor | None:
    """The table on the wanted grid, or None where it cannot be."""
    if value.ndim != 3 or value.shape[2] != wanted.shape[2] or not is_plain_vit(backbone.model):
        return None
    grid = backbone.model.patch_embed.grid_size
    prefix = wanted.shape[1] - grid[0] * grid[1]
    try:
        return resize_pos_embed(value, grid, prefix)
    except ValueError:
        return None


def _known_targets(layout: str) -> str:
    return ", ".join(target for source, target in ALLOWED_MISMATCHES if source == layout)


def _matches_any(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _rounded(value: Any) -> list[float]:
    return [round(float(v), 6) for v in value]


def _summary(keys: list[str]) -> str:
    """`decoder.blocks.0.norm1.weight, ...` to `decoder.*`; few keys in full."""
    stems = dict.fromkeys(".".join(k.split(".")[: 2 if k.startswith("backbone.") else 1]) for k in keys)
    names = keys if len(keys) <= 2 else [stem if stem in keys else f"{stem}.*" for stem in stems]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
