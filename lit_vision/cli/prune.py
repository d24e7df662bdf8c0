"""The prune command: write a model with fewer channels, heads and MLP units."""

from __future__ import annotations

from collections.abc import Sequence

from lit_vision.cli.parser import CommandParser, add_overwrite_argument


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision prune MODEL --keep SHARE --out FILE`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    from lit_vision.convert.prune import prune_model

    print(prune_model(args.model, args.keep, args.out, args.overwrite))
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision prune",
        description="Write a model with a share of the channels of every layer: of a ViT's heads and MLP units, of a "
        "ResNet's,\nEfficientNet's or MobileNet's channels. Those with the largest weights stay (L2 norm, averaged "
        "over the layers that\nlose a channel together). Accuracy falls until the model is trained further.",
        epilog="example: lit-vision prune runs/classifier/1 --keep 0.5 --out small.safetensors\n"
        "         lit-vision fit --config RECIPE.yaml --model.backbone_checkpoint small.safetensors\n\n"
        "The file says which channels were kept: predict, serve, export and fit open it as any other, without "
        "torch-pruning.",
    )
    parser.add_argument("model", metavar="MODEL", help="a run's folder, a .ckpt or a .safetensors")
    parser.add_argument(
        "--keep",
        type=float,
        required=True,
        metavar="SHARE",
        help="share of the channels of every layer that stays, between 0 and 1, rounded to multiples of 8 from 16 "
        "channels on; multiply-adds fall about with its square in a CNN",
    )
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="the pruned model")
    add_overwrite_argument(parser)
    return parser
