"""Several labels a sample: macro average precision, and a linear probe of one logistic regression a label.

N training samples, M samples to answer for, K labels, D width of the features. Labels (N, K): 1 applies, 0 does not,
NaN unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_vision.errors import UserError
from lit_vision.evaluation.arrays import to_array
from lit_vision.evaluation.feature_scaling import BLOCK, as_rows, mean_and_divisor, project, row_space_basis
from lit_vision.evaluation.folds import grouped_folds
from lit_vision.evaluation.linear import FIXED_STRENGTH, MANY, MAX_FOLDS, STRENGTHS, LinearProbe, one_thread


def average_precisions(scores: Any, labels: Any) -> np.ndarray:
    """Return the average precision of each label, (K,), as scikit-learn's average_precision_score computes it.

    Args:
        scores: (M, K), higher where the label is likelier.
        labels: (M, K); unknown ones are left out.

    Returns:
        NaN for a label without a positive sample.
    """
    from sklearn.metrics import average_precision_score

    scores, labels = to_array(scores), to_array(labels)
    values = np.full(labels.shape[1], np.nan)
    for k, truth in enumerate(labels.T):
        known = ~np.isnan(truth)
        if (truth[known] == 1).any():
            values[k] = average_precision_score(truth[known] == 1, scores[known, k])
    return values


def macro_average_precision(scores: Any, labels: Any) -> float:
    """Return the mean of `average_precisions` over the labels with a positive sample, 0 to 1; 0 if none has one."""
    values = average_precisions(scores, labels)
    known = ~np.isnan(values)
    return float(values[known].mean()) if known.any() else 0.0


def label_regressions(
    train_features: Any,
    train_labels: Any,
    features: Any,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    groups: Any = None,
) -> LinearProbe:
    """Fit a logistic regression for each label on the samples whose label is known, and predict for `features`.

    Minimizes, for each label,  mean cross-entropy + strength / 2 * sum of squared weights  (the bias is free) on
    features that are centered and scaled by one number, as `logistic_regression` does. The strength is the same for all
    labels: the one with the best macro average precision of the out-of-fold scores (`grouped_folds` with 5 folds, 3
    from 500 samples), in ties that with the lower cross-entropy, then the stronger. The last fit uses all samples.

    A label that all samples with a known value share, or none has, gets weights of 0 and as bias the logit of its
    share with half a sample added to both sides.

    Args:
        train_features: (N, D) tensor or array.
        train_labels: (N, K).
        features: (M, D): a tensor, an array, or what has a shape and gives slices, read in blocks.
        strengths: the candidates; a single one is used without a choice.
        seed: of the folds.
        groups: (N,) of the training samples; whole groups are held out.

    Returns:
        LinearProbe: its probabilities are each label's own, rows do not sum to 1; `scores` are macro average
        precisions; `predictions` is the likeliest label.

    Raises:
        UserError: no sample, or other numbers of features and labels.
    """
    x, y = as_rows(train_features), to_array(train_labels).astype(np.float64)
    if y.ndim != 2 or len(x) != len(y) or not len(x):
        raise UserError(f"linear probe: {len(x)} features and labels of shape {y.shape}; give (N, K) labels")
    mean, divisor = mean_and_divisor(x, "all")
    basis = row_space_basis((x - mean) / divisor)
    rows = project((x - mean) / divisor, basis).astype(np.float64)
    strengths, scores = sorted(strengths, reverse=True), dict[float, float]()
    with one_thread():
        fold = grouped_folds(y == 1, 3 if len(y) >= MANY else MAX_FOLDS, seed, groups)
        if len(strengths) == 1:
            strength, chosen_on = strengths[0], "fixed recipe"
        elif (fold < 0).all():
            strength = min(strengths, key=lambda s: abs(float(np.log(s / FIXED_STRENGTH))))
            chosen_on = f"fixed at {strength:g}: one image or group, nothing to hold out"
        else:
            strength, scores = _choose(rows, y, fold, strengths)
            chosen_on = f"{fold.max() + 1}-fold cross-validation inside the {len(y)} labels"
        theta, converged = _fit(rows, y, strength)
    coefficients, intercept = theta[:-1].T, theta[-1]
    weight = ((coefficients if basis is None else coefficients @ basis.T) / divisor).astype(np.float32)
    bias = (intercept - weight @ mean).astype(np.float32)
    step = max(1, BLOCK // x.shape[1])
    starts = range(0, max(1, len(features)), step)
    probabilities = np.concatenate([_sigmoid(as_rows(features[i : i + step]) @ weight.T + bias) for i in starts])
    answer = probabilities.argmax(1)
    return LinearProbe(probabilities, answer, weight, bias, strength, chosen_on, scores, converged)


def _choose(
    rows: np.ndarray, y: np.ndarray, fold: np.ndarray, strengths: list[float]
) -> tuple[float, dict[float, float]]:
    """Return the best strength by the out-of-fold scores, and the macro average precision of each."""
    logits = np.zeros((len(strengths), *y.shape))
    for number in range(fold.max() + 1):
        held, theta = fold == number, None
        for i, strength in enumerate(strengths):  # from strong to weak, each from the weights of the one before
            theta, _ = _fit(rows[~held], y[~held], strength, theta, iterations=100)
            logits[i, held] = rows[held] @ theta[:-1] + theta[-1]
    known, truth = ~np.isnan(y), np.nan_to_num(y)
    values = [macro_average_precision(one, y) for one in logits]
    losses = [float((np.logaddexp(0, one) - truth * one)[known].mean()) for one in logits]
    best = min(range(len(strengths)), key=lambda i: (-values[i], losses[i], i))
    return strengths[best], dict(zip(strengths, values))


def _fit(
    rows: np.ndarray, y: np.ndarray, strength: float, start: np.ndarray | None = None, iterations: int = 1000
) -> tuple[np.ndarray, bool]:
    """Return (R + 1, K) weights and, in the last row, biases; and True if the fit met its tolerance.

    The K problems share no parameter, so one run of L-BFGS on their sum solves them all.
    """
    from scipy.optimize import minimize

    known, truth = ~np.isnan(y), np.nan_to_num(y)
    number, positive = known.sum(0), (truth == 1).sum(0)
    learned = (positive > 0) & (positive < number)
    share = known[:, learned] / number[learned]  # a label's loss is the mean over the samples that have it
    truth = truth[:, learned]
    width = (rows.shape[1] + 1, int(learned.sum()))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = flat.reshape(width)
        logits = rows @ theta[:-1] + theta[-1]
        value = (share * (np.logaddexp(0, logits) - truth * logits)).sum() + strength / 2 * (theta[:-1] ** 2).sum()
        residual = share * (_sigmoid(logits) - truth)
        gradient = np.vstack([rows.T @ residual + strength * theta[:-1], residual.sum(0)])
        return float(value), gradient.ravel()

    theta = np.zeros((width[0], y.shape[1]))
    theta[-1] = np.log((positive + 0.5) / (number - positive + 0.5))
    if start is not None:
        theta[:, learned] = start[:, learned]
    if not learned.any():
        return theta, True
    options = {"maxiter": iterations, "gtol": 1e-5, "ftol": 1e-10}
    found = minimize(loss, theta[:, learned].ravel(), jac=True, method="L-BFGS-B", options=options)
    theta[:, learned] = found.x.reshape(width)
    return theta, bool(found.success)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
