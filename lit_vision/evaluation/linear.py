"""Linear probe on cached features: logistic regression, L2 strength chosen by cross-validation on the given labels.

scikit-learn's L-BFGS does the fitting. Measured on one core, 10 classes, one fit: 0.1 to 0.4 s at N = 800 for D = 784
and 3072 (torch's L-BFGS with strong Wolfe: 0.2 to 1.4 s for the same accuracy), 2 to 3 s against 4 to 9 s at N = 8000,
D = 784.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from lit_vision.errors import UserError
from lit_vision.evaluation.arrays import to_array
from lit_vision.evaluation.feature_scaling import BLOCK, as_rows, mean_and_divisor, project, row_space_basis
from lit_vision.evaluation.folds import stratified_folds

STRENGTHS = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
FIXED_STRENGTH = 1.0  # if nothing can be held out: the best or second best at 8 labels a class on the rotated images
MAX_FOLDS = 5
MANY = 500  # labels from which there are 3 folds: the choice is hardly noisy any more, and fits are slow


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe and its predictions.

    Attributes:
        probabilities: (M, K) float32 of the features to answer for.
        predictions: (M,) int64, their argmax.
        weight: (K, D) float32; logits = features @ weight.T + bias on unscaled features. A class without training
            samples has weight 0.
        bias: (K,) float32; a class without training samples has -inf.
        strength: the L2 strength used.
        chosen_on: description of the data on which it was chosen.
        scores: {strength: held-out accuracy (several labels: macro AP), 0 to 1}; empty if the strength was fixed.
        balanced_scores: {strength: held-out balanced accuracy, 0 to 1}; empty for several labels too.
        converged: True if the last fit met its tolerance.
    """

    probabilities: np.ndarray
    predictions: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: float
    chosen_on: str
    scores: dict[float, float]
    converged: bool
    balanced_scores: dict[float, float] = field(default_factory=dict)


def logistic_regression(
    train_features: Any,
    train_labels: Any,
    features: Any,
    num_classes: int | None = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
    folds: int | None = None,
    validation: tuple[Any, Any] | None = None,
    scale: str = "all",
    seed: int = 0,
    groups: Any = None,
) -> LinearProbe:
    """Fit on the labeled features, choose the L2 strength inside them, and predict for `features`.

    Minimizes  mean cross-entropy + strength / 2 * sum of squared weights  (the bias is free) on features that are
    centered and scaled with statistics of the training features. The strength with the best held-out accuracy is
    chosen, in ties that with the lower log-loss, then the stronger. The last fit uses every given label and no others,
    so a cell at L labels uses L labels in all. The result depends only on the arguments.

    Folds are stratified: the samples of each class are distributed over them in turn, so a class of two is held out one
    at a time, and a class of one always stays in training. With one label in every class nothing can be held out: the
    strength is then fixed (the one of `strengths` nearest to 1), which `chosen_on` states.

    Args:
        train_features: (N, D) tensor or array.
        train_labels: (N,) integers from 0.
        features: (M, D) to predict for: a tensor, an array, or what has a shape and gives slices, read in blocks.
        num_classes: K, width of the prediction; the largest training label + 1 if None.
        strengths: the candidates; a single one is used without a choice.
        folds: maximum number; None: 5, or 3 from 500 labels. Never more than the largest class has members.
        validation: (features (V, D), labels (V,)) on which to choose instead: only for cells with all labels.
        scale: "all" divides by one number, the root of the mean variance; "each" divides every dimension by its
            standard deviation. On raw Fashion-MNIST pixels "all" is better at 8 labels a class (68.6 % against 66.9 %
            upright, 24.5 % against 23.7 % rotated, mean of 5 subsets) and equal at 80.
        seed: of the folds.
        groups: (N,) of the training samples; whole groups are held out, see `stratified_folds`.

    Returns:
        LinearProbe.

    Raises:
        UserError: fewer than two classes, a sample without a label, or widths that differ.
        ValueError: an unknown scale, or a strength that is not positive.
    """
    x, y = _checked(train_features, train_labels, strengths, scale)
    features = features if hasattr(features, "shape") else to_array(features)
    width = int(np.prod(features.shape[1:]))
    if width != x.shape[1]:
        raise UserError(f"linear probe: features are {x.shape[1]} wide in training, {width} here; use one encoder")
    num_classes = int(y.max()) + 1 if num_classes is None else num_classes

    chosen_by = None if validation is None else (as_rows(validation[0]), _labels(validation[1]))
    with one_thread():
        return _probe(
            x, y, features, num_classes, sorted(strengths, reverse=True), folds, chosen_by, scale, seed, groups
        )


def _probe(
    x: np.ndarray,
    y: np.ndarray,
    queries: Any,
    num_classes: int,
    strengths: list[float],
    folds: int | None,
    validation: tuple[np.ndarray, np.ndarray] | None,
    scale: str,
    seed: int,
    groups: Any = None,
) -> LinearProbe:
    """Return the result of `logistic_regression`, for checked arguments and `strengths` from strong to weak."""
    seen = np.unique(y)
    mean, divisor = mean_and_divisor(x, scale)
    basis = row_space_basis((x - mean) / divisor)

    def prepare(z: np.ndarray) -> np.ndarray:
        return project((z - mean) / divisor, basis)

    rows, codes = prepare(x), np.searchsorted(seen, y)
    scores: dict[float, float] = {}
    balanced: dict[float, float] = {}
    if len(strengths) == 1:
        strength, chosen_on = strengths[0], "fixed recipe"
    elif validation is not None:
        held_out, truth = prepare(validation[0]), validation[1]
        truth = np.where(np.isin(truth, seen), np.searchsorted(seen, truth), -1)  # an unseen class is always an error
        strength, scores, balanced = _choose([(rows, codes, held_out, truth)], strengths)
        chosen_on = f"validation split of {len(truth)}"
    else:
        folds = _usual_folds(len(y)) if folds is None else folds
        fold = stratified_folds(codes, folds, seed, groups)
        if (fold < 0).all():
            strength = min(strengths, key=lambda s: abs(float(np.log(s / FIXED_STRENGTH))))
            reason = "one label per class" if groups is None else "one group, or one label per class"
            chosen_on = f"fixed at {strength:g}: {reason}, nothing to hold out"
        else:
            numbers = range(fold.max() + 1)  # their parts are copied one after the other
            parts = ((rows[fold != f], codes[fold != f], rows[fold == f], codes[fold == f]) for f in numbers)
            strength, scores, balanced = _choose(parts, strengths)
            chosen_on = f"{len(numbers)}-fold cross-validation inside the {len(y)} labels"

    model = _model(len(seen), tol=1e-4, max_iter=1000)
    _fit(model, rows, codes, strength)
    coefficients, intercept = _binary_to_two_class(model)
    weight, bias = np.zeros((num_classes, x.shape[1]), np.float32), np.full(num_classes, -np.inf, np.float32)
    if basis is not None:
        coefficients = coefficients @ basis.T
    weight[seen] = coefficients / divisor
    bias[seen] = intercept - weight[seen] @ mean
    step = max(1, BLOCK // x.shape[1])
    starts = range(0, max(1, len(queries)), step)
    answers = [_softmax(as_rows(queries[first : first + step]) @ weight.T + bias) for first in starts]
    probabilities = np.concatenate(answers)
    converged = bool(np.max(model.n_iter_) < model.max_iter)
    answer = probabilities.argmax(1)
    return LinearProbe(probabilities, answer, weight, bias, strength, chosen_on, scores, converged, balanced)


def cross_validated_probabilities(
    features: Any,
    labels: Any,
    num_classes: int | None = None,
    *,
    strength: float | None = None,
    folds: int | None = None,
    scale: str = "all",
    seed: int = 0,
    groups: Any = None,
) -> np.ndarray:
    """Return class probabilities of each labeled sample by a linear probe that was fitted without it.

    The samples are split into stratified folds (`stratified_folds`); the probe of `logistic_regression`, fitted on the
    other folds, gives the probabilities of a fold. The strength is the same in all of them. If it is chosen, then on
    the same folds as in `logistic_regression`, which makes the probabilities slightly too good.

    Args:
        features: (N, D) tensor or array.
        labels: (N,) integers from 0.
        num_classes: K; the largest label + 1 if None.
        strength: of L2; None chooses one of STRENGTHS, as `logistic_regression` does.
        folds: maximum number; None: 5, or 3 from 500 labels. Never more than the largest class has members.
        scale: of the features, as in `logistic_regression`.
        seed: of the folds.
        groups: as in `logistic_regression`.

    Returns:
        (N, K) float32, rows sum to 1. The only sample of a class is never held out: its row is NaN, as are those of a
        class that stands in one group only.

    Raises:
        UserError: as `logistic_regression`.
        ValueError: as `logistic_regression`, for `strength` too.
    """
    strengths = sorted(STRENGTHS, reverse=True) if strength is None else [strength]
    x, y = _checked(features, labels, strengths, scale)
    num_classes = int(y.max()) + 1 if num_classes is None else num_classes
    folds = _usual_folds(len(y)) if folds is None else folds
    fold = stratified_folds(y, folds, seed, groups)
    probabilities = np.full((len(y), num_classes), np.nan, np.float32)
    with one_thread():
        if strength is None:
            strengths = [_probe(x, y, x[:1], num_classes, strengths, folds, None, scale, seed, groups).strength]
        for f in range(fold.max() + 1):  # none if every class has one sample
            held_out = fold == f
            if len(seen := np.unique(y[~held_out])) < 2:  # only with groups
                continue
            part = _probe(x[~held_out], y[~held_out], x[held_out], num_classes, strengths, 1, None, scale, seed)
            known = np.isin(y[held_out], seen)
            probabilities[np.flatnonzero(held_out)[known]] = part.probabilities[known]
    return probabilities


def _checked(features: Any, labels: Any, strengths: Sequence[float], scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) and labels (N,) of at least two classes; raises as `logistic_regression`."""
    if scale not in ("all", "each") or not strengths or min(strengths) <= 0:
        raise ValueError(f"scale must be 'all' or 'each' and strengths positive, got {scale!r} and {strengths}")
    x, y = as_rows(features), _labels(labels)
    if len(x) != len(y) or (len(y) and y.min() < 0):
        raise UserError(f"linear probe: {len(x)} features, {int((y >= 0).sum())} labels; leave unlabeled samples out")
    if len(seen := np.unique(y)) < 2:
        raise UserError(f"linear probe: the labels show {len(seen)} class; give samples of at least two classes")
    return x, y


def _usual_folds(labels: int) -> int:
    return 3 if labels >= MANY else MAX_FOLDS


def _choose(
    splits: Iterable[tuple[np.ndarray, ...]], strengths: list[float]
) -> tuple[float, dict[float, float], dict[float, float]]:
    """Return the best strength over splits (train rows, codes, held-out rows, codes), and the scores of each.

    These are its accuracy, and its balanced accuracy over the classes that are held out. A class that a training part
    lacks, which happens with groups only, is always an error there.
    """
    correct, loss, total = np.zeros(len(strengths)), np.zeros(len(strengths)), 0
    found, there = [Counter[int]() for _ in strengths], Counter[int]()
    for rows, codes, held_out, truth in splits:
        total += len(truth)
        there.update(truth.tolist())
        seen, codes = np.unique(codes, return_inverse=True)
        width = max(seen[-1], truth.max()) + 1
        model = _model(len(seen), tol=3e-3, max_iter=100)  # enough to rank strengths
        for i, strength in enumerate(strengths):  # from strong to weak, each from the weights of the one before
            if len(seen) == 1:
                probability = np.eye(width)[np.full(len(truth), seen[0])]
            else:
                _fit(model, rows, codes, strength)
                coefficients, intercept = _binary_to_two_class(model)
                probability = _softmax(held_out @ coefficients.T + intercept)
                if len(seen) < width:
                    every = np.zeros((len(truth), width))
                    every[:, seen] = probability
                    probability = every
            right = probability.argmax(1) == truth
            correct[i] += right.sum()
            found[i].update(truth[right].tolist())
            known = truth >= 0
            loss[i] -= np.log(np.maximum(probability[known, truth[known]], 1e-12)).sum()
    best = min(range(len(strengths)), key=lambda i: (-correct[i], loss[i], i))
    balanced = [float(np.mean([hits[code] / count for code, count in there.items()])) for hits in found]
    return strengths[best], {s: float(c / total) for s, c in zip(strengths, correct)}, dict(zip(strengths, balanced))


def one_thread() -> threadpool_limits:
    """Limit BLAS to one thread, so that the rounding and with it the chosen strength do not depend on the cores.

    Problems of this size are 1.2 to 2 times as fast as on two threads, more if a core is busy.
    """
    import sklearn.linear_model  # noqa: F401  the limit applies only to libraries that are loaded

    return threadpool_limits(1)


def _model(classes: int, tol: float, max_iter: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(tol=tol, max_iter=max_iter, warm_start=True)
    model.halved = classes == 2
    return model


def _fit(model: Any, rows: np.ndarray, codes: np.ndarray, strength: float) -> None:
    # scikit-learn weights the sum of the losses by C. With two classes it fits one vector w, the softmax of -w/2 and
    # w/2, whose squares sum to half of w's: C is doubled so that the strength means the same for any number of classes.
    from sklearn.exceptions import ConvergenceWarning

    model.C = (2 if model.halved else 1) / (strength * len(codes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # LinearProbe.converged reports it
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one or two labels a class
        model.fit(rows, codes)


def _binary_to_two_class(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (K, R) weights and (K,) bias, also for two classes."""
    weight, bias = model.coef_, model.intercept_
    if model.halved:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def _labels(values: Any) -> np.ndarray:
    return to_array(values).astype(np.int64)
