"""Position tables: the published values, and resizing."""

import math

import pytest
import torch

from lit_vision.backbones.pos_embed import resize_pos_embed, sincos_2d


def test_sincos_2d__published_values() -> None:
    """Dimension 768, grid 14 (He et al. 2022, the table in the released weights)."""
    table = sincos_2d(768, 14)
    assert table.shape == (1, 197, 768)
    assert table[0, 0].abs().max() == 0
    torch.testing.assert_close(table[0, 1:].square().sum(1), torch.full((196,), 384.0))
    first, second = table[0, 1], table[0, 2]
    assert first.view(4, 192)[[0, 2]].abs().max() == 0
    assert first.view(4, 192)[[1, 3]].min() == 1
    torch.testing.assert_close(second[:3], torch.tensor([0.841471, 0.815251, 0.788593]), atol=1e-6, rtol=0)
    torch.testing.assert_close(second[384:387], torch.zeros(3))


def test_sincos_2d__slow_loop_from_the_definition() -> None:
    width, rows, columns = 16, 2, 3
    table = sincos_2d(width, (rows, columns), cls_token=False)
    for y in range(rows):
        for x in range(columns):
            row = []
            for position in (x, y):
                angles = [position * 10000 ** (-k / (width / 4)) for k in range(width // 4)]
                row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[0, y * columns + x], torch.tensor(row))
    with pytest.raises(ValueError, match="width"):
        sincos_2d(18, 2)


def test_resize_pos_embed__keeps_cls_and_constants_and_equals_timms() -> None:
    from timm.layers import resample_abs_pos_embed

    table = torch.randn(1, 17, 8)
    out = resize_pos_embed(table, (6, 8))
    assert out.shape == (1, 49, 8)
    assert torch.equal(out[:, 0], table[:, 0])
    torch.testing.assert_close(out, resample_abs_pos_embed(table, (6, 8), antialias=False))
    assert torch.equal(resize_pos_embed(table, (4, 4)), table)
    torch.testing.assert_close(resize_pos_embed(torch.ones(1, 17, 8), (5, 5)), torch.ones(1, 26, 8))
    with pytest.raises(ValueError, match="patch rows"):
        resize_pos_embed(torch.zeros(1, 16, 8), (4, 4))


def test_resize_pos_embed__of_a_rectangle_is_that_of_its_transpose() -> None:
    table = torch.randn(1, 2 + 3 * 5, 8)
    wide = resize_pos_embed(table, (4, 9), prefix=2, source=(3, 5))
    flipped = torch.cat([table[:, :2], table[:, 2:].view(1, 3, 5, 8).transpose(1, 2).flatten(1, 2)], 1)
    tall = resize_pos_embed(flipped, (9, 4), prefix=2, source=(5, 3))
    assert torch.equal(wide[:, :2], table[:, :2])
    torch.testing.assert_close(wide[0, 2:].view(4, 9, 8), tall[0, 2:].view(9, 4, 8).transpose(0, 1))
    assert resize_pos_embed(table, (3, 5), prefix=2, source=(3, 5)) is table
    ramp = torch.arange(8.0).repeat(2, 1).view(1, 16, 1)  # in each row 0 to 7: stays a ramp, nearly, off the edges
    middle = resize_pos_embed(ramp, (2, 16), prefix=0, source=(2, 8)).view(2, 16)[:, 4:12]
    torch.testing.assert_close(middle, (torch.arange(4.0, 12) / 2 - 0.25).expand(2, 8), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="grid of 2 x 8"):
        resize_pos_embed(table, (4, 4), prefix=2, source=(2, 8))
