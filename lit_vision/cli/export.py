"""The export command: write a run as one file or folder for another runtime or project."""

from __future__ import annotations

from collections.abc import Sequence

from lit_vision.cli.parser import CommandParser, add_classes_arguments, add_overwrite_argument
from lit_vision.convert.export import EXPORT_TOLERANCE, FORMATS
from lit_vision.convert.export_model import OTHER_PROJECTS, export_model


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision export",
        description="Write a run as one file with mean, std, size, class names and license inside; the batch size "
        f"stays free. An\nexport whose outputs differ from torch's by more than {EXPORT_TOLERANCE:g} is refused.",
        epilog="examples: lit-vision export runs/classifier/1 --format openvino --int8 data/photos\n"
        "          lit-vision export runs/imagetext/1 --format onnx --classes classes.txt\n\n"
        "TensorRT (not run here) takes the ONNX file; for 224 pixels:\n"
        "  trtexec --onnx=model.onnx --minShapes=images:1x3x224x224 --optShapes=images:8x3x224x224 \\\n"
        "          --maxShapes=images:64x3x224x224 --noTF32 --saveEngine=model.engine",
    )
    parser.add_argument(
        "model",
        metavar="RUN_OR_FILE",
        help="a run's folder, a .ckpt or a .safetensors; with --classes also open_clip:MODEL/WEIGHTS",
    )
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
    add_classes_arguments(parser)
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
    parser.add_argument(
        "--half",
        action="store_true",
        help="onnx, openvino: half precision; inputs and outputs stay float32, and may differ from torch's by 1e-2",
    )
    parser.add_argument(
        "--opset", type=int, metavar="N", help="onnx: version of the operators (default: the exporter's)"
    )
    add_overwrite_argument(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision export RUN_OR_FILE --format FORMAT`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    print("\n".join(export_model(**vars(_parser().parse_args(list(argv)))).notes))
    return 0
