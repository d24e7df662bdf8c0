"""Batches are made of what waits; nothing is lost, doubled or reordered; an image that fails fails alone."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from lit_vision.errors import UserError
from lit_vision.predict.models import load_model
from lit_vision.serve.batching import Batcher
from lit_vision.serve.predictor import Predictor, Wanted
from lit_vision.serve.uploads import Upload


def test_what_waits_becomes_one_batch() -> None:
    batches: list[list[int]] = []
    started, go = threading.Event(), threading.Event()

    def run(items: list[int]) -> None:
        batches.append(items)
        started.set()
        go.wait(10)

    with Batcher(run, max_batch=4, max_wait=0.0) as batcher:
        batcher.put(0)
        assert started.wait(10)
        for i in range(1, 8):  # while the worker is busy
            batcher.put(i)
        go.set()
    assert batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_a_batch_waits_for_what_is_on_the_way() -> None:
    batches: list[list[int]] = []
    coming, asked, done = iter([1, 0]), threading.Event(), threading.Event()

    def on_the_way() -> int:
        asked.set()
        return next(coming)

    def run(items: list[int]) -> None:
        batches.append(items)
        done.set()

    with Batcher(run, max_batch=4, max_wait=30.0, on_the_way=on_the_way) as batcher:
        batcher.put(0)
        assert asked.wait(10)
        batcher.put(1)
        assert done.wait(10)  # long before max_wait, since nothing else comes
    assert batches == [[0, 1]]


def test_the_end_waits_for_what_was_put(place, upload) -> None:
    with Predictor(load_model(place / "vit", "cpu"), max_pixels=10_000, readers=2, max_batch=3) as predictor:
        futures = [predictor.submit(Upload(str(i), upload["image"]), Wanted()) for i in range(20)]
    assert [future.result(0)["path"] for future in futures] == [str(i) for i in range(20)]


def test_an_image_that_fails_in_a_batch_fails_alone(place, upload, monkeypatch) -> None:
    """Outputs that are not finite, of one image, are not the others' fault."""
    import cv2

    model = load_model(place / "vit", "cpu")
    run = model._run

    def broken_for_black(images):
        outputs = run(images)
        outputs["logits"][images.amax((1, 2, 3)).numpy() < 0] = np.nan
        return outputs

    model._run = broken_for_black
    black = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    with Predictor(model, max_pixels=10_000, readers=1, max_wait=0.5) as predictor:
        sizes: list[int] = []
        predictor.observe_batch = sizes.append
        found: list[Future] = [predictor.submit(Upload("", data), Wanted()) for data in (upload["image"], black) * 2]
        assert "predictions" in found[0].result(20)
        assert "predictions" in found[2].result(20)
        for i in (1, 3):
            with pytest.raises(UserError, match="not finite"):
                found[i].result(20)
    assert max(sizes) > 1
