"""Watermark in the weights of one convolution, embedded while training by a term of the loss.

Source: Uchida et al. 2017, arXiv:1701.04082, Eq. 1 to 4: E = E0 + lambda E_R, with E_R = BCE(sigmoid(X w), b) summed
over the T bits. w is the mean over the output channels of a convolution's weight; X (T, M) has standard normal entries
("random" in the paper, its best), b are the bits. T = 256 and lambda = 0.01 as in its Section 4.
Unlike the paper: X and b both follow from one secret key (Philox), and the layer is chosen by a rule.

T bits of the mark, M weights of the mean filter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.errors import UserError

BITS = 256  # T
STRENGTH = 0.01  # lambda


@dataclass(frozen=True)
class WatermarkReading:
    """The mark of a key read from a model.

    Attributes:
        errors: of `bits` bits, those that differ from the key's.
        bits: T.
        p_value: probability of so few errors or fewer with a key that has nothing to do with the model.
        layer: name of the convolution.
    """

    errors: int
    bits: int
    p_value: float
    layer: str

    def __str__(self) -> str:
        wrong = f"{self.errors} of {self.bits} bits wrong in {self.layer}"
        return f"{wrong}; an unrelated key gives {self.bits // 2}, and so few with probability {self.p_value:.1e}"


def watermark_layer(backbone: nn.Module) -> tuple[str, nn.Parameter]:
    """Return name and weight of the convolution that holds the mark.

    It is the one whose filters have the most weights (input channels x height x width), the first of several, and not
    a grouped one: it has the most room.

    Raises:
        UserError: no convolution with filters of at least T weights.
    """
    convolutions = [
        (name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d | nn.Conv1d)
    ]
    found = [(name, module.weight) for name, module in convolutions if module.groups == 1]
    name, weight = max(found, key=lambda pair: pair[1][0].numel(), default=("", None))
    if weight is None or weight[0].numel() < BITS:
        raise UserError(
            f"watermark: the backbone has no convolution whose filters have {BITS} weights or more; take another one"
        )
    return name, weight


def watermark_secret(secret: bytes, weights: int) -> tuple[Tensor, Tensor]:
    """Return the matrix X (T, M) float32 and the bits b (T,) float32, 0 or 1, of a key.

    They are a function of Philox's raw output, so they are the same in every version of numpy.

    Args:
        secret: the key.
        weights: M.
    """
    digest = hashlib.sha256(b"lit-vision watermark 1" + secret).digest()
    stream = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    bits = stream.random_raw(BITS) >> np.uint64(63)
    uniform = torch.from_numpy(((stream.random_raw(BITS * weights) >> np.uint64(11)) + 0.5) * 2.0**-53)
    normal = torch.special.ndtri(uniform).float().reshape(BITS, weights)
    return normal, torch.from_numpy(bits.astype(np.float32))


def mean_filter(weight: Tensor) -> Tensor:
    """Return w (M,), the mean over the output channels of a convolution's weight, at least float32."""
    mean = (weight if weight.dtype == torch.float64 else weight.float()).mean(0)
    return mean.flatten()


def watermark_loss(weight: Tensor, matrix: Tensor, bits: Tensor) -> Tensor:
    """Return E_R, the cross-entropy in nats of the bits, summed over them; T log 2 for a weight of zeros.

    Args:
        weight: of the convolution, (C_out, C_in, H, W).
        matrix: X (T, M), M = C_in H W.
        bits: b (T,).
    """
    with torch.autocast(weight.device.type, enabled=False):
        logits = matrix @ mean_filter(weight)
        return F.binary_cross_entropy_with_logits(logits, bits, reduction="sum")


def read_watermark(weight: Tensor, secret: bytes, layer: str = "") -> WatermarkReading:
    """Return the bits that X w gives wrongly for a key, bit 1 where X w > 0, with the binomial p-value.

    The p-value holds for one key that was fixed before the model was looked at: who tries many keys finds low ones.
    """
    from scipy.stats import binom

    matrix, bits = watermark_secret(secret, weight[0].numel())
    found = matrix.double() @ mean_filter(weight.detach().cpu()).double() > 0
    errors = int((found != bits.bool()).sum())
    return WatermarkReading(errors, BITS, float(binom.cdf(errors, BITS, 0.5)), layer)
