"""The import command: convert another project's checkpoint to one safetensors file that every command reads.

The keys decide the kind of the file: any key of a decoder makes it an MAE (pre-training can continue), any key of a
classifier a Classifier (`predict` works), anything else a backbone. The shapes or a config.json in the same folder
decide the architecture; if they do not, --backbone must name it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.cli.parser import CommandParser, add_overwrite_argument
from lit_vision.convert.import_source import config_of_timm_export, license_of, resolve_source, type_error
from lit_vision.errors import UsageError, UserError
from lit_vision.predict.writers import check_output_path
from lit_vision.weights.public_packages import PACKAGES, origin, origin_text

if TYPE_CHECKING:
    from torch import Tensor


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision import",
        description="Convert another project's weights to one safetensors file; refused unless every key fits. "
        "Supported: timm;\ntorchvision's ResNet, DenseNet, MobileNetV2 and ViT; transformers' ViT-MAE, DINOv2 and "
        "CLIP's image tower; open_clip's\nViTs; EfficientNet-Lite; lightly's SimCLR and MAE; facebookresearch/dinov2 "
        "and mae (CC-BY-NC). Nothing in a file is executed.",
        epilog="example: lit-vision import mae_pretrain_vit_base.pth --out weights/mae-base.safetensors\n"
        "then:    lit-vision fit --config RECIPE.yaml --model.backbone_checkpoint weights/mae-base.safetensors",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="a checkpoint, a folder of the Hub with its config.json, or weights that a Python package ships: "
        + ", ".join(PACKAGES),
    )
    parser.add_argument("--out", required=True, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument(
        "--state",
        metavar="NAME",
        help="which of several states or modules in the file, such as state_dict_ema (default: the usual one)",
    )
    parser.add_argument("--backbone", metavar="NAME", help="timm's name, if the shapes do not decide it")
    parser.add_argument(
        "--backbone_args", type=_mapping, default={}, metavar="JSON", help="further arguments of Backbone"
    )
    parser.add_argument(
        "--args",
        type=_mapping,
        default={},
        metavar="JSON",
        help="arguments of MAE or Classifier that no tensor shows: decoder_heads, norm_pix_loss, mean, std",
    )
    parser.add_argument(
        "--img_size", type=int, metavar="N", help="pixels; position embeddings are resized if they are for another size"
    )
    parser.add_argument("--backbone_only", action="store_true", help="leave decoder and classifier out")
    parser.add_argument("--class_names", metavar="FILE", help="one class name a line, in the order of the outputs")
    parser.add_argument("--license", metavar="TEXT", help="of the weights, written into the file")
    parser.add_argument(
        "--source", metavar="TEXT", help="origin of the weights, written into the file (default: the file's name)"
    )
    add_overwrite_argument(parser)
    return parser


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object such as '{{\"num_heads\": 6}}'")
    return value


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision import FILE --out OUT.safetensors`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
        PartialMatchError: keys do not fit; with the table of keys.
    """
    args = _parser().parse_args(list(argv))
    check_args(args.args)
    if not args.out.endswith(".safetensors"):
        raise UsageError(f"--out {args.out}: weights are written as safetensors; end the name in .safetensors")
    if args.img_size is not None and args.img_size < 1:
        raise UsageError(f"--img_size {args.img_size}: give at least 1 pixel")
    path, config = resolve_source(args.file)
    out = check_output_path(args.out, args.overwrite)
    packaged = {} if Path(args.file).exists() else origin(args.file)
    print("\n".join(_import_weights(path, out, config, packaged, args)))
    return 0


def check_args(given: Mapping[str, Any]) -> None:
    """Check the types of the values of --args.

    Raises:
        UsageError: names the key.
    """
    for key, value in given.items():
        if key in ("backbone", "backbone_args"):
            raise UsageError(f"--args: {key} has its own flag; give --{key}")
        if wanted := type_error(key, value):
            raise UsageError(f"--args: {key} {json.dumps(value)}; give {wanted}")


def _import_weights(
    path: Path, out: Path, config: Mapping[str, Any], packaged: dict[str, str], args: argparse.Namespace
) -> list[str]:
    """Read one file, build the module that it fits, load it strictly and write `out`.

    Args:
        path: the file.
        out: the file to write.
        config: of a config.json; {} without one.
        packaged: origin of the file if it is a package's, else {}.
        args: of the command.

    Returns:
        Lines that report what was done.

    Raises:
        UserError: not supported yet, a file of this project, or an unknown architecture.
        PartialMatchError: keys do not fit.
    """
    from lit_vision.convert.import_report import notes, state_line
    from lit_vision.convert.import_target import build
    from lit_vision.convert.import_writer import class_names, eval_crop_pct, statistics, write_imported
    from lit_vision.io.hashing import sha256_of_file
    from lit_vision.weights.checkpoint_layouts import OUTSIDE, official_training_args, read_common
    from lit_vision.weights.compatibility import (
        BACKBONE,
        UNKNOWN,
    )
    from lit_vision.weights.detect_architecture import detect_architecture
    from lit_vision.weights.key_maps import SUPPORTED
    from lit_vision.weights.load import PartialMatchError, load_common

    state, layout, metadata = read_common(path, args.state)
    if layout.startswith(UNKNOWN) and args.backbone_only:
        state, layout = _backbone_of_unknown_method(state, metadata, args), BACKBONE
    else:
        _check_needs_import(path, layout, metadata)
    if not config and "architecture" in metadata:
        config = config_of_timm_export(metadata)
    config = {**official_training_args(metadata), **config}
    if args.backbone_only:
        others = ("decoder.", "projection.", OUTSIDE)
        state = {key: value for key, value in state.items() if not key.startswith(others)}
    name, backbone_args = detect_architecture(state, config, args.backbone, args.backbone_args, args.img_size, layout)
    if name is None:
        raise UserError(
            f"{path}: its shapes do not decide the architecture; give --backbone (a timm name), and --backbone_args. "
            f"Layouts other than these are not supported yet: {SUPPORTED}"
        )
    method, state, layout = build(
        name,
        backbone_args,
        state,
        layout,
        config,
        path,
        method_args=args.args,
        backbone_only=args.backbone_only,
    )
    kind = getattr(method, "method_name", "Backbone")
    try:
        report = load_common(method, state, layout, metadata, path)
    except PartialMatchError as error:
        if kind == "Backbone":
            raise
        raise PartialMatchError(
            f"{error.head}; --backbone_only leaves decoder and classifier out", error.rows
        ) from error
    named = args.backbone is not None
    report.origin = origin_text(packaged) if packaged else ""
    lines = [*state_line(metadata), str(report), *notes(method, report, name, {**config, **args.args}, named=named)]
    license = args.license or license_of(layout, metadata, config) or packaged.get("license", "")
    pixels, pixels_origin = statistics(method, report, config, args.args)
    lines.append(f"pixels: mean {pixels['mean']}, std {pixels['std']}: {pixels_origin}")
    record = {
        "source": f"{layout}: {path.name}",
        "source_sha256": sha256_of_file(path),
        **packaged,
        "source_layout": layout,
        "license": license,
    }
    record["source"] = args.source or record["source"]
    names = class_names(args.class_names, config, method)
    write_imported(out, method, pixels, record, names, eval_crop_pct(layout, config))
    license_text = license or "not stated (--license names it)"
    lines.append(f"{out}: {kind}, {name} {json.dumps(backbone_args)}, license {license_text}")
    return lines


def _check_needs_import(path: Path, layout: str, metadata: Mapping[str, str]) -> None:
    """Raise UserError for a file that predict and export take, and for a checkpoint of an unknown method in our form.

    They need the hyper-parameters. A state dict of our modules without them, or other people's module of that form, is
    imported like any other.
    """
    from lit_vision.weights.checkpoint_layouts import stored_hyper_parameters
    from lit_vision.weights.compatibility import BACKBONE, METHODS, UNKNOWN, unknown_method_error

    if layout.startswith(UNKNOWN):
        raise unknown_method_error(path, layout)
    usable = "lit_vision" in metadata or "backbone" in stored_hyper_parameters(metadata)
    if usable and (layout in METHODS or layout in ("Dense", BACKBONE)):
        raise UserError(
            f"{path}: is a file of this project, which needs no import; use it directly, or lit-vision export"
        )


def _backbone_of_unknown_method(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], args: argparse.Namespace
) -> dict[str, Tensor]:
    """Return the backbone's tensors, mean and std; name and arguments that no flag gives are the checkpoint's."""
    from lit_vision.weights.checkpoint_layouts import stored_hyper_parameters

    hyper = stored_hyper_parameters(metadata)
    if args.backbone is None and isinstance(name := hyper.get("backbone"), str):
        stored = hyper.get("backbone_args")
        args.backbone, stored = name, stored if isinstance(stored, dict) else {}
        args.backbone_args = {**stored, "pretrained": False, **(args.backbone_args or {})}
    return {key: value for key, value in state.items() if key.startswith("backbone.") or key in ("mean", "std")}
