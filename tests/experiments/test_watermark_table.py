"""The table of the watermark: what is done to a marked network, and a toy seed from training to wrong bits."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import table_watermark


def test_pruning_and_rounding_change_what_they_say() -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    pruned = table_watermark.pruned(weight, 0.6)
    gone = pruned == 0
    assert int(gone.sum()) == round(0.6 * weight.numel())
    assert weight[gone].abs().max() <= weight[~gone].abs().min()
    assert torch.equal(pruned[~gone], weight[~gone])
    rounded = table_watermark.rounded_to_int8(weight)
    for before, after in zip(weight, rounded):
        step = before.abs().max() / 127
        assert after.unique().numel() <= 255
        assert (after - before).abs().max() <= step / 2 + 1e-7


def test_a_mark_is_trained_in_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_watermark, "EPOCHS", 20)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(50, 1, 8, 8, generator=generator), torch.arange(50) % 10
    marked, plain = table_watermark.build(0, True), table_watermark.build(0, False)
    assert torch.equal(marked.head.weight, plain.head.weight)
    table_watermark.train_on_labels(marked, images, labels, 0)
    assert table_watermark.measure(marked, images, labels, 0)["bit_errors"] < 40
    assert table_watermark.measure(plain.eval(), images, labels, 0)["bit_errors"] > 80
