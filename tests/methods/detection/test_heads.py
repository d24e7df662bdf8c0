"""Normalization of the detectors' losses and sampled regions: one process equals torchvision, several equal one."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.fcos import FCOSHead
from toy_dense import make_detector

from lit_vision import distributed
from lit_vision.methods.detection.heads import KeyedSampler, globally_normalized_losses
from lit_vision.methods.keyed_noise import ANCHORS, PROPOSALS, keyed_noise

KEYS = torch.tensor([[0, 1, 0], [0, 2, 0], [0, 3, 0]])


def _batch() -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Three images of 32 pixels with 2, 1 and 0 objects."""
    images, targets = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    for boxes, labels in (([[2, 2, 14, 15], [16, 14, 30, 29]], [0, 1]), ([[5, 10, 22, 20]], [2]), ([], [])):
        masks = torch.zeros(len(boxes), 32, 32, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes):
            mask[y1:y2, x1:x2] = 1
        box, label = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64)
        targets.append({"boxes": box, "labels": label, "masks": masks})
    return images, targets


def _learning(head: str, **more):
    """Detector in training mode with fixed batch-norm statistics, so that images do not influence each other."""
    model = make_detector(head, **more).train()
    model.backbone.eval()
    return model


def test_losses_of_one_process_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the bit at a fixed seed if no keys are given; with keys the global generator is not used."""
    images, targets = _batch()
    fcos, rcnn = _learning("fcos"), _learning("mask_rcnn", rois=8)
    ours = fcos.losses(images, targets)
    with monkeypatch.context() as patched:
        patched.setattr(type(fcos.head.head), "compute_loss", FCOSHead.compute_loss)
        theirs = fcos.losses(images, targets)
    assert ours == theirs
    torch.manual_seed(1)
    ours = rcnn.losses(images, targets)
    before = torch.get_rng_state()
    keyed = rcnn.losses(images, targets, KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    assert rcnn.losses(images, targets, KEYS) == keyed
    assert rcnn.losses(images, targets, KEYS + 1) != keyed
    for part in (rcnn.head.rpn, rcnn.head.roi_heads):
        part.fg_bg_sampler = _Counting(part.fg_bg_sampler.batch_size_per_image, part.fg_bg_sampler.positive_fraction)
    torch.manual_seed(1)
    assert rcnn.losses(images, targets) == ours


class _Counting(BalancedPositiveNegativeSampler):
    """Sampler of torchvision with the attributes that `Detector` reads."""

    num_positives = num_sampled = torch.tensor(1)


@pytest.mark.parametrize("head", ["fcos", "mask_rcnn"])
def test_losses_divide_by_the_counts_of_all_processes(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    """Two processes simulated one after the other, the second with an image without objects."""
    images, targets = _batch()
    model = _learning(head, rois=2000)
    wanted, sums = model.losses(images, targets, KEYS), []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: sums.append(x) or x)
    model.losses(images[2:], targets[2:], KEYS[2:])
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: x + sums[0])
    got = model.losses(images[:2], targets[:2], KEYS[:2])
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_globally_normalized_losses__closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """No object in this process (a loss of 3, clamped count 1), 4 in another with sum 5: (3 + 5) / 4."""
    losses, counts = {"a": torch.tensor(3.0)}, {"a": torch.tensor(0), "b": torch.tensor(7)}
    assert globally_normalized_losses(losses, counts) is losses
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: x + torch.tensor([[5.0], [4.0]]))
    assert globally_normalized_losses(losses, counts) == {"a": torch.tensor(2.0)}


def test_keyed_sampler__slow_reference() -> None:
    """Objects with the lowest noise up to their quota, then background; the order of the images does not matter."""
    g = torch.Generator().manual_seed(0)
    labels = [torch.randint(-1, 3, (n,), generator=g) for n in (40, 7, 25)] + [torch.zeros(30)]
    keys = torch.tensor([[2, i, 0] for i in (5, 1, 8, 0)])
    sampler = KeyedSampler(BalancedPositiveNegativeSampler(8, 0.25), ANCHORS)
    sampler.keys = keys
    positives, negatives = sampler(labels)
    for image_labels, key, objects, background in zip(labels, keys, positives, negatives):
        noise = keyed_noise(key[None], len(image_labels), 0, ANCHORS)[0].tolist()
        order = sorted(range(len(image_labels)), key=noise.__getitem__)
        wanted = [i for i in order if image_labels[i] >= 1][:2]
        rest = [i for i in order if image_labels[i] == 0][: 8 - len(wanted)]
        assert objects.nonzero()[:, 0].tolist() == sorted(wanted)
        assert background.nonzero()[:, 0].tolist() == sorted(rest)
    assert sampler.num_positives == sum(mask.sum() for mask in positives) == 6
    assert sampler.num_sampled == sampler.num_positives + sum(mask.sum() for mask in negatives)
    sampler.keys = keys.flip(0)
    assert all(torch.equal(a, b) for a, b in zip(sampler(labels[::-1])[1], negatives[::-1]))
    other = KeyedSampler(sampler, PROPOSALS)
    other.keys = keys
    assert not torch.equal(other(labels)[1][0], negatives[0])
    draws = KeyedSampler(BalancedPositiveNegativeSampler(10, 0.5), ANCHORS)
    draws.keys = torch.arange(4000)[:, None]
    chosen = torch.stack(draws([torch.zeros(40)] * 4000)[1]).float().mean(0)
    assert (chosen - 0.25).abs().max() < 0.03  # every region alike: 4 standard deviations
