"""Linear probe on cached features: multinomial logistic regression whose L2 strength is chosen inside the given labels.

scikit-learn's L-BFGS does the fitting. Measured on one core, 10 classes, one fit: 0.1 to 0.4 s at N = 800 for D = 784 and
3072 (torch's L-BFGS with strong Wolfe: 0.2 to 1.4 s for the same accuracy), 2 to 3 s against 4 to 9 s at N = 8000, D = 784.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from torch import Tensor

from lit_vision.errors import UserError

STRENGTHS = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
FIXED_STRENGTH = 1.0  # when nothing can be held out: the best or second best at 8 labels a class on the turned images
MAX_FOLDS = 5
MANY = 500  # from here on 3 folds: the choice is hardly noisy any more, and fits are slow


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe and its answer.

    probabilities: (M, K) float32 for the features asked about; predictions: (M,) int64, their argmax.
    weight (K, D), bias (K,) float32: logits = features @ weight.T + bias on features as given, scaling folded in; a class
        that training never showed has weight 0 and bias -inf.
    strength: the L2 strength used.   chosen_on: how it was chosen, in words.
    scores: {strength: held-out accuracy, 0..1}; empty if it was fixed.   converged: the last fit met its tolerance.
    """

    probabilities: np.ndarray
    predictions: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: float
    chosen_on: str
    scores: dict[float, float]
    converged: bool

    def predict_proba(self, features: Any) -> np.ndarray:
        """Class probabilities (M, K) of more features (M, D)."""
        return _softmax(_array(features) @ self.weight.T + self.bias)


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
) -> LinearProbe:
    """Fit on the labelled features, choose the L2 strength inside them, and answer for `features`.

    Minimises  mean cross-entropy + strength / 2 * sum of squared weights  (the bias is free) on features that are
    centred and scaled with statistics of the training features. The strength with the best held-out accuracy wins, ties
    by log-loss, then the stronger. Every label given is used for training in the end, and no others are looked at, so a
    cell at L labels uses L labels in all. The result is a function of the arguments alone.

    Folds are stratified: each class is dealt over them in turn, so a class of two is held out one at a time, and a class
    of one always stays in training. With one label in every class nothing can be held out: the strength is then fixed
    (the one of `strengths` nearest to 1), and `chosen_on` says so.

    Args:
        train_features: (N, D) tensor or array.
        train_labels: (N,) integers from 0, each labelled.
        features: (M, D) to answer for.
        num_classes: K, width of the answer; the largest training label + 1 if None.
        strengths: the candidates; a single one is used as it is.
        folds: at most this many; None: 5, or 3 from 500 labels on. Never more than the largest class has members.
        validation: (features (V, D), labels (V,)) on which to choose instead: for "all labels" cells only.
        scale: "all" divides by one number, the root of the mean variance; "each" divides every dimension by its own
            standard deviation. On raw Fashion-MNIST pixels "all" is better at 8 labels a class (68.6 % against 66.9 %
            upright, 24.5 % against 23.7 % turned, mean of 5 subsets) and equal at 80.
        seed: of the folds.

    Returns:
        LinearProbe.

    Raises:
        UserError: fewer than two classes, a sample without a label, or widths that differ.
        ValueError: an unknown scale, or a strength that is not positive.
    """
    if scale not in ("all", "each") or not strengths or min(strengths) <= 0:
        raise ValueError(f"scale must be 'all' or 'each' and strengths positive, got {scale!r} and {strengths}")
    x, y, asked = _array(train_features), _labels(train_labels), _array(features)
    if len(x) != len(y) or (len(y) and y.min() < 0):
        raise UserError(f"linear probe: {len(x)} features, {int((y >= 0).sum())} labels; leave unlabelled samples out")
    seen = np.unique(y)
    if len(seen) < 2:
        raise UserError(f"linear probe: the labels show {len(seen)} class; give samples of at least two classes")
    if asked.shape[1] != x.shape[1]:
        raise UserError(
            f"linear probe: features are {x.shape[1]} wide in training, {asked.shape[1]} here; use one encoder"
        )
    num_classes = int(seen[-1]) + 1 if num_classes is None else num_classes

    mean, divisor = _statistics(x, scale)
    span = _row_space_basis((x - mean) / divisor)
    prepare = lambda z: _project((z - mean) / divisor, span)  # noqa: E731
    rows, codes = prepare(x), np.searchsorted(seen, y)
    strengths = sorted(strengths, reverse=True)
    if len(strengths) == 1:
        strength, scores, chosen_on = strengths[0], {}, "fixed recipe"
    elif validation is not None:
        held, truth = prepare(_array(validation[0])), _labels(validation[1])
        truth = np.where(np.isin(truth, seen), np.searchsorted(seen, truth), -1)  # an unseen class is always an error
        cuts = [(rows, codes, held, truth)]
        with _one_thread():
            strength, scores = _choose(cuts, strengths)
        chosen_on = f"validation split of {len(truth)}"
    else:
        if folds is None:
            folds = 3 if len(y) >= MANY else MAX_FOLDS
        fold = stratified_folds(codes, folds, seed)
        if (fold < 0).all():
            strength, scores = min(strengths, key=lambda s: abs(np.log(s / FIXED_STRENGTH))), {}
            chosen_on = f"fixed at {strength:g}: one label per class, nothing to hold out"
        else:
            parts = range(fold.max() + 1)
            cuts = [(rows[fold != f], codes[fold != f], rows[fold == f], codes[fold == f]) for f in parts]
            with _one_thread():
                strength, scores = _choose(cuts, strengths)
            chosen_on = f"{len(cuts)}-fold cross-validation inside the {len(y)} labels"

    model = _model(len(seen), tol=1e-4, max_iter=1000)
    with _one_thread():
        _fit(model, rows, codes, strength)
    coefficients, intercept = _binary_to_two_class(model)
    weight, bias = np.zeros((num_classes, x.shape[1]), np.float32), np.full(num_classes, -np.inf, np.float32)
    if span is not None:
        coefficients = coefficients @ span.T
    weight[seen] = coefficients / divisor
    bias[seen] = intercept - weight[seen] @ mean
    probabilities = _softmax(asked @ weight.T + bias)
    converged = bool(np.max(model.n_iter_) < model.max_iter)
    return LinearProbe(probabilities, probabilities.argmax(1), weight, bias, strength, chosen_on, scores, converged)


def stratified_folds(labels: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """The fold in which each sample is held out, (N,) int64; -1 for the only sample of a class, which is never held out.

    Each class is shuffled and dealt over the folds in turn, starting where the last class stopped, so folds differ by at
    most one sample, and every class keeps a sample in every training part. At most as many folds as the largest class
    has members.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    folds = max(1, min(folds, counts.max()))
    fold, next_fold = np.full(len(labels), -1), 0
    if folds < 2:
        return fold
    for label, count in zip(classes, counts):
        if count > 1:
            fold[rng.permutation(np.flatnonzero(labels == label))] = (next_fold + np.arange(count)) % folds
            next_fold += count
    return fold


def _choose(cuts: list[tuple], strengths: list[float]) -> tuple[float, dict[float, float]]:
    """The best strength over (train rows, train codes, held rows, held codes), and each one's accuracy."""
    correct, loss = np.zeros(len(strengths)), np.zeros(len(strengths))
    for rows, codes, held, truth in cuts:
        model = _model(codes.max() + 1, tol=3e-3, max_iter=100)  # enough to rank strengths
        for i, strength in enumerate(strengths):  # strong to weak, each starting where the last one ended
            _fit(model, rows, codes, strength)
            coefficients, intercept = _binary_to_two_class(model)
            probability = _softmax(held @ coefficients.T + intercept)
            correct[i] += (probability.argmax(1) == truth).sum()
            known = truth >= 0
            loss[i] -= np.log(np.maximum(probability[known, truth[known]], 1e-12)).sum()
    total = sum(len(truth) for *_, truth in cuts)
    best = min(range(len(strengths)), key=lambda i: (-correct[i], loss[i], i))
    return strengths[best], {s: float(c / total) for s, c in zip(strengths, correct)}


def _one_thread() -> threadpool_limits:
    """Problems of this size are 1.2 to 2 times as fast on one thread as on two, and many times where a core is busy."""
    import sklearn.linear_model  # noqa: F401  the limit reaches only libraries that are loaded

    return threadpool_limits(1)


def _model(classes: int, tol: float, max_iter: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(tol=tol, max_iter=max_iter, warm_start=True)
    model.halved = classes == 2
    return model


def _fit(model: Any, rows: np.ndarray, codes: np.ndarray, strength: float) -> None:
    # scikit-learn weighs the sum of the losses by C. With two classes it fits one vector w, the softmax of -w/2 and w/2,
    # whose squares sum to half of w's: C is doubled so that the strength means the same for any number of classes.
    from sklearn.exceptions import ConvergenceWarning

    model.C = (2 if model.halved else 1) / (strength * len(codes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by LinearProbe.converged
        model.fit(rows, codes)


def _binary_to_two_class(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """(K, R) weights and (K,) bias, also for two classes."""
    if model.halved:
        return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate(
            [-model.intercept_, model.intercept_]
        ) / 2
    return model.coef_, model.intercept_


def _statistics(x: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    if scale == "all":
        variance = np.full_like(variance, variance.mean())
    divisor = np.sqrt(variance)
    divisor[divisor <= 1e-6 * max(1.0, float(np.abs(mean).max()))] = 1.0  # constant dimensions stay as they are
    return mean.astype(np.float32), divisor.astype(np.float32)


def _row_space_basis(x: np.ndarray) -> np.ndarray | None:
    """Orthonormal basis (D, N) of the rows' span if N < D: the best weights lie in it, so the fit is the same, smaller."""
    return np.linalg.qr(x.T)[0] if x.shape[0] < x.shape[1] else None


def _project(x: np.ndarray, span: np.ndarray | None) -> np.ndarray:
    return np.ascontiguousarray(x if span is None else x @ span)


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.exp(logits - logits.max(1, keepdims=True))
    return logits / logits.sum(1, keepdims=True)


def _array(values: Any) -> np.ndarray:
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return values.reshape(len(values), -1).astype(np.float32)  # images of any shape count as rows of pixels


def _labels(values: Any) -> np.ndarray:
    return (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).astype(np.int64)
