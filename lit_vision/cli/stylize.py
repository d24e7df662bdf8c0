"""The stylize command: write the content of a photograph in the style of another image."""

from __future__ import annotations

from collections.abc import Sequence

from lit_vision.cli.parser import CommandParser, add_overwrite_argument


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision stylize",
        description="Write the content of a photograph in the style of another image: its pixels are optimized until "
        "their features are\nlike those of the content and correlate like those of the style (Gatys et al. 2016). With "
        "the defaults it takes about\na minute on two CPU cores. The same command gives the same file.",
        epilog="example: lit-vision stylize portrait.jpg --style painting.jpg --out painted.png",
    )
    parser.add_argument("content", metavar="CONTENT", help="the image whose content is kept")
    parser.add_argument("--style", required=True, metavar="STYLE", help="the image whose style it gets")
    parser.add_argument("--out", required=True, metavar="FILE", help="the result, .png")
    parser.add_argument(
        "--backbone",
        default="tf_efficientnet_lite0",
        metavar="NAME",
        help="a CNN of timm whose features are compared (default tf_efficientnet_lite0, which the extra `public` "
        "brings; vgg19 is the paper's, its weights need the network once)",
    )
    parser.add_argument(
        "--size", type=int, default=384, metavar="N", help="longer side of the result, pixels (default 384)"
    )
    parser.add_argument(
        "--steps", type=int, default=200, metavar="N", help="of the optimization, half at half the size (default 200)"
    )
    parser.add_argument(
        "--style_weight", type=float, default=10.0, metavar="W", help="of the style against the content (default 10)"
    )
    parser.add_argument(
        "--smoothness", type=float, default=3.0, metavar="W", help="weight of the total variation (default 3)"
    )
    parser.add_argument(
        "--keep_color", action="store_true", help="take the style's luminance only, and keep the content's colors"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of noise in the image that it starts from: 0 is the content, 1 noise alone (default 0)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda"],
        help="device of torch (default auto: a GPU if there is one)",
    )
    add_overwrite_argument(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision stylize CONTENT --style STYLE --out FILE`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    from lit_vision.predict.stylize import stylize

    found = stylize(**vars(args))
    print(f"{found.path}: {found.width} x {found.height} pixels")
    return 0
