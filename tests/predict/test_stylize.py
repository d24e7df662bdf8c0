"""Style transfer: its terms against closed forms and differences, its color, and the files of the command."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from lit_vision.backbones.backbone import Backbone
from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.predict import stylize as stylizing
from lit_vision.predict.stylize import StyleLoss, gram_matrix, optimize_pixels, total_variation

# a smooth activation: differences of the loss are then its gradient wherever they are taken
CNN = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "act_layer": "silu"}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone("resnet18", **CNN).eval().requires_grad_(False)


def picture(seed: int, height: int = 32, width: int = 40) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_gram_matrix__is_the_mean_over_positions_of_products_of_channels() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [-1.0, 2.0]]]])
    torch.testing.assert_close(gram_matrix(maps), torch.tensor([[[30.0, 6.0], [6.0, 6.0]]]) / 4)
    maps = torch.randn(2, 3, 4, 5)
    slow = torch.zeros(2, 3, 3)
    for b, i, j, y, x in itertools.product(range(2), range(3), range(3), range(4), range(5)):
        slow[b, i, j] += maps[b, i, y, x] * maps[b, j, y, x] / 20
    torch.testing.assert_close(gram_matrix(maps), slow)
    torch.testing.assert_close(gram_matrix(maps.flip(3)), gram_matrix(maps))  # where a position lies does not count


def test_total_variation__of_a_step_and_a_checkerboard() -> None:
    step = torch.zeros(1, 3, 6, 5)
    step[..., 2:] = 0.5  # one of the four neighboring pairs of a row differs
    assert float(total_variation(step)) == pytest.approx(0.5 / 4)
    board = (torch.arange(6)[:, None] + torch.arange(5)).remainder(2).float().expand(1, 3, 6, 5)
    assert float(total_variation(board)) == 2
    assert float(total_variation(torch.full((1, 3, 6, 5), 0.3))) == 0


def test_loss__its_gradient_is_that_of_central_differences() -> None:
    torch.manual_seed(0)
    network = Backbone("resnet18", **CNN).eval().requires_grad_(False).double()
    content, style, x = (picture(seed, 16, 16).double() for seed in range(3))
    loss = StyleLoss(network, content, style, style_weight=3.0, smoothness=0.7)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    for seed in range(3):
        direction = picture(seed + 9, 16, 16).double() - 0.5
        with torch.no_grad():
            difference = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-6)


def test_loss__is_zero_where_style_and_image_are_the_content(backbone) -> None:
    content = picture(0)
    terms = StyleLoss(backbone, content, content, 10.0, 1.0).terms(content)
    assert [float(term) for term in terms[:2]] == [0, 0]
    found = StyleLoss(backbone, content, picture(1, 50, 36), 10.0, 1.0)  # a style of another size
    error, style, variation = found.terms(content)
    assert float(error) == 0 < float(style)
    assert float(found(content)) == pytest.approx(float(10 * style + variation))


def test_optimize_pixels__gets_nearer_to_the_style_and_repeats_to_the_bit(backbone) -> None:
    content, style = picture(0, 64, 72), picture(1, 64, 64) ** 3
    options = {"steps": 30, "style_weight": 10.0, "smoothness": 0.0}
    steps: list[None] = []
    image = optimize_pixels(backbone, content, style, **options, advance=lambda: steps.append(None))
    assert len(steps) == 30
    assert image.shape == content.shape
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    loss = StyleLoss(backbone, content, style, 10.0, 0.0)
    assert float(loss(image)) < 0.5 * float(loss(content))
    first, second, other = (
        optimize_pixels(backbone, content, style, **options, noise=0.5, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(image, optimize_pixels(backbone, content, style, **options, seed=7))  # of no noise


def test_keep_color__the_chroma_is_the_contents_and_the_luminance_the_images() -> None:
    image, content = picture(0), picture(1)
    found = stylizing.with_color_of(image, content)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    cb_cr = torch.tensor([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # of JPEG
    chroma = [torch.einsum("kc,bchw->bkhw", cb_cr, x) for x in (found, content)]
    torch.testing.assert_close(*chroma, rtol=0, atol=2e-6)
    gray = content.mean(1, keepdim=True).expand(-1, 3, -1, -1)  # any luminance is possible there
    torch.testing.assert_close(stylizing.luminance(stylizing.with_color_of(image, gray)), stylizing.luminance(image))
    light, other = stylizing.luminance_like(image**2, content)
    assert float(other.mean()) == pytest.approx(float(light.mean()), abs=1e-5)
    assert float(other.std()) == pytest.approx(float(light.std()), abs=1e-5)


@pytest.fixture
def files(tmp_path, monkeypatch, backbone):
    """Write photographs of 40 x 48 pixels and others, and let the command use the small backbone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stylizing, "pretrained_cnn", lambda name: backbone)
    pixels = (picture(0, 40, 48)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save("photo.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save("turned.jpg", exif=turned)
    Image.fromarray(pixels[..., 0]).save("gray.png")
    Image.fromarray(np.dstack([pixels, np.full((40, 48), 255, np.uint8)])).save("opaque.png")
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save("clear.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save("deep.png")
    Image.fromarray(pixels[:40, :20]).save("narrow.png")
    return tmp_path


def run(*words: str) -> int:
    return main(["stylize", *words, "--steps", "2", "--device", "cpu"])


def test_command__writes_a_png_of_the_size_asked_for_and_the_same_twice(files, capsys) -> None:
    assert run("turned.jpg", "--style", "gray.png", "--out", "a.png") == 0
    assert "a.png: 40 x 48" in capsys.readouterr().out
    assert run("opaque.png", "--style", "photo.png", "--out", "b.png", "--size", "40", "--keep_color") == 0
    assert Image.open("b.png").size == (40, 33)
    first = (files / "b.png").read_bytes()
    again = ["opaque.png", "--style", "photo.png", "--out", "b.png", "--size", "40", "--keep_color"]
    assert run(*again) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(*again, "--overwrite") == 0
    assert (files / "b.png").read_bytes() == first


@pytest.mark.parametrize(
    ("content", "style", "out", "code", "named"),
    [
        ("clear.png", "photo.png", "a.png", 1, "CONTENT clear.png: has transparent"),
        ("photo.png", "deep.png", "a.png", 1, "--style deep.png: has more than 8 bits"),
        ("narrow.png", "photo.png", "a.png", 1, "CONTENT narrow.png: is 20 x 40"),
        ("photo.png", "photo.png", "a.jpg", 2, "--out a.jpg"),
    ],
)
def test_command__what_it_cannot_take_is_one_line(files, capsys, content, style, out, code, named) -> None:
    assert run(content, "--style", style, "--out", out) == code
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (files / out).exists()


def test_pretrained_cnn__needs_maps_of_several_sizes(monkeypatch) -> None:
    vit = Backbone("vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2)
    monkeypatch.setattr(stylizing, "create_backbone", lambda name, pretrained: (vit, {}))
    with pytest.raises(UserError, match=r"--backbone vit_tiny_patch16_224: has no feature maps of several sizes"):
        stylizing.pretrained_cnn("vit_tiny_patch16_224")
