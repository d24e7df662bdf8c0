"""The batch contract: layouts, normalization of every pixel field, and methods that pass on what they do not use."""

import pytest
import torch
from torch import Tensor

from lit_vision.data.batch import Batch, check_batch, normalize, normalize_batch
from lit_vision.errors import UserError
from lit_vision.methods import MAE, Classifier, LeJEPA, SimCLR
from lit_vision.methods.keyed_noise import TRAIN

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def batch(views: int = 1, size: int = 4) -> Batch:
    """Three images with every field."""
    return {
        "images": pixels(3, views, size, size, 3),
        "label": torch.tensor([0, 1, 1]),
        "key": torch.tensor([[0, i, 0] for i in range(3)]),
        "local_images": pixels(3, 2, 16, 16, 3),
        "degraded": pixels(3, 1, 2, 2, 3),
        "tokens": torch.arange(12).view(3, 4),
        "token_mask": torch.ones(3, 4, dtype=torch.bool),
        "mask": pixels(3, size, size),
        "targets": [{"boxes": torch.zeros(i, 4), "labels": torch.zeros(i, dtype=torch.int64)} for i in range(3)],
    }


@pytest.mark.parametrize(("shape", "channels"), [((2, 2, 4, 6, 3), 3), ((2, 1, 5, 4, 6, 3), 3), ((2, 1, 4, 6, 1), 1)])
def test_pixels_are_normalized_one_by_one(shape: tuple[int, ...], channels: int) -> None:
    images, mean, std = pixels(*shape), MEAN[:channels], STD[:channels]
    found = normalize(images, mean, std)
    assert found.shape == (*shape[:-3], channels, *shape[-3:-1])
    assert found.is_contiguous()
    for c in range(channels):
        expected = (images[..., c].double() / 255 - mean[c].double()) / std[c].double()
        torch.testing.assert_close(found.select(-3, c).double(), expected, rtol=0, atol=1e-5)


def test_every_pixel_field_is_normalized_and_the_others_pass_unchanged() -> None:
    given = batch()
    found = normalize_batch(given, MEAN, STD)
    assert found.keys() == given.keys()
    for name, value in found.items():
        if name in ("images", "local_images", "degraded"):
            assert torch.equal(value, normalize(given[name], MEAN, STD))
        else:
            assert value is given[name]
    assert given["images"].dtype == torch.uint8  # the given batch is left as it was


@pytest.mark.parametrize("name", ["clip", "labels"])
def test_clips_and_several_labels_an_image_are_batches(name: str) -> None:
    given = batch()
    if name == "clip":
        given["images"] = pixels(3, 1, 5, 4, 4, 3)
        assert normalize_batch(given, MEAN, STD, clips=True)["images"].shape == (3, 1, 5, 3, 4, 4)
        with pytest.raises(UserError, match="VideoClassifier"):
            normalize_batch(given, MEAN, STD)
        with pytest.raises(UserError, match="VideoFolderDataModule"):
            normalize_batch(batch(), MEAN, STD, clips=True)
    else:
        given["label"] = torch.tensor([[0.0, 1.0], [1.0, torch.nan], [0.0, 0.0]])
        assert normalize_batch(given, MEAN, STD)["label"] is given["label"]


WRONG = {
    "images": torch.zeros(3, 1, 4, 4, 3),
    "label": torch.zeros(3),
    "key": torch.zeros(3, 2, dtype=torch.int64),
    "local_images": pixels(2, 1, 4, 4, 3),
    "degraded": pixels(3, 2, 2, 3),
    "tokens": torch.zeros(3, 5, dtype=torch.int64),
    "token_mask": torch.zeros(3, 4),
    "mask": torch.zeros(3, 4, 4),
    "targets": [{}],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_field_of_another_layout_is_named(name: str) -> None:
    given = batch()
    check_batch(given)
    given[name] = WRONG[name]
    with pytest.raises(ValueError, match=name):
        check_batch(given)


@pytest.mark.parametrize("name", ["images", "label", "key", "token_mask"])
def test_a_missing_field_is_named(name: str) -> None:
    given = batch()
    del given[name]
    with pytest.raises(ValueError, match=name):
        check_batch(given)


def test_other_channels_than_the_mean_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, V, H, W, 3\)"):
        normalize(pixels(2, 1, 4, 4, 1), MEAN, STD)


def _methods() -> dict[str, object]:
    torch.manual_seed(0)
    vit = "vit_tiny_patch16_224"
    return {
        "mae": MAE(vit, VIT, decoder_width=32, decoder_depth=1, decoder_heads=2),
        "simclr": SimCLR(vit, VIT, projection_width=8),
        "lejepa": LeJEPA(vit, VIT),
        "classifier": Classifier(vit, 2, VIT),
    }


@pytest.mark.parametrize("name", ["mae", "simclr", "lejepa", "classifier"])
def test_methods_pass_on_fields_that_they_do_not_use(name: str) -> None:
    method = _methods()[name]
    full = batch(2 if name in ("simclr", "lejepa") else 1, 32)
    if name == "lejepa":
        del full["local_images"]  # which it uses
    plain = {field: full[field] for field in ("images", "label", "key")}
    found = method.on_after_batch_transfer(method.on_before_batch_transfer(full, 0), 0)
    assert found.keys() == full.keys()
    assert all(found[field] is full[field] for field in ("label", "key", "tokens", "token_mask", "mask", "targets"))

    def loss(given: Batch) -> Tensor:
        given = method.on_after_batch_transfer(given, 0)
        if name == "mae":
            return method.batch_loss(given, TRAIN)
        if name == "simclr":
            return method.loss(given["images"])
        if name == "lejepa":
            return method.loss(given["images"], given.get("local_images"), 0)[0]
        return torch.nn.functional.cross_entropy(method(given["images"][:, 0]), given["label"])

    torch.manual_seed(1)
    expected = loss(plain)
    torch.manual_seed(1)
    assert torch.equal(loss(full), expected)
