"""Study command: baselines, pre-training and few labels on a folder, summarized in one report."""

from __future__ import annotations

from collections.abc import Sequence

from lit_vision.cli.parser import CommandParser, add_label_arguments
from lit_vision.study.run_study import CACHE_GB, INITS, run_study


def parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser(
        prog="lit-vision study",
        description="Compare ways of using few labels on a folder of images: baselines, public weights, pre-training "
        "on its images.\nWrites one report with its answer, a table and figures, and stores the best model.",
        epilog="example: lit-vision study photos --budget 20\n"
        "Run the command again to continue after a stop: finished parts are reused.\n"
        "Two folders, each pre-trained on and adapted to, in one table:\n"
        "  python experiments/transfer.py --pretrain_on A --adapt_to B",
    )
    add = parser.add_argument
    add(
        "root",
        metavar="ROOT",
        help="folder: train/<class>/* and test/<class>/*, or <class>/*, with unlabeled/* next to them",
    )
    add("--run_dir", metavar="DIR", help="folder for report, figures and results (default: runs/study/<name of ROOT>)")
    add("--budget", type=float, default=20.0, metavar="MIN", help="minutes in all (default: %(default)g)")
    add(
        "--labels",
        metavar="LIST",
        help="1%%, 10%%, 200, 5-shot, all; default: 1%%,10%% of a labeled folder, all of a mixed one",
    )
    add(
        "--seeds",
        default="5",
        metavar="LIST",
        help="seeds for each of --labels, one number or one each (default: %(default)s)",
    )
    add("--max_seeds", default="", metavar="LIST", help="limit the seeds of costly inits: mae=3,scratch-vit=3")
    add(
        "--inits",
        action="append",
        metavar="LIST",
        help=f"what networks start from (default: {INITS}); mae, simclr and lejepa are pre-trained on the images; also "
        "timm:NAME, a file of weights, a run's folder; METHOD@INIT goes on pre-training weights, METHOD@public those "
        "of --pretrained; may be repeated",
    )
    add(
        "--protocols",
        default="finetune",
        metavar="LIST",
        help="how networks train on labels: finetune, last-1, head+norm, bias; ViTs also lora, prompt-shallow, "
        "prompt-deep (default: %(default)s)",
    )
    add(
        "--pretrained",
        default="auto",
        metavar="NAME",
        help="public weights to try: auto (Apache-2.0, chosen by image size and machine, from timm's hub or a package "
        "of lit-vision[public]), off, or timm's name",
    )
    add(
        "--pretrain_on",
        metavar="FOLDER",
        help="pre-train on another folder's images (labels unseen) and adapt to ROOT; default: ROOT's own",
    )
    add(
        "--rotation",
        type=float,
        default=0.0,
        metavar="DEG",
        help="rotate the images of all trainings by up to DEG degrees, if rotated images have the same meaning",
    )
    add(
        "--size",
        type=int,
        metavar="PIXELS",
        help="side of the images that networks are trained on (default: that of the images up to 64; of photographs 96 "
        "on a CPU, 224 on a GPU)",
    )
    add(
        "--frozen_size",
        type=int,
        metavar="PIXELS",
        help="side of the images that public weights see untrained (default: 96 for images up to 64 pixels, else 224)",
    )
    add(
        "--epochs",
        default="",
        metavar="LIST",
        help="set epochs instead of fitting them to the time: mae=100,simclr=100,80=200,800=60 (numbers of labels)",
    )
    add(
        "--choose",
        default="",
        metavar="LIST",
        help="measure by how much choosing what to label beats drawing at random: auto, or strategies of lit-vision "
        "choose, by linear probes on frozen features",
    )
    add(
        "--plan",
        metavar="FILE",
        help="plan.jsonl of an earlier study of these images and settings: repeat its decisions, without the clock",
    )
    add(
        "--cache_gb",
        type=float,
        default=CACHE_GB,
        metavar="GB",
        help="decoded images on the disk while the study runs, at most; with less it takes longer "
        "(default: %(default)g)",
    )
    add(
        "--keep_weights",
        type=int,
        default=1,
        metavar="SEEDS",
        help="store the classifiers of this many seeds (default: %(default)s; the best becomes model.safetensors)",
    )
    add_label_arguments(parser)
    add("--wandb", metavar="PROJECT", help="log tables and figures to Weights & Biases (WANDB_MODE=offline works)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run a study and write its report. Returns 0."""
    for path in run_study(**vars(parser().parse_args(argv))):
        print(path)
    return 0
