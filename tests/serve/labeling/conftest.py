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
    """Return a context manager that starts a labeling of `photos` and yields a client of its API."""
    from starlette.testclient import TestClient

    from lit_vision.serve.access import Access
    from lit_vision.serve.labeling.app import LabelApp
    from lit_vision.serve.labeling.images import LabelImages
    from lit_vision.serve.labeling.session import Labeling
    from lit_vision.serve.labeling.store import LabelStore

    @contextlib.contextmanager
    def start(classes=("cat", "dog"), multiple=False, root=photos, access=None) -> Iterator[TestClient]:
        images = LabelImages(root)
        with LabelStore(tmp_path / "store", images.root, multiple) as store:
            labeling = Labeling(images, store, "me", classes)
            with TestClient(LabelApp(labeling).app(Access(**(access or {}))), base_url=ADDRESS) as client:
                client.labeling, client.lines = labeling, lambda: store.path.read_bytes().splitlines()
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
