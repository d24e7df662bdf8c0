"""torchvision's detection heads without its backbones and its image transform, anchors in multiples of the strides.

Their losses divide by what was found in a batch (positives, sampled regions). With several processes they divide here by what was found in
all of them, so that DDP's average of gradients is the joined batch's; RetinaNet divides per image and needs nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

from lit_vision import distributed
from lit_vision.backbones.pyramid import GroupNorm, group_norm
from lit_vision.evaluation.detection import MAX_DETECTIONS
from lit_vision.methods.keyed_noise import ANCHORS, PROPOSALS, keyed_noise

ONE_STAGE = ("fcos", "retinanet")
DETECTION_HEADS = (*ONE_STAGE, "faster_rcnn", "mask_rcnn")
RATIOS = (0.5, 1.0, 2.0)


def default_strides(head: str, img_size: int) -> list[int]:
    """The papers' strides without those whose anchors are too large for the image.

    8 to 128 (FCOS, RetinaNet) or 4 to 64 (R-CNNs) belong to 512 pixels and more. A smaller image keeps the strides that are no larger a
    share of it than the coarsest is of 512, a quarter or an eighth, and at least one: at 128 pixels 8, 16, 32 or 4, 8, 16. So from 32
    pixels on the largest anchor, as the side of a square of its area, is at most 1.6 x the image (RetinaNet) or 1 x (R-CNNs).

    Args:
        head: one of DETECTION_HEADS.
        img_size: side of the images, pixels.
    """
    first, share = (8, 4) if head in ONE_STAGE else (4, 8)
    strides = [first * 2**i for i in range(5)]
    return [stride for stride in strides if stride == first or stride * share <= img_size]


class _BackboneStub(nn.Module):
    """What torchvision's constructors ask of a backbone: how wide its maps are."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels


def globally_normalized_losses(losses: dict[str, Tensor], counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses that are a process's sums over its counts, as those of the joined batch; what they were with one process.

    Args:
        losses: scalars, each a sum over max(1, count).
        counts: scalars, under the same names.
    """
    if distributed.world_size() == 1:
        return losses
    count = torch.stack([counts[name] for name in losses])
    total = torch.stack(list(losses.values())) * count.clamp(min=1)
    return dict(zip(losses, distributed.global_mean(total, count)))


class GlobalNormFCOSHead(FCOSHead):
    """torchvision's, with the number of positives of all processes under its losses."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Arguments and result are torchvision's."""
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        return globally_normalized_losses(losses, dict.fromkeys(losses, (torch.stack(matched_idxs) >= 0).sum()))


class KeyedSampler(BalancedPositiveNegativeSampler):
    """torchvision's choice of regions that train, drawn from each image's key: the same on any number of processes.

    Without `keys` it draws from torch's global generator, as torchvision does. `positives` and `taken` count the last choice.

    Args:
        like: the sampler that it replaces.
        stream: of the noise.
    """

    def __init__(self, like: BalancedPositiveNegativeSampler, stream: int) -> None:
        super().__init__(like.batch_size_per_image, like.positive_fraction)
        self.stream, self.keys = stream, None

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """One label for each region of each image (-1 is out, 0 background) to two lists of uint8 masks: chosen objects, chosen background."""
        chosen = super().__call__(matched_idxs) if self.keys is None else self._keyed(matched_idxs)
        self.positives, negatives = (torch.stack([mask.sum() for mask in masks]).sum() for masks in chosen)
        self.taken = self.positives + negatives
        return chosen

    def _keyed(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        noise = keyed_noise(self.keys, max(map(len, labels)), 0, self.stream)
        positives, negatives = [], []
        for own, ranks in zip(labels, noise):
            positives.append(_k_smallest(ranks, own >= 1, int(self.batch_size_per_image * self.positive_fraction)))
            negatives.append(_k_smallest(ranks, own == 0, self.batch_size_per_image - int(positives[-1].sum())))
        return positives, negatives


def _k_smallest(noise: Tensor, among: Tensor, n: int) -> Tensor:
    """A uint8 mask of the at most n lowest in noise where `among` is true."""
    places = among.nonzero()[:, 0]
    mask = torch.zeros_like(among, dtype=torch.uint8)
    mask[places[noise[places].argsort(stable=True)[:n]]] = 1
    return mask


def build_head(
    name: str,
    num_classes: int,
    channels: int,
    strides: list[int],
    *,
    head_convs: int,
    head_width: int,
    rois: int,
    score: float,
    nms: float,
) -> nn.Module:
    """One of torchvision's detectors without backbone and image transform.

    Anchors: FCOS one point per position; RetinaNet nine, sides 4 x stride x 2^(0, 1/3, 2/3), ratios 1/2, 1, 2; the R-CNNs three, side
    8 x stride. At strides 8 to 128 (4 to 64 for the R-CNNs) these are the papers' 32 to 512; see `default_strides`.
    Unlike torchvision's defaults: RetinaNet's convolutions have group norm (as its v2 model) and the R-CNNs' heads follow `head_width`.

    Args:
        name: one of DETECTION_HEADS.
        num_classes: K, without background.
        channels: of the pyramid's levels.
        strides: of the levels.
        head_convs: convolutions before FCOS's outputs.
        head_width: of the R-CNNs' two linear layers.
        rois: regions of each image that train the R-CNNs' second stage, a quarter of them objects at most.
        score: detections below are dropped.
        nms: overlap above which of two detections of one class the lower is dropped.
    """
    rules = {"score_thresh": score, "nms_thresh": nms, "detections_per_img": MAX_DETECTIONS}
    body, flat = _BackboneStub(channels), (RATIOS,) * len(strides)
    if name == "fcos":
        points = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
        made = FCOS(
            body,
            num_classes,
            anchor_generator=points,
            head=GlobalNormFCOSHead(channels, 1, num_classes, head_convs),
            **rules,
        )
    elif name == "retinanet":
        anchors = AnchorGenerator(tuple(tuple(4 * s * 2 ** (i / 3) for i in range(3)) for s in strides), flat)
        head = RetinaNetHead(channels, 9, num_classes, norm_layer=group_norm)
        made = RetinaNet(body, num_classes, anchor_generator=anchors, head=head, **rules)
    else:
        levels = [str(i) for i in range(min(4, len(strides)))]
        pool = partial(MultiScaleRoIAlign, levels, sampling_ratio=2)
        parts: dict[str, Any] = {
            "rpn_anchor_generator": AnchorGenerator(tuple((8 * s,) for s in strides), flat),
            "box_roi_pool": pool(output_size=7),
            "box_head": TwoMLPHead(channels * 49, head_width),
            "box_batch_size_per_image": rois,
            "box_predictor": FastRCNNPredictor(head_width, num_classes + 1),
            **{f"box_{key}": value for key, value in rules.items()},
        }
        if name == "mask_rcnn":
            parts["mask_roi_pool"] = pool(output_size=14)
            parts["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
            parts["mask_predictor"] = MaskRCNNPredictor(channels, channels, num_classes + 1)
        made = (MaskRCNN if name == "mask_rcnn" else FasterRCNN)(body, **parts)
        made.rpn.fg_bg_sampler = KeyedSampler(made.rpn.fg_bg_sampler, ANCHORS)
        made.roi_heads.fg_bg_sampler = KeyedSampler(made.roi_heads.fg_bg_sampler, PROPOSALS)
    made.transform = nn.Identity()
    for part in made.modules():
        if type(part) is nn.GroupNorm:  # torchvision's own, in FCOS's head: ours computes the same, faster on CPUs
            part.__class__ = GroupNorm
    return made
