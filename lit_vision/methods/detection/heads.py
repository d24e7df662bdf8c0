"""Detection heads of torchvision without its backbones and image transform, anchors in multiples of the strides.

Their losses divide by counts in a batch (positives, sampled regions). With several processes they divide here by the
counts in all of them, so that DDP's average of gradients is that of the joined batch; RetinaNet divides per image and
needs no change.
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
    """Return the papers' strides without those whose anchors are too large for the image.

    8 to 128 (FCOS, RetinaNet) or 4 to 64 (R-CNNs) are for 512 pixels and more. A smaller image has the strides that are
    at most a quarter or an eighth of its side, as the coarsest is of 512, and at least one: at 128 pixels 8, 16, 32 or
    4, 8, 16. So from 32 pixels on the largest anchor, as the side of a square of its area, is at most 1.6 x the image
    (RetinaNet) or 1 x (R-CNNs).

    Args:
        head: one of DETECTION_HEADS.
        img_size: side of the images, pixels.
    """
    first, share = (8, 4) if head in ONE_STAGE else (4, 8)
    strides = [first * 2**i for i in range(5)]
    return [stride for stride in strides if stride == first or stride * share <= img_size]


class _BackboneStub(nn.Module):
    """Stand-in for a backbone in torchvision's constructors, which read only its number of channels."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels


def globally_normalized_losses(losses: dict[str, Tensor], counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn losses that divide by this process's counts into those of the joined batch; no change with one process.

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
    """FCOS head of torchvision whose losses divide by the number of positives in all processes."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return torchvision's losses, globally normalised; the arguments are torchvision's."""
        losses: dict[str, Tensor] = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        return globally_normalized_losses(losses, dict.fromkeys(losses, (torch.stack(matched_idxs) >= 0).sum()))


class KeyedSampler(BalancedPositiveNegativeSampler):
    """Sampler of the regions that train, which depends on each image's key: the same on any number of processes.

    Without `keys` it draws from torch's global generator, as torchvision does.

    Args:
        replaced: torchvision's sampler, whose settings it takes over.
        stream: of the noise, see `keyed_noise`.

    Attributes:
        keys: (B, 3) of the images of the next call, or None.
        num_positives: sampled objects in the last call, over the batch.
        num_sampled: sampled regions in the last call, over the batch.
    """

    def __init__(self, replaced: BalancedPositiveNegativeSampler, stream: int) -> None:
        super().__init__(replaced.batch_size_per_image, replaced.positive_fraction)
        self.stream = stream
        self.keys: Tensor | None = None

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Turn the labels of each image's regions into uint8 masks of the sampled ones: objects, background.

        A label of -1 excludes a region, 0 is background.
        """
        sampled: tuple[list[Tensor], list[Tensor]]
        sampled = super().__call__(matched_idxs) if self.keys is None else self._sample(self.keys, matched_idxs)
        self.num_positives, negatives = (torch.stack([mask.sum() for mask in masks]).sum() for masks in sampled)
        self.num_sampled = self.num_positives + negatives
        return sampled

    def _sample(self, keys: Tensor, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        noise = keyed_noise(keys, max(map(len, labels)), 0, self.stream)
        positives, negatives = [], []
        for image_labels, image_noise in zip(labels, noise):
            quota = int(self.batch_size_per_image * self.positive_fraction)
            positives.append(_k_smallest(image_noise, image_labels >= 1, quota))
            quota = self.batch_size_per_image - int(positives[-1].sum())
            negatives.append(_k_smallest(image_noise, image_labels == 0, quota))
        return positives, negatives


def _k_smallest(noise: Tensor, candidates: Tensor, k: int) -> Tensor:
    """Return a uint8 mask of the at most k smallest values of `noise` where `candidates` is true."""
    indices = candidates.nonzero()[:, 0]
    mask = torch.zeros_like(candidates, dtype=torch.uint8)
    mask[indices[noise[indices].argsort(stable=True)[:k]]] = 1
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
    max_detections: int = MAX_DETECTIONS,
) -> nn.Module:
    """Build one of torchvision's detectors without backbone and image transform.

    Anchors: FCOS one point per position; RetinaNet nine, sides 4 x stride x 2^(0, 1/3, 2/3), ratios 1/2, 1, 2; the
    R-CNNs three, side 8 x stride. At strides 8 to 128 (4 to 64 for the R-CNNs) these are the papers' 32 to 512; see
    `default_strides`. Unlike torchvision's defaults: RetinaNet's convolutions have group norm (as its v2 model) and the
    R-CNNs' heads follow `head_width`.

    Args:
        name: one of DETECTION_HEADS.
        num_classes: K, without background.
        channels: of the pyramid's levels.
        strides: of the levels.
        head_convs: convolutions before FCOS's outputs.
        head_width: of the R-CNNs' two linear layers.
        rois: regions of each image that train the R-CNNs' second stage, at most a quarter of them objects.
        score: detections below are dropped.
        nms: overlap above which of two detections of one class the lower is dropped.
        max_detections: most detections of an image; the best are kept.
    """
    rules = {"score_thresh": score, "nms_thresh": nms, "detections_per_img": max_detections}
    stub, ratios = _BackboneStub(channels), (RATIOS,) * len(strides)
    if name == "fcos":
        points = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
        detector = FCOS(
            stub,
            num_classes,
            anchor_generator=points,
            head=GlobalNormFCOSHead(channels, 1, num_classes, head_convs),
            **rules,
        )
    elif name == "retinanet":
        anchors = AnchorGenerator(tuple(tuple(4 * s * 2 ** (i / 3) for i in range(3)) for s in strides), ratios)
        head = RetinaNetHead(channels, 9, num_classes, norm_layer=group_norm)
        detector = RetinaNet(stub, num_classes, anchor_generator=anchors, head=head, **rules)
    else:
        levels = [str(i) for i in range(min(4, len(strides)))]
        pool = partial(MultiScaleRoIAlign, levels, sampling_ratio=2)
        parts: dict[str, Any] = {
            "rpn_anchor_generator": AnchorGenerator(tuple((8 * s,) for s in strides), ratios),
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
        detector = (MaskRCNN if name == "mask_rcnn" else FasterRCNN)(stub, **parts)
        detector.rpn.fg_bg_sampler = KeyedSampler(detector.rpn.fg_bg_sampler, ANCHORS)
        detector.roi_heads.fg_bg_sampler = KeyedSampler(detector.roi_heads.fg_bg_sampler, PROPOSALS)
    detector.transform = nn.Identity()
    for part in detector.modules():
        if type(part) is nn.GroupNorm:  # torch's, in FCOS's head: ours computes the same, faster on CPUs
            part.__class__ = GroupNorm
    return detector
