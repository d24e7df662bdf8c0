"""Frozen features of a study's images, and the protocols on them that train no network: k-NN and linear probes.

n labeled images of the pool, M test images, D width of the features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_vision.backbones.backbone import Backbone
from lit_vision.evaluation.features import extract_features
from lit_vision.evaluation.knn import held_out_votes, weighted_knn
from lit_vision.evaluation.linear import LinearProbe
from lit_vision.predict.feature_cache import OnBatch, cached_features
from lit_vision.study.cells import CellKey, Measurement
from lit_vision.study.images import StudyImages, eval_batches
from lit_vision.study.label_kinds import Scores
from lit_vision.study.pixel_cache import FeaturesOfRows, Rows
from lit_vision.weights.load import load_backbone

CHECKED_LABELS = 4000  # labels that the report checks, at most: cross-validation takes seconds


def needed_rows(images: StudyImages, counts: dict[int, int]) -> np.ndarray | None:
    """Return the ascending pool rows whose features a study needs; None if it is most labeled images.

    Args:
        images: of the study.
        counts: numbers of seeds by number of labels.
    """
    labeled = images.labeled
    subsets = [images.subset(labels, seed) for labels, seeds in counts.items() for seed in range(seeds)]
    rows = np.unique(np.concatenate([*subsets, images.subset(min(labeled, CHECKED_LABELS), 0)]))
    return rows if len(rows) < 0.8 * labeled else None


def frozen_features(
    weights: Path,
    images: StudyImages,
    size: int,
    cache_dir: Path | None = None,
    on_batch: OnBatch | None = None,
    rows: np.ndarray | None = None,
) -> tuple[Rows, np.ndarray]:
    """Return the features of the labeled pool and of the test split under an encoder's file, seen at `size` pixels.

    Args:
        weights: the encoder's file.
        images: of the study; their files are read, if they are known, and only else their arrays.
        size: side of the evaluation view.
        cache_dir: see `lit_vision.predict.feature_cache.cached_features`.
        on_batch: called with (images done, all images) after each block.
        rows: (m,) ascending rows of the labeled pool images that will be asked for; None: all n of them.

    Returns:
        (n, D) for the n labeled pool images, which come first in the pool, and (M, D).
    """
    backbone, report = load_backbone(weights, size)
    return features(backbone, report.mean, report.std, images, size, cache_dir, on_batch, rows)


def features(
    backbone: Backbone,
    mean: Any,
    std: Any,
    images: StudyImages,
    size: int,
    cache_dir: Path | None = None,
    on_batch: OnBatch | None = None,
    rows: np.ndarray | None = None,
) -> tuple[Rows, np.ndarray]:
    """Return the features of the labeled pool and of the test split; arguments as for `frozen_features`."""
    mean, std = (torch.as_tensor(values, dtype=torch.float32).flatten() for values in (mean, std))
    known = images.labeled  # they come first
    if images.files is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pool, test = (
            extract_features(backbone, eval_batches(pixels, labels, size), mean, std, device, progress=False)
            for pixels, labels in ((images.pool[:known], images.labels[:known]), (images.test, images.test_labels))
        )
        return pool.features.numpy(), test.features.numpy()
    needed = np.arange(known) if rows is None else rows
    files, total, crop_pct = images.files, len(needed) + len(images.test_paths), images.crop_pct(size)

    def read(paths: list[str], before: int) -> np.ndarray:
        report = (lambda done, _: on_batch(before + done, total)) if on_batch else None
        return cached_features(
            files.folder, paths, backbone, mean, std, size, crop_pct, cache_dir, files.pixel_format, report
        )

    found = read([images.paths[row] for row in needed], 0)
    tested = read(images.test_paths, len(needed))
    return (found if rows is None else FeaturesOfRows(found, rows, known)), tested


def fit_probe(key: CellKey, pool: Rows, test: Rows, images: StudyImages, rows: np.ndarray | None = None) -> LinearProbe:
    """Fit logistic regression on the features of a cell's labels; its answer is for the test split.

    Args:
        key: of the cell.
        pool: (N, D) features of the labeled pool.
        test: (M, D) features of the test split.
        images: of the study.
        rows: (n,) pool rows to fit on instead of all of the cell's.
    """
    rows = images.subset(key.labels, key.seed) if rows is None else rows
    labels, groups = images.labels[rows], images.groups_of(rows)
    return images.kind.fit(pool[rows], labels, test, len(images.classes), key.seed, groups)


def measure_frozen(key: CellKey, pool: Rows, test: Rows, images: StudyImages) -> Measurement:
    """Measure a protocol that trains no network, k-NN ("knn") or logistic regression; arguments as for `fit_probe`.

    It is measured inside the labels too: in k-fold cross-validation, and fitted on one half and judged by the other.
    """
    kind, classes, rows = images.kind, len(images.classes), images.subset(key.labels, key.seed)
    features, labels, groups = pool[rows], images.labels[rows], images.groups_of(rows)
    halves = kind.halve(labels, key.seed, groups)
    judged: Scores | None = None
    if key.protocol == "knn":
        if halves:
            fit, judge = halves
            answer = weighted_knn(features[fit], labels[fit], features[judge], classes).numpy()
            judged = kind.score(answer, labels[judge])
        votes = held_out_votes(features, labels, classes, seed=key.seed, groups=groups)
        known = ~np.isnan(votes).any(1)
        inside = kind.score(votes[known], labels[known]) if known.any() else None
        answer = weighted_knn(features, labels, test, classes).numpy()
        return Measurement(answer, held_out=inside, judged=judged)
    probe = fit_probe(key, pool, test, images)
    if halves:
        fit, judge = halves
        half = kind.fit(features[fit], labels[fit], features[judge], classes, key.seed, strengths=[probe.strength])
        judged = kind.score(half.probabilities, labels[judge])
    inside = None
    if (value := probe.scores.get(probe.strength)) is not None:
        inside = Scores(value, probe.balanced_scores.get(probe.strength))
    return Measurement(probe.probabilities, chosen_on=probe.chosen_on, held_out=inside, judged=judged)
