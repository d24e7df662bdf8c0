"""Classification without Lightning: targets, loss, backbone and linear head.

classifier.py beside this file trains the network. B images, K classes, D backbone width, C H W channels and pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.methods import tuning_modes
from lit_vision.methods.pixels import channel_values
from lit_vision.methods.tuning_modes import ADAPTERS, TUNING_DEFAULTS

PARTS = frozenset({"backbone", "head", "head_norm"})  # the modules in a checkpoint of this method
MONITOR = ("val/top1", True)  # the metric that chooses best.ckpt; True: larger is better
TRAIN_VIEW = "train"  # one distorted crop
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: Mapping[str, Any] = {
    **TUNING_DEFAULTS,
    "loss": "ce",
    "label_smoothing": 0.0,
    "class_weights": None,
    "head_norm": False,
    "head_init_std": None,
    "freeze_batch_norm": False,
    "lora_alpha": 8.0,
    "lora_layers": None,
    "lora_dropout": 0.0,
}
CLASSIFICATION_LOSSES = ("ce", "bce")


def soft_targets(labels: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Turn (B,) int64 labels into (B, K) float32 probabilities: 1 - e + e/K on the label, e/K elsewhere.

    Source: Szegedy et al. 2016, arXiv:1512.00567; e is `label_smoothing`.
    """
    targets = torch.full((len(labels), num_classes), label_smoothing / num_classes, device=labels.device)
    return targets.scatter(1, labels[:, None], 1 - label_smoothing + label_smoothing / num_classes)


def classification_loss(logits: Tensor, targets: Tensor, loss: str = "ce", weights: Tensor | None = None) -> Tensor:
    """Return the mean loss over a batch, in at least float32.

    Args:
        logits: (B, K).
        targets: (B, K) in [0, 1], already mixed and smoothed; the loss does not smooth again.
        loss: "ce": softmax cross-entropy; "bce": sigmoid cross-entropy, mean over images and classes
            (Wightman et al. 2021, arXiv:2110.00476).
        weights: (K,) of the classes, or None; the sum is divided by the number of images, whatever the weights are.

    Returns:
        Scalar in nats. With zero logits it is log K ("ce") or log 2 ("bce").
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = targets.to(logits.dtype)
    weights = None if weights is None else weights.to(logits.dtype)
    if loss == "ce":
        return F.cross_entropy(logits, targets, weight=weights)
    return F.binary_cross_entropy_with_logits(logits, targets, weight=weights)


class ClassifierNetwork(nn.Module):
    """Backbone, optional batch norm and linear head.

    Frozen parts stay in evaluation mode (batch-norm statistics fixed, drop path off); see `train`.

    Args:
        h: hyper-parameters of `lit_vision.methods.classifier.classifier.Classifier`, as its checkpoints hold them.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    method_name, parts, train_view, monitor = "Classifier", PARTS, TRAIN_VIEW, MONITOR

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make and initialise the parts."""
        num_classes, class_weights = h["num_classes"], h["class_weights"]
        if num_classes < 2:
            raise UserError(f"num_classes: {num_classes} is too few to classify; give 2 or more")
        if h["loss"] not in CLASSIFICATION_LOSSES:
            names = ", ".join(CLASSIFICATION_LOSSES)
            raise UserError(f"loss: {h['loss']!r} is not one of {names}; choose one of these")
        if not 0 <= h["label_smoothing"] < 1:
            raise UserError(f"label_smoothing: {h['label_smoothing']} is not in [0, 1); 0.1 is usual")
        if class_weights is not None and (len(class_weights) != num_classes or min(class_weights) <= 0):
            raise UserError(
                f"class_weights: {class_weights} are not {num_classes} numbers above 0; give one for each class"
            )
        self.backbone, mean, std = tuning_modes.build_backbone(h)
        width = self.backbone.width
        self.head_norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if h["head_norm"] else nn.Identity()
        self.head = nn.Linear(width, num_classes)
        head_std = h["head_init_std"] or (0.01 if h["tune"] in ("linear", *ADAPTERS) else 2e-5)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], mean, channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], std, channels)))
        self.register_buffer("class_weights", class_weights and torch.tensor(class_weights), persistent=False)
        self.train()  # frozen parts must be in evaluation mode from the start

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of normalised images (B, C, H, W)."""
        logits: Tensor = self.head(self.head_norm(self.features(images)))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return features (B, D) of normalised images (B, C, H, W), with a gradient if the backbone trains."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.hparams["tune"] != "linear"):
            features: Tensor = self.backbone(images)
        return features

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return `classification_loss` of normalised images (B, C, H, W) and targets (B, K); scalar."""
        return classification_loss(self(images), targets, self.hparams["loss"], self.class_weights)

    def train(self, mode: bool = True) -> "ClassifierNetwork":
        """Set training mode, except for the frozen parts of the backbone; see `tuning_modes.keep_frozen_in_eval`."""
        super().train(mode)
        tuning_modes.keep_frozen_in_eval(self)
        return self
