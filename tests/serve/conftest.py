"""A server of a small model, without a socket."""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toy_dense import make_detector, make_segmenter, write_pictures
from toy_models import make_classifier, write_image_text_run, write_images, write_run
from toy_restorer import write_restorer_run

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
    write_image_text_run(folder / "words", ["a red hat", "a green hat"])
    write_restorer_run(folder / "restorer")
    write_images(folder / "images", 6)
    write_pictures(folder / "pictures", 4)
    return folder


@pytest.fixture(scope="session")
def serve(place) -> Callable[..., contextlib.AbstractContextManager]:
    """Return a context manager that starts the app of a model and yields a client of it.

    Arguments: the model's name in `place`, a path, or a Model; `limits` and `access` as the classes take them; others
    of Predictor; `index_root`.
    """
    from starlette.testclient import TestClient

    from lit_vision.predict.models import load_model
    from lit_vision.predict.runtimes import Model
    from lit_vision.serve.access import Access
    from lit_vision.serve.guard import Limits
    from lit_vision.serve.model_app import ModelApp
    from lit_vision.serve.predictor import Predictor
    from lit_vision.serve.text_search import TextSearch

    @contextlib.contextmanager
    def start(model: str | Path | Model, limits=None, access=None, index_root=None, **more) -> Iterator[TestClient]:
        bounds, index = Limits(**(limits or {})), more.get("index")
        if not isinstance(model, Model):
            model = load_model(place / model, "cpu", shared_space=index is not None and index.in_shared_space)
        with contextlib.ExitStack() as stack:
            predictor = stack.enter_context(Predictor(model, max_pixels=bounds.pixels, readers=1, **more))
            words = None
            if index is not None and model.encode_texts is not None:
                words = stack.enter_context(TextSearch(model, index.names, predictor.neighbors))
            app = ModelApp(predictor, bounds, index_root, words)
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


@pytest.fixture(scope="module")
def browser():
    """Return the system's Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-pages installs Playwright")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens a page; at the end, nothing may have failed or come from elsewhere."""
    opened, failures = [], []

    def start(address: str, path: str = "/", expected: str = "no failure", ready: bool = True, **context):
        made = browser.new_context(**context)
        opened.append(made)

        def note(text: str) -> None:
            if expected not in text:
                failures.append(text)

        made.on("console", lambda message: note(message.text) if message.type in ("error", "warning") else None)
        made.on("weberror", lambda error: failures.append(str(error.error)))
        made.on("dialog", lambda dialog: failures.append("a dialog: a script of others ran"))
        made.on("request", lambda r: None if r.url.startswith((address, "blob:", "data:")) else failures.append(r.url))
        page = made.new_page()
        page.goto(address + path)
        if ready:
            page.wait_for_selector("body[data-ready]", state="attached")
        return page

    yield start
    for made in opened:
        made.close()
    assert failures == []


@pytest.fixture(scope="session")
def listening() -> Callable[..., contextlib.AbstractContextManager]:
    """Return a context manager that runs an app on a free port and yields its address."""
    from lit_vision.serve.run_server import listen, make_server

    @contextlib.contextmanager
    def start(app) -> Iterator[str]:
        server, listener = make_server(app), listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    return start
