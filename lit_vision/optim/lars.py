"""LARS, written from the paper."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: the step of a weight matrix is a fraction of its norm.

    For a parameter w with more than one dimension, g <- gradient + weight_decay * w, and the step length is
    trust = trust_coefficient * |w| / |g| (1 where either norm is 0). Exclusion rule: parameters with at most one
    dimension (biases, norm gains) get neither trust scaling nor weight decay, that is SGD with momentum.
    Momentum convention: lr and trust are inside the buffer, v <- momentum * v + lr * trust * g; w <- w - v.
    Source: You et al. 2017, arXiv:1708.03888, Algorithm 1; SimCLR (arXiv:2002.05709) uses this form.
    With `lr_in_momentum=False` the buffer holds v <- momentum * v + trust * g and w <- w - lr * v (the form of MoCo v3
    and MAE's linear probe); the two differ only while lr changes.

    Args:
        params: parameters or groups.
        lr: 0 or more.
        momentum: 0 up to 1 (excluded).
        weight_decay: 0 or more; an L2 term inside the gradient, so it enters |g|.
        trust_coefficient: eta, 0.001 in both papers.
        lr_in_momentum: see above.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        lr_in_momentum: bool = True,
    ) -> None:
        if lr < 0 or weight_decay < 0 or trust_coefficient <= 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"LARS: lr {lr}, momentum {momentum}, weight_decay {weight_decay} or "
                f"trust_coefficient {trust_coefficient} is out of range"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, {**defaults, "lr_in_momentum": lr_in_momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Make one update; `closure`, if given, recomputes and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                g = w.grad
                if w.ndim > 1:
                    g = g.add(w, alpha=group["weight_decay"])
                    w_norm, g_norm = w.norm(), g.norm()
                    trust = group["trust_coefficient"] * w_norm / g_norm
                    g = g * torch.where((w_norm > 0) & (g_norm > 0), trust, torch.ones_like(trust))
                inside, outside = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
                state = self.state[w]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(w)
                v = state["momentum_buffer"].mul_(group["momentum"]).add_(g, alpha=inside)
                w.add_(v, alpha=-outside)
        return loss
