"""The export command: write a run as one file or folder for another runtime or project."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser, add_overwrite_argument
from lit_vision.convert import quantize
from lit_vision.convert.export import EXPORT_TOLERANCE, FORMATS, export, export_adapter
from lit_vision.convert.quantize import artifact_files
from lit_vision.errors import UsageError, UserError
from lit_vision.predict.writers import check_not_existing, check_output_path
from lit_vision.runs.run_dir import data_settings, run_dir_of

OTHER_PROJECTS = ("timm", "transformers", "hub")  # values of --format

# all files of a folder that --format transformers or hub writes; a folder with other files is never replaced
_FOLDER_FILES = ("config.json", "model.safetensors", "README.md", "preprocessor_config.json")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision export",
        description="Write a run as one file with mean, std, size, class names and license inside; the batch size "
        f"stays free. An\nexport whose outputs differ from torch's by more than {EXPORT_TOLERANCE:g} is refused.",
        epilog="example: lit-vision export runs/classifier/1 --format openvino --int8 data/photos\n\n"
        "TensorRT (not run here) takes the ONNX file; for 224 pixels:\n"
        "  trtexec --onnx=model.onnx --minShapes=images:1x3x224x224 --optShapes=images:8x3x224x224 \\\n"
        "          --maxShapes=images:64x3x224x224 --noTF32 --saveEngine=model.engine",
    )
    parser.add_argument("model", metavar="RUN_OR_FILE", help="a run's folder, a .ckpt or a .safetensors")
    parser.add_argument(
        "--format",
        required=True,
        choices=[*FORMATS, *OTHER_PROJECTS],
        help="adapter: LoRA or prompts without the backbone; timm: a file for timm.create_model; transformers: a "
        "folder for its ViT-MAE; hub: a folder for the Hugging Face Hub with a model card",
    )
    parser.add_argument("--out", metavar="FILE", help="default RUN/export/model.<suffix of the format>")
    parser.add_argument("--license", metavar="TEXT", help="of the weights, written into the file")
    parser.add_argument("--base", metavar="FILE", help="the weights that an adapter (RUN_OR_FILE) was trained on")
    parser.add_argument(
        "--int8",
        metavar="ROOT",
        help="quantize after training (onnx, openvino): calibrated on ROOT's training split, measured before and after "
        "on its test split; the other data settings are those of the run's config.yaml",
    )
    parser.add_argument(
        "--classes_by_number",
        action="store_true",
        help="--int8: compare ROOT's classes with the model's by number although their names differ",
    )
    parser.add_argument(
        "--calibration", type=int, default=300, metavar="N", help="images to calibrate on (default 300)"
    )
    add_overwrite_argument(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision export RUN_OR_FILE --format FORMAT`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    return _export_to_project(args) if args.format in OTHER_PROJECTS else _export_to_runtime(args)


def _export_to_runtime(args: argparse.Namespace) -> int:
    """Write safetensors, ONNX, OpenVINO, pt2 or an adapter."""
    file_format, suffix = args.format, FORMATS[args.format]
    if args.out and not args.out.lower().endswith(suffix):
        raise UsageError(f"--out {args.out}: --format {file_format} needs a name that ends in {suffix}")
    if args.int8 and file_format not in ("onnx", "openvino"):
        raise UsageError(f"--int8: is for --format onnx or openvino, not {file_format}")
    if args.classes_by_number and not args.int8:
        raise UsageError("--classes_by_number: is for --int8; leave it out")
    if args.calibration < 1:
        raise UsageError(f"--calibration {args.calibration}: give at least 1 image")
    from lit_vision.predict.models import load_method, resolve_model_file
    from lit_vision.predict.tasks import accuracy_check_for

    source = resolve_model_file(args.model)
    if source.suffix.lower() not in (".ckpt", ".pt", ".pth", ".safetensors"):
        raise UserError(f"{source}: is an export already; give the run, its .ckpt or a .safetensors")
    name = f"{'adapter' if file_format == 'adapter' else 'model'}{'-int8' if args.int8 else ''}{suffix}"
    folder = run_dir_of(source) or source.parent
    out = check_output_path(args.out or folder / "export" / name, args.overwrite)
    if file_format == "adapter":
        export_adapter(source, out)
        print(f"{out}: adapter alone, {_megabytes(out)}")
        return 0
    if args.int8:
        quantize.require_packages("--int8", "nncf", "openvino")
    method, metadata = load_method(source, args.base)
    if args.license is not None:
        metadata.license = args.license
    check = None
    if args.int8:
        settings = data_settings(run_dir_of(source))
        check = accuracy_check_for(args.int8, metadata, settings, args.classes_by_number)
        print(f"--int8: data settings {f'of {folder}/config.yaml' if settings else 'are the usual ones'}")
        print(check.note, end="\n" if check.note else "")
    print(export(method, metadata, file_format, out, check, args.calibration))
    license_text = metadata.license or "not stated"
    print(f"{out}: {metadata.task}, {metadata.size} pixels, license {license_text}, {_megabytes(out)}")
    if file_format == "onnx":
        shape = f"3x{metadata.size}x{metadata.size}"
        print(
            f"TensorRT (not run here): trtexec --onnx={out} --minShapes=images:1x{shape} --optShapes=images:8x{shape} "
            f"--maxShapes=images:64x{shape} --noTF32 --saveEngine={out.with_suffix('.engine')}"
        )
    return 0


def _export_to_project(args: argparse.Namespace) -> int:
    """Write a file for timm, or a folder for transformers or the Hub."""
    if args.int8 or args.base:
        raise UsageError(f"{'--int8' if args.int8 else '--base'}: is not for --format {args.format}; leave it out")
    if args.format == "timm" and args.out and not args.out.endswith(".safetensors"):
        raise UsageError(f"--out {args.out}: --format timm needs a name that ends in .safetensors")
    from lit_vision.predict.models import load_method, resolve_model_file

    source = resolve_model_file(args.model)
    run = run_dir_of(source) or source.parent
    out = Path(args.out or run / "export" / ("timm.safetensors" if args.format == "timm" else args.format))
    check_not_existing(out, args.overwrite)
    if out.is_dir() and (other := {p.name for p in out.iterdir()} - set(_FOLDER_FILES)):
        raise UserError(f"--out {out}: contains {min(other)}, which no export wrote; choose another folder")
    if args.format == "transformers":
        from lit_vision.convert.to_transformers import load_mae, write_transformers

        mae, origin = load_mae(source)
        origin |= {"license": args.license} if args.license is not None else {}
        print(write_transformers(mae, out, **origin))
    else:
        method, metadata = load_method(source)
        metadata.license = args.license if args.license is not None else metadata.license
        if args.format == "timm":
            from lit_vision.convert.to_timm import write_timm

            print(write_timm(method, metadata, out))
        else:
            from lit_vision.convert.to_hub import write_hub

            print(write_hub(method, metadata, out, run))
    print(f"{out}: for {args.format}")
    return 0


def _megabytes(path: Path) -> str:
    return f"{sum(p.stat().st_size for p in artifact_files(path)) / 1e6:.3g} MB"
