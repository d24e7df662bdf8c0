"""Run a study: baselines, pre-training and few labels on a folder, summarized in one report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.errors import UsageError
from lit_vision.evaluation.acquisition import RANDOM, STRATEGIES
from lit_vision.evaluation.suggestions import AUTO, BEST
from lit_vision.study.inits import AUTO_PUBLIC, PUBLIC_BASE, choose_public, parse_inits
from lit_vision.study.presets import ON_LABELS, SCRATCH, TIMM, method_of
from lit_vision.study.sizes import choose_sizes

if TYPE_CHECKING:
    from lit_vision.study.images import StudyImages

LARGEST_SIZE = 4096  # pixels
INITS = "mae,simclr"
CACHE_GB = 8.0


def run_study(
    root: str | Path,
    *,
    run_dir: str | Path | None = None,
    budget: float = 20.0,
    labels: str | int | Sequence[str | int] | None = None,
    seeds: str | int | Sequence[int] = "5",
    max_seeds: str = "",
    inits: str | Sequence[str] | None = None,
    protocols: str | Sequence[str] = "finetune",
    pretrained: str = "auto",
    pretrain_on: str | Path | None = None,
    rotation: float = 0.0,
    size: int | None = None,
    frozen_size: int | None = None,
    epochs: str = "",
    keep_weights: int = 1,
    plan: str | Path | None = None,
    choose: str | Sequence[str] = "",
    cache_gb: float = CACHE_GB,
    label_file: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    label_columns: str | None = None,
    label_separator: str | None = None,
    split_column: str | None = None,
    group_by: str | int | None = None,
    wandb: str | None = None,
) -> list[Path]:
    """Run `lit-vision study`: train baselines and pre-trained networks on few labels of a folder, write a report.

    Prints a line for each step. Call it again with the same arguments to continue after a stop: finished parts are
    reused. The lists are texts as on the command line; labels, seeds, inits and protocols may be Python's lists too.

    Args:
        root: folder with train/<class>/* and test/<class>/*, or <class>/*, and unlabeled/* next to them.
        run_dir: folder for report, figures and results; None: runs/study/<name of root>.
        budget: minutes in all, above 0.
        labels: list of 1%, 10%, 200, 5-shot, all; None: 1%,10% of a labeled folder, all of a mixed one.
        seeds: seeds for each of `labels`, one number or one each.
        max_seeds: limits of the seeds of costly inits, such as mae=3,scratch-vit=3.
        inits: what to start from: mae, simclr, lejepa (pre-trained on the images), timm:NAME, a file of weights or a
            run's folder; METHOD@INIT goes on pre-training the weights of another, METHOD@public those of `pretrained`.
            None: mae,simclr.
        protocols: how networks train on labels: finetune, last-1, head+norm, bias; ViTs also lora, prompt-shallow,
            prompt-deep.
        pretrained: public weights to try: auto (by image size and machine, from timm's hub or an installed package),
            off, or timm's name.
        pretrain_on: pre-train on another folder's images, labels unseen; None: on those of root.
        rotation: rotate the images of all trainings by up to this many degrees, 0 to 180.
        size: side of the images that networks are trained on, pixels; None: that of the images up to 64, for
            photographs 96 on a CPU and 224 on a GPU.
        frozen_size: side of the images that public weights see when nothing of them is trained; None: 96 for images of
            up to 64 pixels, else 224.
        epochs: set epochs instead of fitting them to the time, such as mae=100,80=200 (numbers of labels).
        keep_weights: store the classifiers of this many seeds, 0 or more.
        plan: plan.jsonl of an earlier study of these images and settings: its decisions are repeated and the clock is
            not asked, which gives the same table.
        choose: strategies of choosing what to label (`lit_vision.evaluation.acquisition.STRATEGIES`, or auto), measured
            against labels drawn at random, by linear probes on the frozen features that cross-validation prefers.
        cache_gb: gigabytes of decoded training images that may lie in the run's folder while the study runs, 0 or more;
            those beyond are decoded whenever they are needed, which changes the time and no number.
        label_file: a table of labels, CSV or JSON lines, instead of labels from the folders' names.
        path_column, label_column, split_column: its columns, if they have unusual names.
        label_columns, label_separator: of tables with several labels an image; the study's metric is then macro AP.
        group_by: what must not stand on both sides of a split, neither of the test split nor of those inside the
            labels: a column, or the level of a folder.
        wandb: project of Weights & Biases to log tables and figures to, or None.

    Returns:
        The files written: report.html, report.md, results.json, model.safetensors and folders of figures.

    Raises:
        UserError: one line that names the file or key and what to do. UsageError (a UserError): a value is wrong.
    """
    for flag, pixels in (("--size", size), ("--frozen_size", frozen_size)):
        if pixels is not None and not 1 <= pixels <= LARGEST_SIZE:
            raise UsageError(f"{flag}: {pixels} pixels; give 1 to {LARGEST_SIZE}")
    if not 0 < budget < float("inf"):  # not a number is refused too
        raise UsageError(f"--budget: {budget:g} minutes; give a number above 0")
    if not 0 <= rotation <= 180:
        raise UsageError(f"--rotation: {rotation:g}; give 0 to 180 degrees")
    if not 0 <= cache_gb < float("inf"):
        raise UsageError(f"--cache_gb: {cache_gb:g}; give 0 or more gigabytes")
    if keep_weights < 0:
        raise UsageError(f"--keep_weights: {keep_weights}; give 0 (none) or more seeds")
    labels, seeds = None if labels is None else _text(labels), _text(seeds)
    public = {"auto": AUTO_PUBLIC, "off": ""}.get(pretrained, TIMM + pretrained.removeprefix(TIMM))
    inits = INITS if inits is None else inits
    listed = [*([inits] if isinstance(inits, str) else inits), *filter(None, [public])]
    names = [init.name for init in parse_inits(listed, public)]
    folder = Path(run_dir or Path("runs") / "study" / Path(root).resolve().name)

    # heavy imports after the cheap checks: a wrong value is reported at once
    import torch

    from lit_vision.data.labeled_folder import label_options
    from lit_vision.study.cells import check_label_syntax, notes_on_labels, refuse_older_study
    from lit_vision.study.decisions import only_run
    from lit_vision.study.image_checks import check_run_dir, image_notes
    from lit_vision.study.images import read_images, read_unlabeled
    from lit_vision.study.pixel_cache import PixelCache
    from lit_vision.study.presets import preset_for
    from lit_vision.study.progress import Reporter
    from lit_vision.study.report import write_report
    from lit_vision.study.runner import Study
    from lit_vision.study.settings import Settings

    on_labels, strategies = _protocols(_text(protocols)), _strategies(_text(choose))
    check_run_dir(folder, *([] if label_file else [root]), *([pretrain_on] if pretrain_on else []))
    refuse_older_study(folder)
    replay = _plan(plan)
    # what a list needs no image for is checked before the folder is read
    check_label_syntax(labels or "")
    counts, limits, fixed_epochs = _seed_counts(seeds), _max_seeds(max_seeds, names), _epochs(epochs, names)
    options = label_options(
        label_file,
        path_column=path_column,
        label_column=label_column,
        label_columns=label_columns,
        label_separator=label_separator,
        split_column=split_column,
        group_by=group_by,
    )
    label_table = options if options.given else None
    with Reporter() as reporter, PixelCache(folder, cache_gb, reporter.log) as cache:
        reporter.log(f"reading {root}")
        gpu = torch.cuda.is_available()
        sides: list[int] = []  # the typical one of the images

        def training_side(typical: int) -> int:
            sides.append(typical)
            return choose_sizes(typical, names, gpu, size, frozen_size).train

        reporter.start_task("reading images", 1)
        images = read_images(root, training_side, labels=label_table, cache=cache, on_image=reporter.update)
        sizes = choose_sizes(sides[0], names, gpu, size, frozen_size)
        if public == AUTO_PUBLIC:
            public = choose_public(sides[0], gpu)
            listed[-1] = public
            limits, fixed_epochs = _rename(limits, AUTO_PUBLIC, public), _rename(fixed_epochs, AUTO_PUBLIC, public)
        tried = parse_inits(listed, public)
        labeled, unlabeled = images.labeled, len(images.pool) - images.labeled
        reporter.log(
            f"{len(images.pool)} training images ({labeled} labeled, {unlabeled} not), {len(images.classes)} classes, "
            f"{len(images.test)} test images"
        )
        images.notes.insert(0, sizes.reason)
        images.notes += [*notes_on_labels(labels or "", len(images.classes), labeled), *image_notes(images)]
        for note in images.notes:
            reporter.log(note)
        source = read_unlabeled(pretrain_on, images.size, cache, reporter.update) if pretrain_on else None
        if source:
            for note in source.notes:
                reporter.log(f"--pretrain_on: {note}")
            images.notes.append(f"Pre-training saw {len(source.pool)} images of another folder, and none of this one.")
            reporter.log(images.notes[-1])
        numbers = _label_numbers(labels, images, strategies)
        _check_label_numbers(fixed_epochs, numbers)
        settings = Settings(
            numbers, _seeds_by_labels(counts, numbers), limits, fixed_epochs, on_labels, frozen_size, strategies
        )
        folder.mkdir(parents=True, exist_ok=True)
        preset = preset_for(images.size, rotation, gpu=gpu, frozen=sizes.frozen)
        optional = {public} if pretrained == "auto" else ()
        study = Study(
            images,
            preset,
            tried,
            settings,
            60 * budget,
            folder,
            reporter,
            optional,
            keep_weights,
            source,
            replay,
        )
        with only_run(folder):
            results = study.run()
            reporter.log("writing the report")
            return write_report(study, results, wandb)


def _text(values: str | int | Sequence[str | int]) -> str:
    """Return a list as the command line has it: items separated by commas."""
    return str(values) if isinstance(values, str | int) else ",".join(map(str, values))


def _items(text: str) -> Iterator[str]:
    return filter(None, (item.strip() for item in text.split(",")))


def _rename(values: dict[str, int], old: str, new: str) -> dict[str, int]:
    """Return values by init with the name of public weights replaced."""
    return {name.replace(old, new): value for name, value in values.items()}


def _plan(path: str | Path | None) -> Path | None:
    """Return the plan to repeat; that it was made for these images is known only once they are read."""
    from lit_vision.study.decisions import read_finished

    if not path:
        return None
    read_finished(Path(path))
    return Path(path)


def _protocols(text: str) -> list[str]:
    """Return the protocols in the order of the table; fine-tuning is always one, since the verdict reads it."""
    requested = list(_items(text))
    for name in requested:
        if name not in ON_LABELS:
            raise UsageError(f"--protocols: {name!r} is not one of {', '.join(ON_LABELS)}; separate them by commas")
    return [name for name in ON_LABELS if name in requested or name == "finetune"]


def _strategies(text: str) -> list[str]:
    """Return the strategies of --choose, each once; "auto" is the best one."""
    names = [BEST if name == AUTO else name for name in _items(text)]
    for name in names:
        if name not in STRATEGIES or name == RANDOM:
            others = ", ".join(name for name in STRATEGIES if name != RANDOM)
            raise UsageError(f"--choose: {name!r} is not one of {AUTO}, {others}; separate them by commas")
    return list(dict.fromkeys(names))


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
    return _values(text, "--max_seeds", "INIT=SEEDS with INIT", [*SCRATCH, *inits])


def _epochs(text: str, inits: list[str]) -> dict[str, int]:
    """Return the epochs of a list such as mae=100,80=200, by init or number of labels."""
    known = [init for init in inits if method_of(init)]
    return _values(text, "--epochs", "NAME=EPOCHS with NAME a number of labels or", known, numbers=True)


def _values(text: str, flag: str, form: str, inits: list[str], numbers: bool = False) -> dict[str, int]:
    """Return the values of a list such as mae=3,simclr@public=2, by init or (`numbers`) number of labels."""
    values, names = {}, {init.replace(AUTO_PUBLIC, PUBLIC_BASE): init for init in inits}
    for item in _items(text):
        name, _, value = item.rpartition("=")
        known = name in names or name in inits or (numbers and name.isdecimal())
        if not known or not value.isdecimal() or int(value) < 1:
            raise UsageError(f"{flag}: {item!r}; give {form} one of {', '.join(names)}")
        values[names.get(name, name)] = int(value)
    return values


def _label_numbers(text: str | None, images: StudyImages, strategies: Sequence[str]) -> list[int]:
    """Return the numbers of labels of --labels; raise UsageError if they or --choose do not fit the images' labels."""
    from lit_vision.study.cells import parse_labels

    several, labeled = images.kind.several, images.labeled
    if strategies and several:
        raise UsageError("--choose: takes images of one label each, and these have several; leave it out")
    text = text or ("all" if len(images.pool) > 2 * labeled else "1%,10%")
    return parse_labels(text, images.per_class, labeled if several else None)


def _check_label_numbers(epochs: dict[str, int], labels: list[int]) -> None:
    """Raise UsageError if epochs are set for a number of labels that the study does not train at."""
    for name, value in epochs.items():
        if name.isdecimal() and int(name) not in labels:
            known = ", ".join(map(str, labels))
            raise UsageError(f"--epochs: {name}={value}; the study has no {name} labels, but {known}")
