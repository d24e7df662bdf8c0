"""Video classification without Lightning: a backbone on every frame, the frames joined, and a linear head.

temporal.py beside this file has the ways to join frames, video_classifier.py trains the network. B clips, V clips of a
video, T frames, K classes, D width of a frame's features, W width of a clip's features, C H W channels and pixels.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.methods import tuning_modes
from lit_vision.methods.pixels import channel_values
from lit_vision.methods.tuning_modes import TUNING_DEFAULTS
from lit_vision.methods.video_classifier.temporal import ShiftHook, add_temporal_shift, build_temporal

PARTS = frozenset({"backbone", "temporal", "head"})  # the modules in a checkpoint of this method
MONITOR = ("val/top1", True)  # the metric that chooses best.ckpt; True: larger is better
TRAIN_VIEW = "train"  # one distorted crop, the same for all frames of a clip
# values of the hyper-parameters below that a checkpoint does not have, because it is older or only for use
DEFAULTS: Mapping[str, Any] = {
    **TUNING_DEFAULTS,
    "temporal": "mean",
    "temporal_width": 256,
    "temporal_heads": 4,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "freeze_batch_norm": False,
    "lora_alpha": 8.0,
    "lora_layers": None,
    "lora_dropout": 0.0,
}


def video_log_probabilities(logits: Tensor) -> Tensor:
    """Return the log of the mean over a video's clips of the clips' class probabilities.

    Args:
        logits: (B, V, K) of V clips of each of B videos.

    Returns:
        (B, K), at least float32; exp of it sums to 1. With V = 1 it is log_softmax.
    """
    logits = tuning_modes.at_least_float32(logits)
    return F.log_softmax(logits, dim=2).logsumexp(dim=1) - math.log(logits.shape[1])


class VideoClassifierNetwork(nn.Module):
    """Backbone on every frame, frames joined over time, and linear head.

    Frozen parts stay in evaluation mode (batch-norm statistics fixed, drop path off); see `train`.

    Args:
        h: hyper-parameters of `lit_vision.methods.video_classifier.video_classifier.VideoClassifier`.

    Raises:
        UserError: a value that cannot work; the message names it and says what to do. PartialMatchError (a UserError):
            the checkpoint does not fit.
    """

    method_name, parts, train_view, monitor = "VideoClassifier", PARTS, TRAIN_VIEW, MONITOR

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__()
        self.hparams: Any = {**h, **DEFAULTS, **h}  # in the order of h; a LightningModule has its own
        self.build(self.hparams)

    def build(self, h: Mapping[str, Any]) -> None:
        """Make and initialise the parts."""
        if h["num_classes"] < 2:
            raise UserError(f"num_classes: {h['num_classes']} is too few to classify; give 2 or more")
        for name in ("label_smoothing", "dropout"):
            if not 0 <= h[name] < 1:
                raise UserError(f"{name}: {h[name]} is not in [0, 1); 0.1 is usual")
        self.backbone, mean, std = tuning_modes.build_backbone(h)
        self.temporal = build_temporal(h["temporal"], self.backbone.width, h["temporal_width"], h["temporal_heads"])
        self.shift: ShiftHook | None = add_temporal_shift(self.backbone) if h["temporal"] == "tsm" else None
        self.dropout = nn.Dropout(h["dropout"])
        self.head = nn.Linear(self.temporal.width, h["num_classes"])
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        channels = self.backbone.config["in_chans"]
        self.register_buffer("mean", torch.tensor(channel_values("mean", h["mean"], mean, channels)))
        self.register_buffer("std", torch.tensor(channel_values("std", h["std"], std, channels)))
        self.train()  # frozen parts must be in evaluation mode from the start

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (B, K) of normalised clips (B, T, C, H, W); any number of frames T."""
        logits: Tensor = self.head(self.dropout(self.clip_features(clips)))
        return logits

    def clip_features(self, clips: Tensor) -> Tensor:
        """Return the features (B, W) of normalised clips (B, T, C, H, W); the frames are one batch of the backbone."""
        frames = clips.shape[1]
        if self.shift is not None:
            self.shift.frames = frames
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.hparams["tune"] != "linear"):
            features = self.backbone(clips.flatten(0, 1))  # (B x T, D)
        joined: Tensor = self.temporal(features.unflatten(0, (-1, frames)))
        return joined

    def train(self, mode: bool = True) -> "VideoClassifierNetwork":
        """Set training mode, except for the frozen parts of the backbone; see `tuning_modes.keep_frozen_in_eval`."""
        super().train(mode)
        tuning_modes.keep_frozen_in_eval(self)
        return self
