"""The page and API of a generator: the bits of lit-vision generate, and bounds of every value."""

import threading
from pathlib import Path

import pytest
import torch

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("starlette", reason="pip install 'lit-vision[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'lit-vision[serve]'")

from starlette.testclient import TestClient  # noqa: E402

from lit_vision import methods  # noqa: E402
from lit_vision.cli.main import main  # noqa: E402
from lit_vision.predict.generate import LARGEST_SEED, MICRO_BATCH, generate_images, load_generator  # noqa: E402
from lit_vision.serve import run_server  # noqa: E402
from lit_vision.serve.access import Access  # noqa: E402
from lit_vision.serve.generator_app import MOST_IMAGES, MOST_STEPS, GeneratorApp  # noqa: E402
from lit_vision.serve.guard import HEADERS, Limits  # noqa: E402

ADDRESS = "http://127.0.0.1:8000"
SIZES = {"img_size": 8, "channels": 1, "width": 8, "multipliers": (1, 2), "patch_size": 2}
MAKE = {
    "flow": lambda: methods.FlowMatching(**SIZES, num_classes=3, blocks=1),
    "gan": lambda: methods.GAN(**SIZES, num_classes=0, noise_width=4, discriminator_width=8),
}
NAMES = ["bag", "coat", "dress"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs with random weights: flow matching of three classes, a GAN without classes."""
    place = tmp_path_factory.mktemp("generators")
    for name, make in MAKE.items():
        torch.manual_seed(0)
        module = make()
        for p in module.parameters():  # layers that begin at zero too
            torch.nn.init.normal_(p, std=0.3)
        content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        (place / name / "checkpoints").mkdir(parents=True)
        card = {"class_names": NAMES if module.num_classes else []}
        torch.save({**content, "card": card}, place / name / "checkpoints/last.ckpt")
    return place


@pytest.fixture(scope="module")
def clients(runs):
    """Return clients of both, by name."""
    apps = {name: GeneratorApp(*load_generator(runs / name, "cpu"), Limits()) for name in MAKE}
    made = {}
    for name, app in apps.items():
        made[name] = TestClient(app.app(Access()), base_url=ADDRESS)
        made[name].generator_app = app
    yield made
    for app in apps.values():
        app.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("name", "query", "num", "options"),
    [
        ("flow", {"steps": 2, "seed": 5, "num": 12}, 12, {"steps": 2, "seed": 5}),
        ("flow", {"steps": 2, "seed": LARGEST_SEED, "num": 1, "class": "dress"}, 1, {"steps": 2, "seed": LARGEST_SEED}),
        ("gan", {}, 64, {}),
    ],
)
def test_the_picture_is_the_grid_that_generate_writes(name, query, num, options, runs, clients, tmp_path) -> None:
    classes = [query["class"]] if "class" in query else None
    generate_images(runs / name, tmp_path / "o", num, classes=classes, grid=tmp_path / "g.png", device="cpu", **options)
    answer = clients[name].get("/v1/generate", params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content == (tmp_path / "g.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "query"),
    [
        *(("flow", {"seed": value}) for value in ("-1", str(LARGEST_SEED + 1), "9" * 5000, "x", "", "1.5", "nan")),
        *(("flow", {"num": value}) for value in ("0", str(MOST_IMAGES + 1), "-1", "x\ny", "1e1")),
        *(("flow", {"steps": value}) for value in ("0", str(MOST_STEPS + 1), "x")),
        *(("flow", {"class": value}) for value in ("hat", "", "1", "x\n" * 2000)),
        ("gan", {"steps": "3"}),
        ("gan", {"class": "bag"}),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line(name, query, clients) -> None:
    answer = clients[name].get("/v1/generate", params=query)
    assert answer.status_code == 400
    message = answer.json()["error"]
    assert message.startswith(f"{next(iter(query))}: ")
    assert "\n" not in message
    assert len(message) < 200


def test_the_guard_stands_before_it(runs, clients) -> None:
    assert clients["gan"].get("/v1/generate", headers={"Host": "evil.example"}).status_code == 403
    assert clients["gan"].get("/v1/generate", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    access = Access(require_token=True)
    closed = TestClient(clients["gan"].generator_app.app(access), base_url=ADDRESS)
    for path in ("/v1/generate", "/v1/model", "/metrics"):
        assert closed.get(path).status_code == 401
        answer = closed.get(path, headers={"Authorization": f"Bearer {access.token}"})
        assert answer.status_code == 200
        assert dict(HEADERS) == {name: answer.headers[name] for name in HEADERS}
    assert closed.get("/").status_code == closed.get("/static/generate.js").status_code == 200


def test_a_generation_blocks_no_other_answer_and_a_long_queue_is_refused(runs, monkeypatch) -> None:
    network, names, path = load_generator(runs / "gan", "cpu")
    begun, go_on, answers = threading.Event(), threading.Event(), []
    sample = network.sample

    def wait_and_sample(*arguments, **options):
        begun.set()
        assert go_on.wait(60)
        return sample(*arguments, **options)

    monkeypatch.setattr(network, "sample", wait_and_sample)
    with (
        GeneratorApp(network, names, path, Limits(queued_images=1)) as app,
        TestClient(app.app(Access()), base_url=ADDRESS) as client,  # one event loop for all requests
    ):
        first = threading.Thread(target=lambda: answers.append(client.get("/v1/generate").status_code))
        first.start()
        try:
            assert begun.wait(60)
            assert client.get("/healthz").status_code == 200
            assert app.waiting == MICRO_BATCH
            assert client.get("/v1/generate").status_code == 503
        finally:
            go_on.set()
            first.join()
        assert answers == [200]
        monkeypatch.setattr(network, "sample", lambda *a, **o: torch.full((MICRO_BATCH, *network.shape), torch.nan))
        answer = client.get("/v1/generate")
        assert (answer.status_code, "not finite" in answer.json()["error"]) == (500, True)
        assert app.waiting == 0


def test_the_document_lists_every_call_and_bound(clients) -> None:
    document = clients["flow"].get("/openapi.json").json()
    routes = {route.path for route in clients["flow"].app.app.routes}
    assert set(document["paths"]) == routes - {"/", "/api", "/openapi.json", "/static/{name}", "/session"}
    given = {p["name"]: p["schema"] for p in document["paths"]["/v1/generate"]["get"]["parameters"]}
    bounds = {name: (schema["minimum"], schema["maximum"]) for name, schema in given.items() if name != "class"}
    assert bounds == {"seed": (0, LARGEST_SEED), "num": (1, MOST_IMAGES), "steps": (1, MOST_STEPS)}
    schema = {**document["components"]["schemas"]["Generator"], "components": document["components"]}
    for name, client in clients.items():
        described = client.get("/v1/model").json()
        jsonschema.validate(described, schema)
        assert described["classes"] == (NAMES if name == "flow" else [])
        assert described["steps"] == (25 if name == "flow" else None)


def test_the_command_takes_a_generator_and_no_flag_about_images_that_are_read(runs, monkeypatch, capsys) -> None:
    served = []

    def answer_once(app, access, listener, host) -> None:
        served.append(TestClient(app, base_url=ADDRESS).get("/v1/model").json())

    monkeypatch.setattr(run_server, "run_server", answer_once)
    assert main(["serve", str(runs / "flow"), "--port", "0", "--device", "cpu"]) == 0
    assert "FlowMatching, 3 classes" in capsys.readouterr().out
    assert served[0]["method"] == "FlowMatching"
    assert main(["serve", str(runs / "flow"), "--port", "0", "--captions", "auto"]) == 2
    error = capsys.readouterr().err
    assert "--captions" in error
    assert error.count("\n") == 1
    assert len(served) == 1
