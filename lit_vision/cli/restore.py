"""The restore command: denoise, enlarge or fill images of any size, into a folder."""

from __future__ import annotations

from collections.abc import Sequence

from lit_vision.cli.parser import IMAGES_HELP, CommandParser, add_overwrite_argument


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision restore",
        description="Restore images with a model that was trained to undo noise, blur, JPEG artifacts, down-sampling "
        "or holes.\nEach becomes a PNG of its own size, or larger if the model enlarges, by overlapping tiles. Images "
        "that cannot be\nread are skipped and listed in DIR/restored.csv.skipped.csv. A command that was stopped "
        "continues where it was\nwhen it is run again.",
        epilog="example: lit-vision restore --model runs/restorer/20260101-120000 photos/ --out restored",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help=IMAGES_HELP)
    parser.add_argument(
        "--model",
        required=True,
        metavar="RUN_OR_FILE",
        help="a run of Restorer, or its .ckpt, .safetensors, .onnx, .xml, .pt2; with --mask also a run of MAE that was "
        "trained with norm_pix_loss: false",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the restored images, DIR/NAME.png")
    parser.add_argument(
        "--mask",
        metavar="FILE_OR_DIR",
        help="white where pixels are missing: an image for all, or a folder with DIR's file names",
    )
    parser.add_argument(
        "--compare", action="store_true", help="also write DIR/compare/NAME.png: before and after, side by side"
    )
    parser.add_argument("--tile", type=int, metavar="N", help="side of the tiles, pixels (default 256)")
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda"],
        help="device of torch (default auto: a GPU if there is one)",
    )
    parser.add_argument(
        "--trust_pt2", action="store_true", help="load a .pt2, which can run code of whoever made the file"
    )
    add_overwrite_argument(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision restore --model RUN_OR_FILE IMAGES --out DIR`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    from lit_vision.predict.restore import restore_images

    found = restore_images(**vars(args))
    note = f", {found.skipped} skipped (see restored.csv.skipped.csv)" if found.skipped else ""
    print(f"{found.folder}: {found.done} images{note}")
    return 0
