"""`lit-vision study ROOT`: what should I do with this folder?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_vision.errors import UsageError, UserError

DEFAULT_BUDGET = 20.0  # minutes


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    words = argparse.ArgumentParser(
        prog="lit-vision study",
        allow_abbrev=False,
        description="Baselines, pre-training on the folder's own images, few labels: one table, pictures, and what they say.",
        epilog="Run it again to go on after a stop: what is done is kept, and only what a change touches runs again. "
        "Two folders, each pre-trained on and adapted to, in one table: python experiments/transfer.py --pretrain-on A --adapt-to B",
    )
    add = words.add_argument
    add(
        "root",
        nargs="?",
        metavar="ROOT",
        help="folder: train/<class>/* and test/<class>/*, or <class>/*, with unlabeled/* beside them",
    )
    add("--run_dir", metavar="DIR", help="where report, pictures and results go (default: runs/study/<name of ROOT>)")
    add("--budget", type=float, default=DEFAULT_BUDGET, metavar="MIN", help="minutes in all (default: %(default)g)")
    add(
        "--labels",
        metavar="LIST",
        help="1%%, 10%%, 200, 5-shot, all; default: 1%%,10%% of a labelled folder, all of a mixed one",
    )
    add(
        "--seeds",
        default="5",
        metavar="LIST",
        help="seeds for each of --labels, one number or one each (default: %(default)s)",
    )
    add("--fewer", default="", metavar="LIST", help="fewer seeds for costly starts: mae=3,scratch-vit=3")
    add("--starts", default="mae,simclr", metavar="LIST", help="pre-trainings to try (default: %(default)s)")
    add(
        "--protocols",
        default="finetune",
        metavar="LIST",
        help="how networks train on labels: finetune, last-1, head+norm, bias; ViTs also lora, prompt-shallow, prompt-deep (default: %(default)s)",
    )
    add(
        "--pretrained",
        default="auto",
        metavar="NAME",
        help="public timm weights to try: auto (a small one, Apache-2.0), off, a name",
    )
    add(
        "--pretrain-on",
        metavar="FOLDER",
        help="pre-train on another folder's images (labels unseen) and adapt to ROOT; default: ROOT's own",
    )
    add("--adapt-to", metavar="B", help="with --pretrain-on A: another word for ROOT, in this direction alone")
    add(
        "--rotation",
        type=float,
        default=0.0,
        metavar="DEG",
        help="turned pictures mean the same: all trainings turn by up to DEG",
    )
    add(
        "--size",
        type=int,
        metavar="PIXELS",
        help="side of the networks' input (default: the images' own up to 64, else 64)",
    )
    add(
        "--epochs",
        default="",
        metavar="LIST",
        help="fix epochs instead of measuring: mae=100,simclr=100,80=200,800=60 (labels)",
    )
    add(
        "--keep_weights",
        type=int,
        default=1,
        metavar="SEEDS",
        help="keep the classifiers of so many seeds (default: %(default)s; the best becomes model.safetensors)",
    )
    add(
        "--wandb", metavar="PROJECT", help="send tables and pictures to Weights & Biases too (WANDB_MODE=offline works)"
    )
    return words


def main(argv: Sequence[str]) -> int:
    """Run a study and write its report. Returns 0."""
    arguments = parser()
    options = arguments.parse_args(argv)
    options.root = _root(options)
    if options.budget <= 0:
        raise UserError(f"--budget: {options.budget:g} minutes; give more than 0")
    if not 0 <= options.rotation <= 180:
        raise UserError(f"--rotation: {options.rotation:g}; give 0 to 180 degrees")

    # heavy imports after the words are checked: --help answers at once
    from lit_vision.study.cells import parse_labels
    from lit_vision.study.images import read_images, read_pool
    from lit_vision.study.presets import PUBLIC, SMALL, TIMM, preset_for
    from lit_vision.study.progress import Reporter
    from lit_vision.study.report import write_report
    from lit_vision.study.runner import Study
    from lit_vision.study.schedule import StudyPlan

    inits = _inits(options.starts)
    public = TIMM + (PUBLIC if options.pretrained == "auto" else options.pretrained)
    if options.pretrained != "off":
        inits.append(public)
    with Reporter() as report:
        report.say(f"reading {options.root}")
        images = read_images(options.root, options.size)
        step = 4 if images.size <= SMALL else 16
        if images.size % step:
            raise UserError(f"--size: {images.size} is no multiple of {step}; give {images.size // step * step + step}")
        labeled, unlabeled = sum(images.per_class), len(images.pool) - sum(images.per_class)
        report.say(
            f"{len(images.pool)} training images ({labeled} labelled, {unlabeled} not), {len(images.classes)} classes, "
            f"{len(images.test)} test images, {images.size} pixels"
        )
        for note in images.notes:
            report.say(note)
        source = read_pool(options.pretrain_on, images.size) if options.pretrain_on else None
        if source:
            images.notes.append(f"Pre-training saw {len(source.pool)} images of another folder, and none of this one.")
            report.say(images.notes[-1])
        labels = parse_labels(options.labels or ("all" if unlabeled > labeled else "1%,10%"), images.per_class)
        plan = StudyPlan(labels, _seeds(options.seeds, labels), max_seeds=_max_seeds(options.fewer, inits))
        plan.protocols = _protocols(options.protocols)
        _fix_epochs(plan, options.epochs, inits)
        folder = Path(options.run_dir or Path("runs") / "study" / Path(options.root).resolve().name)
        folder.mkdir(parents=True, exist_ok=True)
        preset = preset_for(images.size, options.rotation)
        optional = {public} if options.pretrained == "auto" else ()
        budget, keep = 60 * options.budget, options.keep_weights
        study = Study(images, preset, inits, plan, budget, folder, report, optional, keep, source)
        outcomes = study.run()
        report.say("writing the report")
        written = write_report(study, outcomes, options.wandb)
    for path in written:
        print(path)
    return 0


def _root(options: argparse.Namespace) -> str:
    """The folder that is adapted to, under its one name or the other."""
    if options.adapt_to is None:
        if options.root is None:
            raise UsageError("ROOT: is missing; name the folder that the study is about")
        return options.root
    if options.root is not None:
        raise UsageError(f"--adapt-to {options.adapt_to}: ROOT is {options.root} already; give one of them")
    if not options.pretrain_on:
        raise UsageError(f"--adapt-to {options.adapt_to}: goes with --pretrain-on FOLDER; without one, give it as ROOT")
    return options.adapt_to


def _inits(text: str) -> list[str]:
    inits = [word.strip() for word in text.split(",") if word.strip()]
    for init in inits:
        if init not in ("mae", "simclr"):
            raise UserError(f"--starts: {init!r} is not mae or simclr; separate them by commas")
    return inits


def _protocols(text: str) -> list[str]:
    """Always with fine-tuning, which the verdict reads."""
    from lit_vision.study.presets import ON_LABELS

    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in ON_LABELS:
            raise UserError(f"--protocols: {word!r} is not one of {', '.join(ON_LABELS)}; separate them by commas")
    return [one for one in ON_LABELS if one in words or one == "finetune"]


def _seeds(text: str, labels: list[int]) -> dict[int, int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds: {text!r}; give one number, or one for each of --labels") from None
    if len(counts) not in (1, len(labels)) or min(counts) < 1:
        raise UserError(f"--seeds: {text!r}; give one number from 1, or one for each of {labels} labels")
    return dict(zip(labels, counts if len(counts) > 1 else counts * len(labels)))


def _max_seeds(text: str, inits: list[str]) -> dict[str, int]:
    """mae=3,scratch-vit=3: at most so many seeds."""
    max_seeds, known = {}, ("scratch-cnn", "scratch-vit", *inits)
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        if name not in known or not value.isdigit() or int(value) < 1:
            raise UserError(f"--fewer: {word!r}; give START=SEEDS with START out of {', '.join(known)}")
        max_seeds[name] = int(value)
    return max_seeds


def _fix_epochs(plan, text: str, inits: list[str]) -> None:
    """mae=100,80=200: pre-training by start, trainings on labels by their number."""
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        known = (name in inits and not name.startswith("timm:")) or (name.isdigit() and int(name) in plan.labels)
        if not known or not value.isdigit() or int(value) < 1:
            raise UserError(
                f"--epochs: {word!r}; give NAME=EPOCHS with NAME out of {', '.join([*inits, *map(str, plan.labels)])}"
            )
        if name in inits:
            plan.pretrain[name] = int(value)
        else:
            from lit_vision.study.presets import StudyPreset

            plan.fixed.append(int(name))
            plan.tune[int(name)] = int(value)
            plan.scratch[int(name)] = int(value) * StudyPreset.scratch_factor
