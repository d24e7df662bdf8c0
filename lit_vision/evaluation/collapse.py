"""Collapse metrics of a set of features, without labels."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_std(features: Tensor) -> float:
    """Return sqrt(D) times the mean over dimensions of the standard deviation of the L2-normalized features.

    1 if the features are spread as a normal distribution, 0 if all are one point.
    Source: Chen and He 2021 (SimSiam), arXiv:2011.10566, Section 4.1, there without the factor sqrt(D).

    Args:
        features: (N, D), N at least 2.
    """
    z = torch.nn.functional.normalize(features.double(), dim=1)
    return float(z.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features: exp of the entropy of their singular values, scaled to sum 1.

    From 1 (all on one line) to min(N, D). Source: Roy and Vetterli 2007; RankMe, Garrido et al. 2023, arXiv:2210.02885,
    Eq. 1. Unlike RankMe the mean is subtracted first: an encoder that gives every image the same vector has rank 0
    here, not 1.

    Args:
        features: (N, D), N at least 2.
    """
    z = features.double()
    z = z - z.mean(dim=0)
    s = torch.linalg.svdvals(z)
    if float(s[0]) <= 1e-12 * float(features.double().norm().clamp_min(1e-300)):
        return 0.0
    p = s / s.sum()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum()))
