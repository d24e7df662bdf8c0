"""MAE on images that are not square, against a loop over patches at their row and column."""

import math

import pytest
import torch
from torch import Tensor

from lit_vision.callbacks.reconstructions import reconstruct
from lit_vision.errors import UserError
from lit_vision.methods.mae.mae import MAE

ROWS, COLUMNS, PATCH = 2, 8, 4  # as many patches as 4 x 4, which would hide a wrong grid
VIT = {"img_size": [8, 32], "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def mae() -> MAE:
    torch.manual_seed(0)
    method = MAE("vit_tiny_patch16_224", VIT, decoder_width=16, decoder_depth=2, decoder_heads=2).eval()
    for p in method.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    return method


def position(y: int, x: int, width: int) -> Tensor:
    """The sin-cos position of row y and column x, from the definition (He et al. 2022, A.1)."""
    values: list[float] = []
    for place in (x, y):
        angles = [place * 10000 ** (-k / (width / 4)) for k in range(width // 4)]
        values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values)


@torch.no_grad()
def test_forward__is_a_loop_over_rows_and_columns(mae: MAE) -> None:
    image, noise = torch.randn(1, 3, ROWS * PATCH, COLUMNS * PATCH), torch.rand(1, ROWS * COLUMNS)
    loss, pred, mask = mae(image, noise)
    vit, decoder = mae.backbone.model, mae.decoder
    places = [(y, x) for y in range(ROWS) for x in range(COLUMNS)]
    blocks = [image[0, :, PATCH * y : PATCH * (y + 1), PATCH * x : PATCH * (x + 1)] for y, x in places]
    keep = [i for i in range(len(places)) if mask[0, i] == 0]
    assert keep == sorted(noise[0].argsort()[:4].tolist())

    tokens = [vit.cls_token[0, 0]]
    for i in keep:
        embedded = (vit.patch_embed.proj.weight * blocks[i]).sum((1, 2, 3)) + vit.patch_embed.proj.bias
        tokens.append(embedded + position(*places[i], 32))
    latent = decoder.embed(vit.norm(vit.blocks(torch.stack(tokens)[None])))[0]
    full = [latent[0]]
    for i, place in enumerate(places):
        token = latent[1 + keep.index(i)] if i in keep else decoder.mask_token[0, 0]
        full.append(token + position(*place, 16))
    expected = decoder.pred(decoder.norm(decoder.blocks(torch.stack(full)[None])))[0, 1:]
    torch.testing.assert_close(pred[0], expected, atol=1e-5, rtol=1e-5)

    errors = []
    for i, block in enumerate(blocks):
        if i not in keep:
            pixels = block.permute(1, 2, 0).flatten()
            pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            errors.append((expected[i] - pixels).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mae.loss(image, noise), loss)


@torch.no_grad()
def test_reconstruct__shows_visible_patches_at_their_place(mae: MAE) -> None:
    images = (torch.rand(2, 3, ROWS * PATCH, COLUMNS * PATCH) - mae.mean[:, None, None]) / mae.std[:, None, None]
    original, visible, predicted = reconstruct(mae, images, noise := torch.rand(2, ROWS * COLUMNS))
    expected = (images * mae.std[:, None, None] + mae.mean[:, None, None]).permute(0, 2, 3, 1) * 255
    assert (original - expected).abs().max() <= 1
    mask = mae(images, noise)[2].view(2, ROWS, COLUMNS).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).bool()
    for picture in (visible, predicted):
        assert picture.shape == (2, ROWS * PATCH, COLUMNS * PATCH, 3)
        assert torch.equal(picture[~mask], original[~mask])
    assert ((visible[mask].int() - 128).abs() <= 1).all()


def test_other_shapes__are_refused_even_with_as_many_patches(mae: MAE) -> None:
    for height, width in ((16, 16), (32, 8)):
        with pytest.raises(UserError, match="is built for 8x32"):
            mae.loss(torch.zeros(1, 3, height, width), torch.rand(1, 16))
    with pytest.raises(UserError, match="img_size: 8x30 pixels are no multiple"):
        MAE("vit_tiny_patch16_224", {**VIT, "img_size": [8, 30]})
