"""Study command: baselines, pre-training and few labels on a folder, summarized in one report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.cli.parser import CommandParser
from lit_vision.errors import UsageError

if TYPE_CHECKING:
    from lit_vision.study.schedule import StudyPlan

DEFAULT_BUDGET = 20.0  # minutes


def parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser(
        prog="lit-vision study",
        description="Baselines, pre-training on the folder's images, few labels: one report with table and figures.",
        epilog="Run the command again to continue after a stop: finished parts are reused.\n"
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
    add("--budget", type=float, default=DEFAULT_BUDGET, metavar="MIN", help="minutes in all (default: %(default)g)")
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
        default="mae,simclr",
        metavar="LIST",
        help="pre-trainings to try, of mae, simclr, lejepa (default: %(default)s)",
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
        help="public timm weights to try: auto (a small model, Apache-2.0), off, a name",
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
        help="side of the networks' input (default: that of the images up to 64, else 64)",
    )
    add(
        "--epochs",
        default="",
        metavar="LIST",
        help="set epochs instead of measuring: mae=100,simclr=100,80=200,800=60 (numbers of labels)",
    )
    add(
        "--keep_weights",
        type=int,
        default=1,
        metavar="SEEDS",
        help="store the classifiers of this many seeds (default: %(default)s; the best becomes model.safetensors)",
    )
    add("--wandb", metavar="PROJECT", help="log tables and figures to Weights & Biases (WANDB_MODE=offline works)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run a study and write its report. Returns 0."""
    options = parser().parse_args(argv)
    if options.size is not None and options.size < 1:
        raise UsageError(f"--size: {options.size} pixels; give at least 1")
    if options.budget <= 0:
        raise UsageError(f"--budget: {options.budget:g} minutes; give more than 0")
    if not 0 <= options.rotation <= 180:
        raise UsageError(f"--rotation: {options.rotation:g}; give 0 to 180 degrees")
    if options.keep_weights < 0:
        raise UsageError(f"--keep_weights: {options.keep_weights}; give 0 (none) or more seeds")
    inits = _inits(options.inits)
    folder = Path(options.run_dir or Path("runs") / "study" / Path(options.root).resolve().name)

    # heavy imports after the cheap checks: --help answers at once
    from lit_vision.study.cells import check_label_syntax, parse_labels, refuse_older_study
    from lit_vision.study.images import read_images, read_unlabeled
    from lit_vision.study.presets import PUBLIC, SMALL, TIMM, preset_for
    from lit_vision.study.progress import Reporter
    from lit_vision.study.report import write_report
    from lit_vision.study.runner import Study
    from lit_vision.study.schedule import StudyPlan

    protocols = _protocols(options.protocols)
    refuse_older_study(folder)
    public = TIMM + (PUBLIC if options.pretrained == "auto" else options.pretrained)
    if options.pretrained != "off":
        inits.append(public)
    # what a list needs no image for is checked before the folder is read
    check_label_syntax(options.labels or "")
    seeds = _seed_counts(options.seeds)
    max_seeds = _max_seeds(options.max_seeds, inits)
    epochs = _epochs(options.epochs, inits)
    with Reporter() as reporter:
        reporter.log(f"reading {options.root}")
        images = read_images(options.root, options.size)
        step = 4 if images.size <= SMALL else 16
        if images.size % step:
            multiple = images.size // step * step + step
            raise UsageError(f"--size: {images.size} is not a multiple of {step}; give {multiple}")
        labeled, unlabeled = sum(images.per_class), len(images.pool) - sum(images.per_class)
        reporter.log(
            f"{len(images.pool)} training images ({labeled} labeled, {unlabeled} not), {len(images.classes)} classes, "
            f"{len(images.test)} test images, {images.size} pixels"
        )
        for note in images.notes:
            reporter.log(note)
        source = read_unlabeled(options.pretrain_on, images.size) if options.pretrain_on else None
        if source:
            for note in source.notes:
                reporter.log(f"--pretrain_on: {note}")
            images.notes.append(f"Pre-training saw {len(source.pool)} images of another folder, and none of this one.")
            reporter.log(images.notes[-1])
        labels = parse_labels(options.labels or ("all" if unlabeled > labeled else "1%,10%"), images.per_class)
        plan = StudyPlan(labels, _seeds_by_labels(seeds, labels), max_seeds=max_seeds)
        plan.protocols = protocols
        _set_epochs(plan, epochs)
        folder.mkdir(parents=True, exist_ok=True)
        preset = preset_for(images.size, options.rotation)
        optional = {public} if options.pretrained == "auto" else ()
        budget, keep = 60 * options.budget, options.keep_weights
        study = Study(images, preset, inits, plan, budget, folder, reporter, optional, keep, source)
        results = study.run()
        reporter.log("writing the report")
        written = write_report(study, results, options.wandb)
    for path in written:
        print(path)
    return 0


def _items(text: str) -> Iterator[str]:
    return filter(None, (item.strip() for item in text.split(",")))


def _inits(text: str) -> list[str]:
    from lit_vision.study.presets import PRETRAINED

    inits = list(_items(text))
    for init in inits:
        if init not in PRETRAINED:
            raise UsageError(f"--inits: {init!r} is not one of {', '.join(PRETRAINED)}; separate them by commas")
    return inits


def _protocols(text: str) -> list[str]:
    """Return the protocols in the order of the table; fine-tuning is always one, since the verdict reads it."""
    from lit_vision.study.presets import ON_LABELS

    requested = list(_items(text))
    for name in requested:
        if name not in ON_LABELS:
            raise UsageError(f"--protocols: {name!r} is not one of {', '.join(ON_LABELS)}; separate them by commas")
    return [name for name in ON_LABELS if name in requested or name == "finetune"]


def _seed_counts(text: str) -> list[int]:
    """Return the numbers of a list such as 5 or 5,3."""
    try:
        counts = [int(item) for item in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds: {text!r}; give one number, or one for each of --labels") from None
    if min(counts) < 1:
        raise UsageError(f"--seeds: {text!r}; give numbers of at least 1")
    return counts


def _seeds_by_labels(counts: list[int], labels: list[int]) -> dict[int, int]:
    if len(counts) not in (1, len(labels)):
        raise UsageError(f"--seeds: {len(counts)} numbers; give one, or one for each of {labels} labels")
    return dict(zip(labels, counts if len(counts) > 1 else counts * len(labels)))


def _max_seeds(text: str, inits: list[str]) -> dict[str, int]:
    """Return the limits of a list such as mae=3,scratch-vit=3."""
    from lit_vision.study.presets import SCRATCH

    max_seeds, known = {}, (*SCRATCH, *inits)
    for item in _items(text):
        name, _, value = item.partition("=")
        if name not in known or not value.isdecimal() or int(value) < 1:
            raise UsageError(f"--max_seeds: {item!r}; give INIT=SEEDS with INIT one of {', '.join(known)}")
        max_seeds[name] = int(value)
    return max_seeds


def _epochs(text: str, inits: list[str]) -> dict[str, int]:
    """Return the epochs of a list such as mae=100,80=200, by init or number of labels."""
    from lit_vision.study.presets import TIMM

    epochs, names = {}, [init for init in inits if not init.startswith(TIMM)]
    for item in _items(text):
        name, _, value = item.partition("=")
        if not (name in names or name.isdecimal()) or not value.isdecimal() or int(value) < 1:
            raise UsageError(
                f"--epochs: {item!r}; give NAME=EPOCHS with NAME one of {', '.join(names)} or a number of labels"
            )
        epochs[name] = int(value)
    return epochs


def _set_epochs(plan: StudyPlan, epochs: dict[str, int]) -> None:
    """Set the epochs of a plan: those of pre-trainings by init, those of trainings on labels by their number."""
    from lit_vision.study.presets import StudyPreset

    for name, value in epochs.items():
        if not name.isdecimal():
            plan.pretrain[name] = value
            continue
        if name not in map(str, plan.labels):
            known = ", ".join(map(str, plan.labels))
            raise UsageError(f"--epochs: {name}={value}; the study has no {name} labels, but {known}")
        plan.fixed.append(int(name))
        plan.tune[int(name)] = value
        plan.scratch[int(name)] = value * StudyPreset.scratch_factor
