"""`lit-vision import`: another project's checkpoint as one safetensors file that every command here reads.

What the file is follows from its keys: any of a decoder makes it an MAE (pre-training goes on, reconstructions work), any of a classifier
a Classifier (`predict` works), anything else a backbone. Which model it is follows from the shapes, or from a config.json beside it; else it is asked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vision.cli.parser import CommandParser
from lit_vision.errors import UsageError, UserError
from lit_vision.weights.model_metadata import METADATA_KEY

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")  # in a folder of the Hub


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision import",
        description="Another project's weights as one safetensors file, refused unless every key fits. Supported: timm; torchvision's ResNet,\n"
        "DenseNet and ViT; transformers' ViT-MAE; lightly's SimCLR and MAE; facebookresearch/mae (CC-BY-NC). Nothing in a file is executed.",
        epilog="example: lit-vision import mae_pretrain_vit_base.pth --out weights/mae-base.safetensors\n"
        "then:    lit-vision fit --config RECIPE.yaml --model.backbone_checkpoint weights/mae-base.safetensors",
    )
    parser.add_argument("file", metavar="FILE", help="a checkpoint, or a folder of the Hub with its config.json")
    parser.add_argument("--out", required=True, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument("--backbone", metavar="NAME", help="timm's name, where shapes do not tell it")
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
        "--source", metavar="TEXT", help="where they are from, written into the file; the file's name if not given"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    return parser


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object such as '{{\"num_heads\": 6}}'")
    return value


def main(argv: Sequence[str]) -> int:
    """One import; returns 0. Raises UserError with one line, or PartialMatchError with the table of keys."""
    args = _parser().parse_args(list(argv))
    check_args(args.args)
    if not args.out.endswith(".safetensors"):
        raise UsageError(f"--out {args.out}: weights are written as safetensors; end the name in .safetensors")
    if args.img_size is not None and args.img_size < 1:
        raise UsageError(f"--img_size {args.img_size}: give at least 1 pixel")
    path, config = resolve_source(args.file)
    if Path(args.out).exists() and not args.overwrite:
        raise UserError(f"--out {args.out}: exists already; name another file, or give --overwrite")
    from lit_vision.predict.inputs import check_output_path

    out = check_output_path(args.out)
    print(import_weights(path, out, config, args))
    return 0


def _type_error(key: str, value: Any) -> str:
    """What a value should be, or "" if it is; its constructor would fail with a traceback, or take it for another."""
    if key in ("mean", "std"):
        right = isinstance(value, list) and len(value) == 3 and all(type(one) in (int, float) for one in value)
        right = right and all(map(math.isfinite, value)) and (key == "mean" or min(value) > 0)
        return "" if right else "three numbers, one a channel; those of std above 0"
    if key in ("decoder_width", "decoder_depth", "decoder_heads", "decoder_num_attention_heads"):
        return "" if type(value) is int and value > 0 else "a whole number from 1"
    if key == "norm_pix_loss":
        return "" if isinstance(value, bool) else "true or false"
    if key == "mask_ratio":
        return "" if type(value) in (int, float) and 0 <= value < 1 else "a number from 0 to below 1"
    if key == "layer_norm_eps":
        return "" if type(value) in (int, float) and value > 0 else "a number above 0"
    kind = {"pretrained_cfg": dict, "model_args": dict, "label_names": list}.get(key)
    return "" if kind is None or isinstance(value, kind) else f"a {'list' if kind is list else 'mapping'}"


def check_args(given: Mapping[str, Any]) -> None:
    """UsageError where a value of --args is of the wrong kind."""
    for key, value in given.items():
        if key in ("backbone", "backbone_args"):
            raise UsageError(f"--args: {key} has an option of its own; give --{key}")
        if wanted := _type_error(key, value):
            raise UsageError(f"--args: {key} {json.dumps(value)}; give {wanted}")


def check_config(file: Path, config: Mapping[str, Any]) -> None:
    """UserError where a config.json says something of the wrong kind that is read here; null is nothing said."""
    pixels = config.get("pretrained_cfg")
    for key, value in (*config.items(), *(pixels.items() if isinstance(pixels, dict) else ())):
        if value is not None and (wanted := _type_error(key, value)):
            raise UserError(f"{file}: {key} is {json.dumps(value)}, not {wanted}; take another copy, or mend it")


def resolve_source(place: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    """The file that a path means, and the config.json beside it ({} without one).

    Raises:
        UserError: nothing there, no weights in the folder, or a config.json that is damaged.
    """
    path = Path(place)
    if path.is_dir():
        found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path}: holds none of {', '.join(WEIGHTS)}; give the file itself")
        path = found
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path of the checkpoint")
    beside = path.parent / "config.json"
    if not beside.is_file():
        return path, {}
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{beside}: is no JSON ({error}); take another copy, or remove it") from error
    config = {key: value for key, value in config.items() if value is not None} if isinstance(config, dict) else {}
    check_config(beside, config)
    return path, config


def import_weights(path: Path, out: Path, config: Mapping[str, Any], args: argparse.Namespace) -> str:
    """Reads one file, builds the module it fits, loads it strictly and writes `out`.

    Returns:
        What was done, in lines.

    Raises:
        UserError: not supported yet, this project's own file, or nobody knows which model it is. PartialMatchError: a key does not fit.
    """
    from lit_vision.convert.import_target import build
    from lit_vision.convert.import_writer import class_names, eval_crop_pct, statistics, write_imported
    from lit_vision.weights.checkpoint_layouts import FB, official_training_args, read_common
    from lit_vision.weights.detect_architecture import detect_architecture
    from lit_vision.weights.key_maps import LIGHTLY_MAE, SUPPORTED
    from lit_vision.weights.load import PartialMatchError, load_common, sha256_of

    state, layout, metadata = read_common(path)
    if layout in ("MAE", "SimCLR", "Classifier", "Backbone"):
        raise UserError(f"{path}: is this project's own already; name it as it is, or use lit-vision export")
    if not config and "architecture" in metadata:  # an export of ours under timm's names says what it is
        known = {key: json.loads(metadata[key]) for key in ("model_args", "mean", "std", "size", "class_names")}
        pixels = {"mean": known["mean"], "std": known["std"], "license": metadata["license"]}
        pixels |= {
            "crop_pct": json.loads(metadata[METADATA_KEY])["crop_pct"],
            "input_size": [3, known["size"], known["size"]],
        }
        config = {"architecture": metadata["architecture"], "model_args": known["model_args"], "pretrained_cfg": pixels}
        config["label_names"] = known["class_names"]
    config = {**official_training_args(metadata), **config}
    if args.backbone_only:
        state = {key: value for key, value in state.items() if not key.startswith(("decoder.", "projection."))}
    name, body = detect_architecture(state, config, args.backbone, args.backbone_args, args.img_size)
    if name is None:
        raise UserError(
            f"{path}: its shapes do not tell which model it is; name it with --backbone (a timm name), and --backbone_args. "
            f"A layout other than these is not supported yet: {SUPPORTED}"
        )
    method, state, layout = build(name, body, state, layout, config, args, path)
    try:
        report = load_common(method, state, layout, metadata, path)
    except PartialMatchError as error:
        if type(method).__name__ == "Backbone":
            raise
        raise PartialMatchError(
            f"{error.head}; --backbone_only leaves decoder and classifier out", error.rows
        ) from error
    lines = [str(report)]
    if report.resized:
        lines.append(
            f"resized: {', '.join(report.resized)} to the grid of {body.get('img_size', 224)} pixels (bicubic)"
        )
    if (eps := float(config.get("layer_norm_eps", 1e-6))) != 1e-6:
        lines.append(f"note: config.json says layer_norm_eps {eps:g}; here it is 1e-6, as in the official MAE")
    if type(method).__name__ == "MAE" and layout != LIGHTLY_MAE and "norm_pix_loss" not in {*config, *args.args}:
        lines.append(
            "note: the file does not say whether the loss was on normalised pixels; norm_pix_loss true is assumed (--args)"
        )
    license = args.license or (config.get("pretrained_cfg") or {}).get("license") or metadata.get("license") or ""
    if layout.startswith(FB):
        license = args.license or "CC-BY-NC-4.0"
    notes = {
        "source": args.source or f"{layout}: {path.name}",
        "source_layout": layout,
        "source_sha256": sha256_of(path),
    }
    pixels, whose = statistics(method, report, config, args)
    lines.append(f"pixels: mean {pixels['mean']}, std {pixels['std']}: {whose}")
    notes |= {"license": license}
    write_imported(
        out, method, pixels, notes, class_names(args.class_names, config, method), eval_crop_pct(layout, config)
    )
    kind = type(method).__name__
    lines.append(f"{out}: {kind}, {name} {json.dumps(body)}, license {license or 'not stated (--license names it)'}")
    return "\n".join(lines)
