"""Choose which images of a folder to label next: a CSV with the reasons, and a page with the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lit_vision.errors import UsageError, UserError
from lit_vision.evaluation.acquisition import NEED_PROBABILITIES, STRATEGIES, strategy_now
from lit_vision.evaluation.suggestions import AUTO, BEST, Suggestion, suggest
from lit_vision.evaluation.typical_images import LARGEST
from lit_vision.io.text import join_names

if TYPE_CHECKING:
    from lit_vision.study.choice_pool import ChoicePool
    from lit_vision.study.frozen_encoder import FrozenEncoder

DEFAULT_NUM = 100
ON_PAGE = 300  # images of the page at most; the CSV has all
COLUMNS = (
    "rank",
    "path",
    "reason",
    "nearest_path",
    "nearest_label",
    "similarity",
    "likely_label",
    "probability",
    "second_label",
    "second_probability",
)
LOOKED_FOR = {  # by strategy
    "random": "images drawn at random",
    "entropy": "images of which the model is least sure over all classes (entropy)",
    "margin": "images whose two most likely classes are nearest to each other (margin)",
    "badge": "images of which the model is unsure and that differ from each other (BADGE)",
    "k-center": "images that are farthest from all others (k-center)",
    "typiclust": "the most typical images of groups without labels (TypiClust)",
    "probcover": "images that stand for many others without a label (ProbCover)",
}


def choose_images(
    root: str | Path,
    *,
    num: int = DEFAULT_NUM,
    strategy: str = AUTO,
    model: str | None = None,
    run_dir: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    ignore_folders: bool = False,
    frozen_size: int | None = None,
    label_file: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    label_columns: str | None = None,
    label_separator: str | None = None,
    split_column: str | None = None,
) -> list[Path]:
    """Choose as `lit-vision choose`: write which images to label next, the one to label first in front.

    Prints a line for each step. The choice depends on images, labels, weights, strategy and seed alone. Features are
    kept in the run's folder; later calls find them, whatever was labeled since.

    Args:
        root: folder of images with its subfolders, or shards.
        num: images to choose.
        strategy: one of `lit_vision.evaluation.acquisition.STRATEGIES`; auto: ProbCover, then, from four labels a class
            on, the margin.
        model: whose features the images are compared by: timm:NAME, a file of weights or a run's folder; None: public
            weights by size of the images and machine, as a study's.
        run_dir: folder for weights and features; None: runs/choose/<name of root>.
        out: the CSV; a page of the same name and .html is written beside it. None: choose.csv in the run's folder,
            which is replaced.
        overwrite: replace the files of `out`.
        seed: of everything that is drawn.
        ignore_folders: names of subfolders are no labels.
        frozen_size: side at which the encoder sees the images, pixels; None: as in a study.
        label_file: a table of the labels that there are, instead of the names of class folders.
        path_column, label_column, split_column: its columns, if they have unusual names.
        label_columns, label_separator: of tables with several labels an image.

    Returns:
        The CSV and the page.

    Raises:
        UserError: one line that names the file or flag and what to do. UsageError (a UserError): a value is wrong.
    """
    _check(num, strategy, seed, frozen_size)
    from lit_vision.data.labeled_folder import label_options
    from lit_vision.data.value_range import measure_range, require_range
    from lit_vision.data.views.pixel_values import PixelFormat
    from lit_vision.io.atomic import atomic_write
    from lit_vision.predict.feature_cache import cached_features
    from lit_vision.predict.writers import check_output_path, csv_line
    from lit_vision.study.choice_pool import read_choice_pool
    from lit_vision.study.contact_sheet import SheetImage, write_contact_sheet
    from lit_vision.study.frozen_encoder import open_frozen_encoder, parse_model
    from lit_vision.study.progress import Reporter

    folder = Path(run_dir or Path("runs") / "choose" / Path(root).resolve().name)
    init = parse_model(model)
    if out is not None and Path(out).suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: end its name in .csv")
    csv = check_output_path(folder / "choose.csv" if out is None else out, out is None or overwrite)
    page = check_output_path(csv.with_suffix(".html"), out is None or overwrite)
    options = label_options(
        label_file,
        path_column=path_column,
        label_column=label_column,
        label_columns=label_columns,
        label_separator=label_separator,
        split_column=split_column,
    )
    with Reporter() as reporter:
        pool = read_choice_pool(root, options, ignore_folders)
        known = int((pool.labels >= 0).sum())
        _check_enough(root, pool, num, strategy)
        measured = measure_range(pool.folder.read, pool.paths)
        pixel_format = PixelFormat(require_range(measured, str(root)))
        classes = f" of {len(pool.classes)} classes" if known and not pool.several else ""
        reporter.log(f"{root}: {len(pool.paths)} images, of which {known} have a label{classes}")
        for note in [*pool.notes, *([measured.describe("")] if measured.images else [])]:
            reporter.log(note)
        encoder = open_frozen_encoder(pool.folder, pool.paths, init, folder, frozen_size)
        if encoder.origin:
            reporter.log(f"{encoder.name}: weights of {encoder.origin}")
        reporter.start_task(f"features of {encoder.name} at {encoder.size} pixels", 1)
        features = cached_features(
            pool.folder,
            pool.paths,
            encoder.backbone,
            encoder.mean,
            encoder.std,
            encoder.size,
            encoder.crop_pct,
            folder / "features",
            pixel_format,
            reporter.update,
            skip_unreadable=True,
        )
        readable = np.isfinite(features[:, 0])
        if not readable.all():
            bad = [path for path, good in zip(pool.paths, readable) if not good]
            reporter.log(f"left out: {len(bad)} images that cannot be read ({join_names(bad)})")
            pool, features = pool.select(np.flatnonzero(readable)), features[readable]
            _check_enough(root, pool, num, strategy)
        chosen = suggest(strategy, features, pool.labels, pool.classes, num, seed=seed)
        summary = _describe(strategy, pool, encoder, seed)
        reporter.log(summary)
        lines = [_fields(rank, one, pool) for rank, one in enumerate(chosen, 1)]
        content = b"".join(map(csv_line, [COLUMNS, *lines]))
        atomic_write(csv, lambda file: file.write_bytes(content))
        more = [f"The first {ON_PAGE} of {num}; {csv.name} has all."] if num > ON_PAGE else []
        title = f"{num} images of {Path(root).resolve().name} to label next"
        pictures = [SheetImage(line[1], _caption(line)) for line in lines[:ON_PAGE]]
        write_contact_sheet(page, title, [summary, *more], pool.folder, pixel_format, pictures)
    return [csv, page]


def _check(num: int, strategy: str, seed: int, frozen_size: int | None) -> None:
    if num < 1:
        raise UsageError(f"--num: {num}; give at least 1")
    if strategy not in (AUTO, *STRATEGIES):
        raise UsageError(f"--strategy: {strategy!r} is not one of {', '.join((AUTO, *STRATEGIES))}")
    if seed < 0:
        raise UsageError(f"--seed: {seed}; give 0 or more")
    if frozen_size is not None and not 1 <= frozen_size <= 4096:
        raise UsageError(f"--frozen_size: {frozen_size} pixels; give 1 to 4096")


def _check_enough(root: str | Path, pool: ChoicePool, num: int, strategy: str) -> None:
    """Raise an error if the images or labels do not do for what was asked for."""
    if not len(pool.paths):
        raise UserError(f"{root}: none of its images can be read; name another folder")
    left = int((pool.labels < 0).sum())
    if not left:
        raise UserError(
            f"{root}: all {len(pool.labels)} images have a label; name the table of your labels by --label_file, put "
            "images without one into unlabeled/, or give --ignore_folders if the folders' names are no labels"
        )
    if pool.several and strategy in NEED_PROBABILITIES:
        raise UserError(f"--strategy: {strategy} takes one label an image, and the table has several; give probcover")
    if num > left:
        raise UserError(f"--num: {num}, but {root} has {left} images without a label; give at most {left}")


def _describe(strategy: str, pool: ChoicePool, encoder: FrozenEncoder, seed: int) -> str:
    """Return one or two sentences: what was looked for, by which features, with how many labels, in which sample."""
    labels = pool.labels[pool.labels >= 0]
    classes = len(pool.classes) if len(set(labels.tolist())) > 1 else None
    now = strategy_now(BEST if strategy == AUTO else strategy, len(labels), classes)
    text = (
        f"Chosen with {len(labels)} labels, by features of {encoder.name} at {encoder.size} pixels: {LOOKED_FOR[now]}."
    )
    if now in ("probcover", "typiclust") and len(pool.paths) > LARGEST:
        text += f" Of {len(pool.paths)} images a sample of {LARGEST} (seed {seed}) was looked at."
    return text


def _fields(rank: int, one: Suggestion, pool: ChoicePool) -> list[str]:
    """Return the fields of COLUMNS for a suggestion; those that are not known are empty."""
    near = ["", "", ""]
    if one.nearest is not None:
        near = [pool.paths[one.nearest], pool.texts[one.nearest], f"{one.similarity:.4f}"]
    likely = [text for k, p in one.likely for text in (pool.classes[k], f"{p:.4f}")]
    return [str(rank), pool.paths[one.row], one.reason, *near, *likely, *[""] * (4 - len(likely))]


def _caption(fields: Sequence[str]) -> list[str]:
    """Return the lines below an image of the page."""
    _, _, reason, _, label, similarity, *_ = fields
    return [reason, *([f"nearest label: {label} (similarity {float(similarity):.2f})"] if similarity else [])]
