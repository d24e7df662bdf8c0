"""Weighted k-nearest-neighbor classification on features: evaluates an encoder without training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_vision.errors import UserError
from lit_vision.evaluation.arrays import to_tensor
from lit_vision.evaluation.folds import grouped_folds, stratified_folds

CHUNK = 1 << 24  # similarities, and numbers of the features, in memory at the same time, 64 MB in float32


def weighted_knn(
    train_features: Any,
    train_labels: Any,
    features: Any,
    num_classes: int | None = None,
    k: int = 20,
    temperature: float = 0.1,
) -> Tensor:
    """Return class probabilities by weighted votes of the k nearest training samples.

    A neighbor with cosine similarity s votes for its class with weight exp(s / temperature); the votes are divided by
    their sum. Source: Wu et al. 2018, arXiv:1805.01978, section 3.4 (there k = 200, temperature 0.07).
    The predicted class is `.argmax(1)`.

    Ties decide results on tiny sets: of training samples with exactly the similarity of the k-th neighbor, the earlier
    rows vote; of classes with equal votes, argmax takes the lowest number. A feature of all zeros has similarity 0 to
    everything.

    Args:
        train_features: (N, D), tensor or array.
        train_labels: (N,) integers from 0; or (N, K) with several labels a sample: 1 applies, 0 does not, NaN unknown.
        features: (M, D), on the same device: a tensor, an array, or what has a shape and gives slices. They are read,
            and the M x N similarities computed, in chunks.
        num_classes: width of the result; the largest training label + 1 if None.
        k: number of neighbors; all N if there are fewer.
        temperature: greater than 0; large means equal votes.

    Returns:
        (M, num_classes) float32, rows sum to 1. With several labels a sample each column is the share of the votes of
        the neighbors whose label is known that say it applies, 0 if none is known.

    Raises:
        UserError: no training sample, a training sample without a label, or widths that differ.
        ValueError: k < 1 or temperature <= 0.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k must be at least 1 and temperature above 0, got {k} and {temperature}")
    bank, labels = to_tensor(train_features), to_tensor(train_labels)
    several = labels.ndim == 2
    labels = labels.float() if several else labels.long()
    if len(bank) == 0 or len(bank) != len(labels):
        raise UserError(f"k-NN: {len(bank)} training features with {len(labels)} labels; give at least one of each")
    if not several and int(labels.min()) < 0:
        raise UserError("k-NN: a training sample has no label (-1); leave unlabeled samples out")
    features = features if hasattr(features, "shape") else to_tensor(features)
    width = features.shape[1]
    if bank.shape[1] != width:
        raise UserError(f"k-NN: features are {bank.shape[1]} wide in training, {width} here; use one encoder")
    if several:
        num_classes = labels.shape[1]
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    bank = F.normalize(bank.float(), dim=1)
    k = min(k, len(bank))
    votes = torch.zeros(len(features), num_classes, device=bank.device)
    total = torch.zeros_like(votes)  # of the neighbors with a known label
    rows = max(1, CHUNK // max(len(bank), width, k * num_classes if several else 0))
    for first in range(0, len(features), rows):
        queries = F.normalize(to_tensor(features[first : first + rows]).float(), dim=1)
        near, neighbors = _top_k(queries @ bank.T, k)
        # the largest weight is 1 after the shift, so no temperature overflows; the division below cancels it
        weights = ((near - near[:, :1]) / temperature).exp()
        if several:
            said = labels[neighbors]  # (rows, k, K)
            votes[first : first + rows] = (weights[..., None] * said.nan_to_num()).sum(1)
            total[first : first + rows] = (weights[..., None] * ~said.isnan()).sum(1)
        else:
            votes[first : first + rows].scatter_add_(1, labels[neighbors], weights)
    return votes / total.clamp(min=1e-30) if several else votes / votes.sum(dim=1, keepdim=True)


def held_out_votes(
    features: Any, labels: Any, num_classes: int, folds: int = 5, seed: int = 0, groups: Any = None
) -> np.ndarray:
    """Return the probabilities of `weighted_knn` for each labeled sample, from the other folds of a cross-validation.

    Args:
        features: (N, D), tensor or array.
        labels: (N,) integers from 0, or (N, K) as for `weighted_knn`.
        num_classes: K.
        folds: at most.
        seed: of the folds.
        groups: (N,), or None; whole groups are held out.

    Returns:
        (N, K) float32; NaN where a sample cannot be held out, see `stratified_folds`.
    """
    rows, truth = to_tensor(features), to_tensor(labels)
    if truth.ndim == 1:
        fold = stratified_folds(truth.long().numpy(), folds, seed, groups)
    else:
        fold = grouped_folds(truth.numpy() == 1, folds, seed, groups)
    votes = np.full((len(fold), num_classes), np.nan, np.float32)
    for number in range(fold.max() + 1):
        held = fold == number
        votes[held] = weighted_knn(rows[~held], truth[~held], rows[held], num_classes).numpy()
    return votes


def _top_k(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row and their columns, ties to the earlier column, which topk does not guarantee."""
    near, columns = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    if near.shape[1] > k:
        tied = (near[:, k] == near[:, k - 1]).nonzero()[:, 0]  # rare: only these rows are sorted completely
        near, columns = near[:, :k].clone(), columns[:, :k].clone()
        for some in tied.split(64):  # sorting takes five times the memory of what is sorted
            order = similarity[some].argsort(dim=1, descending=True, stable=True)[:, :k]
            columns[some] = order
            near[some] = similarity[some].gather(1, order)
    return near, columns
