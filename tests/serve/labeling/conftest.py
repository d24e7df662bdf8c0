"""A labeling of a few small images, without a socket."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install 'lit-vision[serve]'")

ADDRESS = "http://127.0.0.1:8000"
_IDS = itertools.count()


def tiny_encoder():
    import torch

    from lit_vision.backbones.backbone import Backbone
    from lit_vision.study.frozen_encoder import FrozenEncoder

    torch.manual_seed(0)
    backbone = Backbone("resnet18", stem="small", layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    return FrozenEncoder("tiny", backbone, torch.full((3,), 0.4), torch.full((3,), 0.3), 16, 1.0, "Apache-2.0")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return a folder of 20 images of 24 x 16 pixels, each of a gray value of its own."""
    root = tmp_path / "photos"
    for i in range(20):
        path = root / f"day{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 24, 3), 10 * i, np.uint8)).save(path)
    return root


@pytest.fixture
def label(photos, tmp_path) -> Callable[..., contextlib.AbstractContextManager]:
    """Return a context manager that starts a labeling of `photos` and yields a client of its API.

    Nothing runs in the background: a test calls `client.learner.learn()`, after setting `client.learner.features.rows`
    or calling `read_features`.
    """
    from starlette.testclient import TestClient

    from lit_vision.serve.access import Access
    from lit_vision.serve.labeling.app import LabelApp
    from lit_vision.serve.labeling.features import FeatureReader
    from lit_vision.serve.labeling.images import LabelImages
    from lit_vision.serve.labeling.learner import Learner
    from lit_vision.serve.labeling.session import Labeling
    from lit_vision.serve.labeling.store import LabelStore

    @contextlib.contextmanager
    def start(
        classes=("cat", "dog"), multiple=False, root=photos, access=None, strategy="auto"
    ) -> Iterator[TestClient]:
        images = LabelImages(root)
        with LabelStore(tmp_path / "store", images.root, multiple) as store:
            labeling = Labeling(images, store, "me", classes)
            cache = tmp_path / "store/features"
            features = FeatureReader(images, labeling.queue.order, tiny_encoder, cache, images.measure_pixels())
            learner = labeling.learner = Learner(labeling, features, strategy)
            app = LabelApp(labeling, learner).app(Access(**(access or {})))
            with TestClient(app, base_url=ADDRESS) as client:
                client.labeling, client.learner = labeling, learner
                client.lines = lambda: store.path.read_bytes().splitlines()
                yield client
            images.close()

    return start


@pytest.fixture
def answer() -> Callable:
    """Return a function that sends an answer and returns the response; a label unless a kind is given."""

    def send(client, number: int, *labels: str, kind="label", answer_id=None, replaces=None):
        made = answer_id or f"id-{next(_IDS)}"
        body = {"number": number, "kind": kind, "labels": list(labels), "id": made, "replaces": replaces}
        return client.post("/v1/label/answers", json=body)

    return send


@pytest.fixture
def read_features() -> Callable:
    """Return a function that reads the features of all images before it returns."""

    def read(client) -> None:
        client.learner.features.start()
        client.learner.features.wait()

    return read


@pytest.fixture
def many(tmp_path) -> Path:
    """Return a folder of 150 different images of 4 x 4 pixels."""
    root = tmp_path / "many"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(150):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(root / f"{i:03d}.png")
    return root
