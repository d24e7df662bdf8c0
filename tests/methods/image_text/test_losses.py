"""CLIP's and SigLIP's losses in tiles against the papers' loops, the matrix, open_clip, closed forms; their memory."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_vision.methods.image_text import losses as module
from lit_vision.methods.image_text.losses import clip_loss, siglip_loss

Values = tuple[Tensor, list[Tensor]]  # a loss and its gradients


def softmax(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return clip_loss(images, texts, scale)


def dense_softmax(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    truth = torch.arange(len(logits))
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def dense_sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T + bias
    return -F.logsigmoid(logits * (2 * torch.eye(len(logits), dtype=logits.dtype) - 1)).sum() / len(logits)


LOSSES = {"softmax": (softmax, dense_softmax), "sigmoid": (siglip_loss, dense_sigmoid)}


def inputs(pairs: int, width: int, scale: float, bias: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Vectors of which those of a pair are alike, scale and bias, with gradients."""
    generator = torch.Generator().manual_seed(pairs)
    images, noise = (torch.randn(pairs, width, dtype=torch.float64, generator=generator) for _ in range(2))
    values = (images, images + 2 * noise, torch.tensor(scale), torch.tensor(bias))
    return [value.to(dtype).requires_grad_() for value in values]


@pytest.fixture(params=[(3, 5), (4, 4), (7, 2), (256, 1024)])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile sizes: some that do not divide the number of pairs, and the real ones."""
    monkeypatch.setattr(module, "_tile_size", lambda vectors: request.param)


def cosines(images: Tensor, texts: Tensor) -> list[list[float]]:
    rows, columns = images.tolist(), texts.tolist()
    return [[sum(a * b for a, b in zip(x, y)) / (math.hypot(*x) * math.hypot(*y)) for y in columns] for x in rows]


def test_clip__equals_the_papers_loop() -> None:
    images, texts, scale, _ = (x.detach() for x in inputs(5, 3, 7.0, 0.0))
    c, n, s = cosines(images, texts), 5, 7.0
    total = 0.0
    for i in range(n):
        total -= math.log(math.exp(s * c[i][i]) / sum(math.exp(s * c[i][j]) for j in range(n)))
        total -= math.log(math.exp(s * c[i][i]) / sum(math.exp(s * c[j][i]) for j in range(n)))
    assert clip_loss(images, texts, scale).item() == pytest.approx(total / (2 * n), abs=1e-12)


def test_siglip__equals_the_papers_loop() -> None:
    images, texts, scale, bias = (x.detach() for x in inputs(5, 3, 7.0, -4.0))
    c, n, total = cosines(images, texts), 5, 0.0
    for i in range(n):
        for j in range(n):
            z = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-z * (7.0 * c[i][j] - 4.0))))
    assert siglip_loss(images, texts, scale, bias).item() == pytest.approx(total / n, abs=1e-12)


@pytest.mark.parametrize("pairs", [1, 2, 300])
def test_clip__equal_similarities_have_closed_form(pairs: int) -> None:
    for scale in (math.exp(2.6593), 100.0):
        value = clip_loss(torch.ones(pairs, 4), torch.ones(pairs, 4), torch.tensor(scale))
        assert value.item() == pytest.approx(math.log(pairs), abs=1e-5)


@pytest.mark.parametrize(("pairs", "similar", "value"), [(8, 0.0, 10.00036), (1024, 0.0, 10.04649), (8, 1.0, 0.693465)])
def test_siglip__closed_forms_at_the_start(pairs: int, similar: float, value: float) -> None:
    """All similarities 0, and pairs of similarity 1 with all others 0, at scale 10 and bias -10."""
    images, texts = torch.eye(2 * pairs, dtype=torch.float64).chunk(2)
    texts = images if similar else texts
    got = siglip_loss(images, texts, torch.tensor(10.0), torch.tensor(-10.0))
    assert got.item() == pytest.approx(value, abs=6e-6)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])  # above 40 sums of exponentials are shifted
@pytest.mark.parametrize("loss", LOSSES)
def test_tiles_give_the_value_and_gradients_of_the_matrix(loss: str, scale: float) -> None:
    for pairs in (1, 6, 11):
        x = inputs(pairs, 5, scale, -3.0)
        ours, dense = (function(*x) for function in LOSSES[loss])
        torch.testing.assert_close(ours, dense)
        got = torch.autograd.grad(3 * ours, x, allow_unused=True)
        for value, reference in zip(got, torch.autograd.grad(3 * dense, x, allow_unused=True)):
            if reference is not None:
                torch.testing.assert_close(value, reference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [3.0, 50.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_tile_size", lambda vectors: (4, 3))
    x = inputs(5, 3, scale, -2.0)
    if loss == "sigmoid":
        assert torch.autograd.gradcheck(siglip_loss, x)
    else:
        assert torch.autograd.gradcheck(clip_loss, x[:3])


def open_clip_losses() -> ModuleType:
    """Return the file of open_clip's losses without the rest of it, which takes seconds to import."""
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip("open_clip is not installed: pip install open_clip_torch")
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(found.origin).with_name("loss.py"))
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("scale", [10.0, 95.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_those_of_open_clip(loss: str, scale: float) -> None:
    theirs = open_clip_losses()
    images, texts, s, b = x = inputs(300, 16, scale, -10.0, torch.float32)
    vectors = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    expected = theirs.SigLipLoss()(*vectors, s, b) if loss == "sigmoid" else theirs.ClipLoss()(*vectors, s)
    ours = LOSSES[loss][0](*x)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    got = torch.autograd.grad(ours, x, allow_unused=True)
    for value, reference in zip(got, torch.autograd.grad(expected, x, allow_unused=True)):
        if reference is not None:
            assert float((value - reference).norm()) <= 1e-6 * max(1.0, float(reference.norm()))


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss: str) -> None:
    half = inputs(40, 16, 14.3, -10.0, torch.bfloat16)
    wide = [x.detach().float().requires_grad_() for x in half]
    with torch.autocast("cpu", torch.bfloat16):
        value = LOSSES[loss][0](*half)
        value.backward()
    expected = LOSSES[loss][0](*wide)
    expected.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    for x, reference in zip(half, wide):
        assert reference.grad is None or torch.equal(x.grad, reference.grad.to(torch.bfloat16))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_is_larger_than_a_tile_or_the_vectors(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of all tensors that operations return, forward and backward: the full matrix would have 400 x 400."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                self.numbers = max(self.numbers, x.numel() if isinstance(x, Tensor) else 0)
            return out

    monkeypatch.setattr(module, "_tile_size", lambda vectors: (32, 64))
    for scale in (10.0, 60.0):
        x = inputs(400, 8, scale, -10.0, torch.float32)
        with Largest() as largest:
            LOSSES[loss][0](*x).backward()
        assert largest.numbers == 400 * 8


PEAK = """
import re, sys, threading, time, torch
from lit_vision.methods.image_text.losses import clip_loss, siglip_loss
torch.set_num_threads(1)

def resident():  # memory of this process that is no file's, in MB
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6

def step(pairs):
    images, texts = torch.randn(2, pairs, 512).unbind()
    scale, bias = torch.tensor(14.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    images.requires_grad_(), texts.requires_grad_()
    before, most, over = resident(), [0.0], threading.Event()
    def watch():
        while not over.wait(0.002):
            most[0] = max(most[0], resident())
    watcher = threading.Thread(target=watch)
    watcher.start()
    loss = clip_loss(images, texts, scale) if sys.argv[1] == "softmax" else siglip_loss(images, texts, scale, bias)
    loss.backward()
    over.set(), watcher.join()
    return most[0] - before

step(64)  # the libraries' own memory
print(step(8192))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("loss", LOSSES)
def test_memory_of_8192_pairs_is_within_200_mb_above_the_inputs(loss: str) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, loss], capture_output=True, text=True, check=True, timeout=600)
    assert 64 < float(done.stdout) < 200  # the gradients and unit vectors are 67 MB; the matrix alone would be 268


def test_errors() -> None:
    two, three, one = torch.ones(2, 3), torch.ones(3, 3), torch.tensor(1.0)
    with pytest.raises(ValueError, match="images and texts"):
        clip_loss(two, three, one)
    with pytest.raises(ValueError, match="scalars"):
        siglip_loss(two, two, one, torch.ones(2))
