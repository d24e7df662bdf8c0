"""Binary clinical metrics with confidence intervals: sensitivity, specificity, AUROC, calibration, class weights.

NumPy and SciPy only. N samples; label 1 is the finding ("tumour"), 0 its absence; a score is the probability of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

Z95 = 1.959963984540054  # of a two-sided 95 % interval of the normal distribution


def _validated(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape or not len(scores):
        raise ValueError(f"expected one score and one label per sample, got {scores.shape} and {labels.shape}")
    if not np.isin(labels, (0, 1)).all() or not np.isfinite(scores).all():
        raise ValueError("labels must be 0 or 1 and scores finite")
    return scores, labels.astype(bool)


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson interval of the proportion hits / n; (0, 1) for n = 0.

    It stays in [0, 1] and has a width at 0 and n too. Source: Wilson 1927, JASA 22:209.

    Raises:
        ValueError: hits is not in 0 to n.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits must be from 0 to n = {n}, got {hits}")
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def auroc(scores: Any, labels: Any, z: float = Z95) -> tuple[float, float, float]:
    """Return the area under the ROC curve with DeLong's interval.

    The area is the probability that a random finding scores above a random absence; ties count half.
    Source: DeLong et al. 1988, Biometrics 44:837, by ranks (Sun and Xu 2014, IEEE SPL 21:1389). The interval is cut to
    [0, 1]. It
    is the normal approximation: with few samples, or an area near 1, it is too narrow (at exactly 1 it has no width).

    Args:
        scores: (N,), higher means finding.
        labels: (N,) 0 or 1.
        z: half-width in standard errors; 1.96 is 95 %.

    Returns:
        (area, low, high). Without variance to estimate (one sample of a class) low and high are 0 and 1.

    Raises:
        ValueError: shapes differ, or a class is missing.
    """
    scores, labels = _validated(scores, labels)
    found, absent = scores[labels], scores[~labels]
    m, n = len(found), len(absent)
    if not m or not n:
        raise ValueError("the area needs samples of both classes")
    joined = stats.rankdata(np.concatenate([found, absent]))
    area = (joined[:m].sum() - m * (m + 1) / 2) / (m * n)
    if min(m, n) < 2:
        return float(area), 0.0, 1.0
    above = (joined[:m] - stats.rankdata(found)) / n  # proportion of absences below each finding
    below = 1 - (joined[m:] - stats.rankdata(absent)) / m  # proportion of findings above each absence
    error = math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    return float(area), float(max(0.0, area - z * error)), float(min(1.0, area + z * error))


def operating_point(scores: Any, labels: Any, threshold: float = 0.5) -> dict[str, Any]:
    """Return counts and rates if every score at or above a threshold is predicted to be a finding.

    Returns:
        threshold; counts true_positive, false_positive, true_negative, false_negative; sensitivity (detected findings),
        specificity (absences predicted as such), ppv (correct among predicted findings), npv (correct among predicted
        absences),
        accuracy: each {value, low, high, of}, value None if `of` is 0; balanced_accuracy: mean of sensitivity and
            specificity, or
        None.
    """
    scores, labels = _validated(scores, labels)
    predicted = scores >= threshold
    tp, fp = int((predicted & labels).sum()), int((predicted & ~labels).sum())
    tn, fn = int((~predicted & ~labels).sum()), int((~predicted & labels).sum())
    found: dict[str, Any] = {"threshold": float(threshold)}
    found |= {"true_positive": tp, "false_positive": fp, "true_negative": tn, "false_negative": fn}
    for name, hits, of in (
        ("sensitivity", tp, tp + fn),
        ("specificity", tn, tn + fp),
        ("ppv", tp, tp + fp),
        ("npv", tn, tn + fn),
        ("accuracy", tp + tn, len(labels)),
    ):
        low, high = wilson_interval(hits, of)
        found[name] = {"value": hits / of if of else None, "low": low, "high": high, "of": of}
    both = found["sensitivity"]["value"], found["specificity"]["value"]
    found["balanced_accuracy"] = None if None in both else sum(both) / 2
    return found


def threshold_for(scores: Any, labels: Any, sensitivity: float) -> float:
    """Return the highest threshold with at least this sensitivity; choose it on validation data, never on test data.

    Raises:
        ValueError: no finding among the samples, or a sensitivity outside (0, 1].
    """
    scores, labels = _validated(scores, labels)
    if not labels.any() or not 0 < sensitivity <= 1:
        raise ValueError(f"needs a finding and a sensitivity in (0, 1], got {int(labels.sum())} and {sensitivity}")
    ordered = np.sort(scores[labels])[::-1]
    return float(ordered[math.ceil(sensitivity * len(ordered) - 1e-9) - 1])


def calibration(scores: Any, labels: Any, bins: int = 10) -> dict[str, Any]:
    """Return Brier score and expected calibration error of probabilities.

    Args:
        scores: (N,) probabilities in [0, 1].
        labels: (N,) 0 or 1.
        bins: of equal width.

    Returns:
        brier: mean squared difference of probability and label (0 is best; always predicting the base rate b gives b (1
            - b));
        ece: expected calibration error, the mean over samples of |share of findings - mean probability| of their bin
            (Guo et al.
        2017, arXiv:1706.04599, for the probability of the finding); bins: for each that is not empty {low, high, count,
        probability, share}.

    Raises:
        ValueError: shapes differ, or a score is not in [0, 1].
    """
    scores, labels = _validated(scores, labels)
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"scores must be probabilities from 0 to 1, got {scores.min():g} to {scores.max():g}")
    bin_of = np.minimum((scores * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for b in np.unique(bin_of):
        inside = bin_of == b
        probability, share, count = float(scores[inside].mean()), float(labels[inside].mean()), int(inside.sum())
        error += count / len(scores) * abs(share - probability)
        rows.append(
            {"low": b / bins, "high": (b + 1) / bins, "count": count, "probability": probability, "share": share}
        )
    return {"brier": float(((scores - labels) ** 2).mean()), "ece": error, "bins": rows}


def class_weights(counts: Sequence[int]) -> list[float]:
    """Return class weights N / (K n_k), as scikit-learn's "balanced"; their mean over samples is 1.

    Args:
        counts: (K,) samples of each class.

    Raises:
        ValueError: a class without samples.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"every class needs a sample, got {list(counts)}")
    return [sum(counts) / (len(counts) * n) for n in counts]


def clinical_report(scores: Any, labels: Any, threshold: float = 0.5) -> dict[str, Any]:
    """Return samples, findings, auroc {value, low, high}, operating_point and calibration as plain values."""
    area, low, high = auroc(scores, labels)
    return {
        "samples": len(labels),
        "findings": int(np.sum(labels)),
        "auroc": {"value": area, "low": low, "high": high},
        "operating_point": operating_point(scores, labels, threshold),
        "calibration": calibration(scores, labels),
    }


def format_clinical_report(report: dict[str, Any], finding: str, absence: str) -> str:
    """Format a clinical report as aligned plain text; intervals are 95 %."""
    point, fit = report["operating_point"], report["calibration"]
    lines = [f"{report['samples']} images, {report['findings']} of them {finding}", ""]
    area = report["auroc"]
    lines.append(f"{'AUROC':<18} {area['value']:.3f}   ({area['low']:.3f} to {area['high']:.3f}, DeLong)")
    lines += ["", f"called {finding} from a probability of {point['threshold']:.3f} on:"]
    names = {"ppv": f"right if {finding}", "npv": f"right if {absence}"}
    for key in ("sensitivity", "specificity", "ppv", "npv", "accuracy"):
        row = point[key]
        value = "undefined" if row["value"] is None else f"{100 * row['value']:5.1f} %"
        lines.append(
            f"{names.get(key, key):<18} {value}   ({100 * row['low']:.1f} to {100 * row['high']:.1f} %, of {row['of']})"
        )
    lines += ["", f"missed {point['false_negative']} {finding}, false alarms {point['false_positive']}", ""]
    lines.append(f"calibration: Brier score {fit['brier']:.3f}, expected error {fit['ece']:.3f}")
    lines.append("  predicted     samples   mean   observed")
    lines += [
        f"  {row['low']:.1f} to {row['high']:.1f}  {row['count']:9d}  {row['probability']:.3f}      {row['share']:.3f}"
        for row in fit["bins"]
    ]
    return "\n".join(lines)
