"""Several labels an image, without Lightning: loss, thresholds, backbone and linear head.

multilabel.py beside this file trains the network. B images, K labels, C H W channels and pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.methods import tuning_modes
from lit_vision.methods.pixels import channel_values
from lit_vision.methods.tuning_modes import TUNING_DEFAULTS

PARTS = frozenset({"backbone", "head"})  # the modules in a checkpoint of this method
MONITOR = ("val/map", True)  # the metric that chooses best.ckpt; True: larger is better
TRAIN_VIEW = "train"  # one distorted crop
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: Mapping[str, Any] = {**TUNING_DEFAULTS, "freeze_batch_norm": False}


def masked_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sigmoid cross-entropy of the known labels, in at least float32.

    The sum over the known labels is divided by B x K, unknown ones included: so two processes have the gradients that
    one has on the joined batch, however the unknown labels lie.

    Args:
        logits: (B, K).
        labels: (B, K) in [0, 1], NaN for unknown ones, which give no gradient.

    Returns:
        Scalar in nats. With zero logits and all labels known it is log 2.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num().to(logits.dtype), reduction="none")
    return (losses * known).sum() / max(1, labels.numel())


def best_threshold(precision: Tensor, recall: Tensor, thresholds: Tensor) -> float:
    """Return the score from which on a label is given: where F1 is largest on a precision-recall curve.

    Args:
        precision: (T + 1,), as torchmetrics' precision_recall_curve returns it.
        recall: (T + 1,).
        thresholds: (T,) scores, ascending.

    Returns:
        The middle between the two neighbouring scores, in [0, 1]; 0.5 if the label has no positive image.
    """
    f1 = (2 * precision * recall / (precision + recall))[: len(thresholds)].nan_to_num(0.0)
    if not len(f1) or float(f1.max()) == 0:
        return 0.5
    best = int(f1.argmax())
    below = float(thresholds[best - 1]) if best else 0.0
    return (below + float(thresholds[best])) / 2


def average_precision(precision: Tensor, recall: Tensor) -> Tensor:
    """Return the area under a precision-recall curve as a sum of steps, as scikit-learn's average_precision_score."""
    return -(recall.diff() * precision[:-1]).sum()


class MultiLabelClassifierNetwork(nn.Module):
    """Backbone and linear head with a sigmoid for each label.

    Frozen parts stay in evaluation mode; see `train`.

    Args:
        h: hyper-parameters of `lit_vision.methods.multilabel.multilabel.MultiLabelClassifier`.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do.
    """

    method_name, parts, train_view, monitor = "MultiLabelClassifier", PARTS, TRAIN_VIEW, MONITOR

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make and initialise the parts."""
        if h["num_labels"] < 1:
            raise UserError(f"num_labels: {h['num_labels']} is too few; give 1 or more")
        self.backbone, mean, std = tuning_modes.build_backbone(h)
        self.head = nn.Linear(self.backbone.width, h["num_labels"])
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], mean, channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], std, channels)))
        self.train()  # frozen parts must be in evaluation mode from the start

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of normalised images (B, C, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.hparams["tune"] != "linear"):
            features = self.backbone(images)
        logits: Tensor = self.head(features)
        return logits

    def train(self, mode: bool = True) -> "MultiLabelClassifierNetwork":
        """Set training mode, except for the frozen parts of the backbone; see `tuning_modes.keep_frozen_in_eval`."""
        super().train(mode)
        tuning_modes.keep_frozen_in_eval(self)
        return self


def best_thresholds(curves: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]) -> list[float]:
    """Return `best_threshold` of each label from torchmetrics' multilabel precision-recall curves."""
    return [best_threshold(*curve) for curve in zip(*curves)]
