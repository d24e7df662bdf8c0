"""A server of a small model, without a socket."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy_dense import make_detector, make_segmenter, write_pictures
from toy_models import make_classifier, write_images, write_run

pytest.importorskip("starlette", reason="pip install 'lit-vision[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'lit-vision[serve]'")

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Return a folder with runs of several tasks and images for them."""
    folder = tmp_path_factory.mktemp("served")
    made = {"vit": make_classifier(), "cnn": make_classifier("cnn"), "fcos": make_detector()}
    for name, method in (made | {"masks": make_detector("mask_rcnn"), "segmenter": make_segmenter()}).items():
        write_run(folder / name, method)
    write_images(folder / "images", 6)
    write_pictures(folder / "pictures", 4)
    return folder


@pytest.fixture(scope="session")
def serve(place) -> Callable[..., contextlib.AbstractContextManager]:
    """Return a context manager that starts the app of a model and yields a client of it.

    Arguments: the model's name in `place`, or a path; `limits` and `access` as the classes take them; others of
    Predictor; `index_root`.
    """
    from starlette.testclient import TestClient

    from lit_vision.predict.models import load_model
    from lit_vision.serve.access import Access
    from lit_vision.serve.guard import Limits
    from lit_vision.serve.model_app import ModelApp
    from lit_vision.serve.predictor import Predictor

    @contextlib.contextmanager
    def start(model: str | Path, limits=None, access=None, index_root=None, **more) -> Iterator[TestClient]:
        bounds = Limits(**(limits or {}))
        with Predictor(load_model(place / model, "cpu"), max_pixels=bounds.pixels, readers=1, **more) as predictor:
            app = ModelApp(predictor, bounds, index_root)
            granted = Access(**(access or {}))
            with TestClient(app.app(granted), base_url=ADDRESS) as client:
                client.model_app, client.access = app, granted
                yield client

    return start


@pytest.fixture(scope="session")
def client(serve):
    """Return a client of a classifier, for tests that leave no trace in the server."""
    with serve("vit") as made:
        yield made


@pytest.fixture(scope="session")
def upload(place) -> dict[str, bytes]:
    """Return one image as a form's file."""
    return {"image": (place / "images/red/000.png").read_bytes()}
