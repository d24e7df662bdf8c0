"""The generate command: make images with a generator and write them to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import CommandParser
from lit_vision.errors import UserError


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision generate",
        description="Make images with a generator (FlowMatching, GAN). Image i depends on the model, --seed and i\n"
        "alone. A command that was stopped continues where it was when it is run again, also with a larger --num.",
        epilog="example: lit-vision generate --model runs/gan/20260101-120000 --num 64 --out made --grid made.png",
    )
    parser.add_argument("--model", required=True, metavar="RUN_OR_FILE", help="a run's folder, or its .ckpt")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the PNG files; new, empty, or of this call"
    )
    parser.add_argument("--num", type=int, default=64, metavar="N", help="images (default 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise (default 0)")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="text file with the name of a class a line, for the images in turn (default: all classes in turn); "
        "DIR/labels.csv lists what was made",
    )
    parser.add_argument("--grid", metavar="FILE", help="also write the first 100 images, ten a row, to this PNG file")
    parser.add_argument("--sampler", choices=["euler", "heun"], help="flow matching: how to follow it (default heun)")
    parser.add_argument("--steps", type=int, metavar="N", help="flow matching: steps of the sampler (default 25)")
    parser.add_argument(
        "--guidance", type=float, metavar="G", help="flow matching: strength of the class (default 1: as trained)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, metavar="N", help="images that the network sees at once (default 64)"
    )
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="device of torch (default auto)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision generate --model RUN --out DIR`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    if args.grid is not None and Path(args.grid).suffix.lower() != ".png":
        raise UserError(f"--grid {args.grid}: write a .png file")
    from lit_vision.data.annotations.files import read_lines
    from lit_vision.predict.generate import generate_images

    classes = None if args.classes is None else read_lines(Path(args.classes).expanduser(), "file of --classes")
    made = generate_images(
        args.model,
        args.out,
        args.num,
        seed=args.seed,
        classes=classes,
        grid=args.grid,
        micro_batch=args.batch_size,
        device=args.device,
        classes_from=f"--classes {args.classes}",
        sampler=args.sampler,
        steps=args.steps,
        guidance=args.guidance,
    )
    kept = f", {args.num - made} were there" if made < args.num else ""
    print(f"{args.out}: {args.num} images{kept}" + (f"; {args.grid}" if args.grid else ""))
    return 0
