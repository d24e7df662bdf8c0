"""Dice, IoU and accuracy against loops over pixels, on odd cases."""

import math

import pytest
import torch

from lit_vision.evaluation.segmentation import (
    PixelCounts,
    dice_per_class,
    iou_per_class,
    pixel_counts,
    segmentation_values,
)

K = 4


def _slow(predictions: list[torch.Tensor], truth: list[torch.Tensor], background: int | None) -> dict[str, float]:
    """Sets of pixels over the whole data set, class by class."""
    right, pixels = 0, 0
    guessed, true = ({k: set() for k in range(K)} for _ in range(2))
    for image, (p, t) in enumerate(zip(predictions, truth)):
        for index, (a, b) in enumerate(zip(p.flatten().tolist(), t.flatten().tolist())):
            if b != 255:
                guessed[a].add((image, index))
                true[b].add((image, index))
                right, pixels = right + (a == b), pixels + 1
    seen = [k for k in range(K) if guessed[k] | true[k]]
    iou = {k: len(guessed[k] & true[k]) / len(guessed[k] | true[k]) for k in seen}
    dice = {k: 2 * len(guessed[k] & true[k]) / (len(guessed[k]) + len(true[k])) for k in seen}
    recall = [len(guessed[k] & true[k]) / len(true[k]) for k in range(K) if true[k]]
    values = {"miou": _mean(iou.values()), "miou_objects": _mean(v for k, v in iou.items() if k != background)}
    values |= {"dice": _mean(v for k, v in dice.items() if k != background), "class_accuracy": _mean(recall)}
    values["pixel_accuracy"] = right / pixels if pixels else math.nan
    if background is not None:
        values["dice_background"] = dice.get(background, math.nan)
    return {k: v for k, v in values.items() if not math.isnan(v)}


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _cases():
    g = torch.Generator().manual_seed(0)
    p = [torch.randint(0, K, (5, 6), generator=g) for _ in range(4)]
    t = [torch.where(torch.rand(5, 6, generator=g) < 0.5, a, torch.randint(0, K, (5, 6), generator=g)) for a in p]
    ignored = [torch.where(torch.rand(5, 6, generator=g) < 0.3, 255, a) for a in t]
    no_class = [torch.where(a == 2, 0, a) for a in t]
    return {
        "ordinary": (p, t),
        "ignored pixels": (p, ignored),
        "a class that is predicted but never true": (p, no_class),
        "a class that is neither": ([torch.where(a == 2, 0, a) for a in p], no_class),
        "an image that is ignored whole": (p, [torch.full((5, 6), 255), *ignored[1:]]),
        "everything ignored": (p, [torch.full((5, 6), 255)] * 4),
        "only background": ([torch.zeros(5, 6).long()] * 4, [torch.zeros(5, 6).long()] * 4),
        "disjoint": ([torch.zeros(5, 6).long()], [torch.ones(5, 6).long()]),
    }


@pytest.mark.parametrize("background", [0, None])
@pytest.mark.parametrize("case", list(_cases()))
def test_measures_are_those_of_a_loop_over_pixels(case: str, background: int | None) -> None:
    predictions, truth = _cases()[case]
    metric = PixelCounts(K)
    for p, t in zip(predictions, truth):
        metric.update(p, t)
    values = segmentation_values(metric.compute(), background)
    expected = _slow(predictions, truth, background)
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-12), name


def test_dice_follows_from_iou_and_classes_have_names() -> None:
    counts = torch.tensor([[5, 5], [0, 10]])
    assert iou_per_class(counts).tolist() == [0.5, pytest.approx(10 / 15)]
    iou = iou_per_class(counts)
    torch.testing.assert_close(dice_per_class(counts), 2 * iou / (1 + iou))
    assert segmentation_values(counts, class_names=["a", "b"])["dice/a"] == pytest.approx(2 / 3)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        pixel_counts(torch.zeros(2, 2), torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="outside 0 to 1"):
        pixel_counts(torch.tensor([2]), torch.tensor([0]), 2)
