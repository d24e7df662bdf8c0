"""`lit-vision export`: a run as one file or folder for another runtime or project."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser
from lit_vision.convert import quantize
from lit_vision.convert.export import EXPORT_TOLERANCE, FORMATS, export, export_adapter
from lit_vision.convert.quantize import artifact_files
from lit_vision.errors import UsageError, UserError
from lit_vision.runs.run_dir import run_dir_of

OTHERS = ("timm", "transformers", "hub")  # formats of other projects

WRITTEN = ("config.json", "model.safetensors", "README.md", "preprocessor_config.json")  # in the folders


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision export",
        description="A run as one file with mean, std, size, class names and license inside; the batch stays free. An export whose outputs differ\n"
        f"from torch's by more than {EXPORT_TOLERANCE:g} is refused.",
        epilog="example: lit-vision export runs/classifier/1 --format openvino --int8 data/photos\n\n"
        "TensorRT (not run here) takes the ONNX file; for 224 pixels:\n"
        "  trtexec --onnx=model.onnx --minShapes=images:1x3x224x224 --optShapes=images:8x3x224x224 \\\n"
        "          --maxShapes=images:64x3x224x224 --noTF32 --saveEngine=model.engine",
    )
    parser.add_argument("model", metavar="RUN_OR_FILE", help="a run's folder, a .ckpt or a .safetensors")
    parser.add_argument(
        "--format",
        required=True,
        choices=[*FORMATS, *OTHERS],
        help="adapter: LoRA or prompts without the backbone; timm: a file for timm.create_model; transformers: a folder for its ViT-MAE; "
        "hub: a folder for the Hugging Face Hub with a model card",
    )
    parser.add_argument("--out", metavar="FILE", help="RUN/export/model.<ending> if not given")
    parser.add_argument("--license", metavar="TEXT", help="of the weights, written into the file")
    parser.add_argument("--base", metavar="FILE", help="the weights that an adapter (RUN_OR_FILE) began from")
    parser.add_argument(
        "--int8",
        metavar="ROOT",
        help="quantise after training (onnx, openvino): calibrated on ROOT's training split, measured before and after on its test split",
    )
    parser.add_argument(
        "--calibration", type=int, default=300, metavar="N", help="images to calibrate on (default 300)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")
    return parser


def main(argv: Sequence[str]) -> int:
    """One export; returns 0. Raises UserError with one line for every fault with a mend."""
    args = _parser().parse_args(list(argv))
    if args.format in OTHERS:
        return _export_for_others(args)
    form, suffix = args.format, FORMATS[args.format]
    if args.out and not args.out.lower().endswith(suffix):
        raise UsageError(f"--out {args.out}: --format {form} ends in {suffix}")
    if args.int8 and form not in ("onnx", "openvino"):
        raise UsageError(f"--int8: is for --format onnx or openvino, not {form}")
    if args.calibration < 1:
        raise UsageError(f"--calibration {args.calibration}: give at least 1 image")
    from lit_vision.convert.accuracy import accuracy_check_for
    from lit_vision.predict.inputs import check_output_path
    from lit_vision.predict.models import load_method, resolve_model_file

    source = resolve_model_file(args.model)
    if source.suffix.lower() not in (".ckpt", ".pt", ".pth", ".safetensors"):
        raise UserError(f"{source}: is an export already; give the run, its .ckpt or a .safetensors")
    name = f"{'adapter' if form == 'adapter' else 'model'}{'-int8' if args.int8 else ''}{suffix}"
    folder = run_dir_of(source) or source.parent
    out = check_output_path(args.out or folder / "export" / name)
    if out.exists() and not args.overwrite:
        raise UserError(f"--out {out}: exists already; name another file, or give --overwrite")
    if form == "adapter":
        export_adapter(source, out)
        print(f"{out}: adapter alone, {_megabytes(out)}")
        return 0
    if args.int8:
        quantize.require_packages("--int8", "nncf", "openvino")
    method, metadata = load_method(source, args.base)
    if args.license is not None:
        metadata.license = args.license
    judge = accuracy_check_for(args.int8, metadata) if args.int8 else None
    print(export(method, metadata, form, out, judge, args.calibration))
    print(
        f"{out}: {metadata.task}, {metadata.size} pixels, license {metadata.license or 'not stated'}, {_megabytes(out)}"
    )
    if form == "onnx":
        shape = f"3x{metadata.size}x{metadata.size}"
        print(
            f"TensorRT (not run here): trtexec --onnx={out} --minShapes=images:1x{shape} --optShapes=images:8x{shape} "
            f"--maxShapes=images:64x{shape} --noTF32 --saveEngine={out.with_suffix('.engine')}"
        )
    return 0


def _export_for_others(args: argparse.Namespace) -> int:
    """One export to another project's form; `args` is of `lit_vision.convert.export`. Returns 0."""
    if args.int8 or args.base:
        raise UsageError(f"{'--int8' if args.int8 else '--base'}: is not for --format {args.format}; leave it out")
    if args.format == "timm" and args.out and not args.out.endswith(".safetensors"):
        raise UsageError(f"--out {args.out}: --format timm ends in .safetensors")
    from lit_vision.predict.models import load_method, resolve_model_file

    source = resolve_model_file(args.model)
    run = run_dir_of(source) or source.parent
    out = Path(args.out or run / "export" / ("timm.safetensors" if args.format == "timm" else args.format))
    if out.exists() and not args.overwrite:
        raise UserError(f"--out {out}: exists already; name another place, or give --overwrite")
    if out.is_dir() and (strange := {p.name for p in out.iterdir()} - set(WRITTEN)):
        raise UserError(f"--out {out}: holds {min(strange)}, which no export wrote; name another place")
    if args.format == "transformers":
        from lit_vision.convert.to_transformers import load_mae, write_transformers

        mae, notes = load_mae(source)
        notes |= {"license": args.license} if args.license is not None else {}
        said = write_transformers(mae, out, **notes)
    else:
        method, metadata = load_method(source)
        metadata.license = args.license if args.license is not None else metadata.license
        if args.format == "timm":
            from lit_vision.convert.to_timm import write_timm

            said = write_timm(method, metadata, out)
        else:
            from lit_vision.convert.to_hub import write_hub

            said = write_hub(method, metadata, out, run)
    print(said)
    print(f"{out}: for {args.format}")
    return 0


def _megabytes(path: Path) -> str:
    return f"{sum(p.stat().st_size for p in artifact_files(path)) / 1e6:.3g} MB"
