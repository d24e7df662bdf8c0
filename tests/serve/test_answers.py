"""Answers of the API are what predict and embed write, for every task and every kind of upload."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_vision.cli.main import main
from lit_vision.predict.search import read_index
from lit_vision.predict.zero_shot import open_zero_shot, read_prompts

MODELS = {"vit": "images", "cnn": "images", "fcos": "pictures", "masks": "pictures", "segmenter": "pictures"}
# what an answer includes: the flag of predict that writes it to a folder
PICTURES = {"why": "explain", "mask": "masks", "drawing": "draw"}


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def form(paths: list[Path]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (path.name, path.read_bytes())) for path in paths]


@pytest.mark.parametrize("model", MODELS)
def test_answers_are_the_lines_of_predict(serve, place, tmp_path, model) -> None:
    folder = place / MODELS[model]
    with serve(model, max_batch=1) as client:
        include = [name for name in client.get("/v1/model").json()["include"] if name in PICTURES]
        answers = [
            client.post("/v1/predict", params={"include": ",".join(include)}, files=form([path])).json()["results"][0]
            for path in files_of(folder)
        ]
        several = client.post("/v1/predict", files=form(files_of(folder))).json()["results"]
    out = ["--out", str(tmp_path / "p.jsonl"), "--batch_size", "1", "--device", "cpu"]
    flags = [part for name in include for part in (f"--{PICTURES[name]}", str(tmp_path / name))]
    assert main(["predict", "--model", str(place / model), str(folder), *out, *flags]) == 0
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    for line, answer, other in zip(lines, answers, several, strict=True):
        name = line["path"]
        for kind in include:
            assert base64.b64decode(answer.pop(kind)) == (tmp_path / kind / name).with_suffix(".png").read_bytes()
        assert answer == {**line, "path": Path(name).name} == other


def test_restored_images_are_those_of_restore(serve, place, tmp_path) -> None:
    path, more = place / "images/red/000.png", {"include": "restored,preview"}
    with serve("restorer") as client:
        assert client.get("/v1/model").json()["include"] == ["restored", "preview"]
        (answer,) = client.post("/v1/predict", params=more, files=form([path])).json()["results"]
        assert "include=restored" in client.post("/v1/predict", files=form([path])).json()["error"]
        large = np.zeros((2001, 2001), np.uint8)
        Image.fromarray(large).save(tmp_path / "large.png")
        refused = client.post("/v1/predict", params=more, files=form([tmp_path / "large.png"]))
        assert "4 megapixels" in refused.json()["results"][0]["error"]
    assert main(["restore", "--model", str(place / "restorer"), str(path), "--out", str(tmp_path / "out")]) == 0
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["restored"]))))
    assert np.array_equal(found, np.asarray(Image.open(tmp_path / "out/000.png")))
    assert (answer["path"], answer["height"], answer["width"]) == ("000.png", *found.shape[:2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_exports_answer_with_their_runtime(serve, place, tmp_path, kind) -> None:
    pytest.importorskip("onnxruntime" if kind == "onnx" else "openvino")
    model = tmp_path / ("model.onnx" if kind == "onnx" else "model.xml")
    assert main(["export", str(place / "vit"), "--format", kind, "--out", str(model)]) == 0
    out = ["--out", str(tmp_path / "p.jsonl"), "--batch_size", "1"]
    assert main(["predict", "--model", str(model), str(place / "images"), *out]) == 0
    with serve(model, max_batch=1) as client:
        assert client.get("/v1/model").json()["runtime"] == kind
        answers = client.post("/v1/predict", files=form(files_of(place / "images"))).json()["results"]
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [answer["predictions"] for answer in answers] == [line["predictions"] for line in lines]


def test_what_is_included_follows_from_the_task(serve) -> None:
    for model, wanted in {"vit": {"why"}, "fcos": {"drawing"}, "segmenter": {"mask", "drawing"}}.items():
        with serve(model) as client:
            assert set(client.get("/v1/model").json()["include"]) == wanted | {"preview"}


def test_options_are_those_of_predict(client, upload) -> None:
    top = client.post("/v1/predict", params={"top_k": 1}, files=upload).json()["results"][0]
    assert len(top["predictions"]) == 1
    for query, key in ({"top_k": 0}, "top_k"), ({"top_k": "x"}, "top_k"), ({"min_score": 0.5}, "min_score"):
        answer = client.post("/v1/predict", params=query, files=upload)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(key)
    assert client.post("/v1/predict", params={"include": "masks"}, files=upload).status_code == 400
    assert client.post("/v1/predict", params={"include": "neighbors"}, files=upload).status_code == 400


def test_json_and_forms_give_the_same(client, place, upload) -> None:
    text = base64.b64encode(upload["image"]).decode()
    body = {"images": [{"name": "image", "data": text}, text]}
    one, two = client.post("/v1/predict", json=body).json()["results"]
    assert [one] == client.post("/v1/predict", files={"x": ("image", upload["image"])}).json()["results"]
    assert two == {**one, "path": ""}


def test_an_image_that_cannot_be_read_has_an_error_and_leaves_the_others(client, place, upload) -> None:
    good = ("good.png", upload["image"])
    answer = client.post("/v1/predict", files=[("a", ("bad.png", b"no image")), ("b", good)])
    assert answer.status_code == 200
    bad, fine = answer.json()["results"]
    assert set(bad) == {"path", "error"}
    assert fine["path"] == "good.png"
    assert "predictions" in fine
    alone = client.post("/v1/predict", files={"a": ("bad.png", b"no image")})
    assert alone.status_code == 422
    assert "error" in alone.json()["results"][0]


def test_features_and_neighbors_are_those_of_embed_and_search(serve, place, tmp_path) -> None:
    folder, index_file = place / "images", tmp_path / "index.safetensors"
    embed = ["embed", "--model", str(place / "cnn"), str(folder), "--out", str(index_file)]
    assert main([*embed, "--batch_size", "1", "--device", "cpu"]) == 0
    index = read_index(index_file)
    with serve("cnn", index=index, index_root=folder) as client:
        for row, name in enumerate(index.names):
            files = form([folder / name])
            features = client.post("/v1/embed", files=files).json()["results"][0]["features"]
            assert np.array_equal(np.float32(features), index.features[row])
            answer = client.post("/v1/predict", params={"include": "neighbors"}, files=files).json()["results"][0]
            assert answer["neighbors"][0] == {"number": row, "path": name, "score": 1.0}
            assert client.get(f"/v1/index/{row}").headers["content-type"] == "image/jpeg"


@pytest.fixture(scope="module")
def words_index(place, tmp_path_factory) -> Path:
    """Return the index of the images by the model of images and captions."""
    pytest.importorskip("faiss", reason="needs the search extra")
    out = tmp_path_factory.mktemp("words") / "index.safetensors"
    embed = ["embed", "--model", str(place / "words"), str(place / "images"), "--out", str(out), "--device", "cpu"]
    assert main(embed) == 0
    return out


def test_words_find_what_the_search_command_finds(serve, place, words_index, tmp_path) -> None:
    call = ["search", "--index", str(words_index), "--model", str(place / "words"), "--device", "cpu"]
    assert main([*call, "--text", "a red hat", "--out", str(tmp_path / "o.csv")]) == 0
    rows = [line.split(",") for line in (tmp_path / "o.csv").read_text().splitlines()[1:]]
    with serve("words", index=read_index(words_index), index_root=place / "images") as client:
        described = client.get("/v1/model").json()
        assert (described["searches"], described["indexed"], described["predicts"]) == (True, 6, False)
        found = client.get("/v1/search", params={"text": " a  red hat "}).json()["results"]
        assert [[one["path"], f"{one['score']:.4f}"] for one in found] == [row[2:] for row in rows]
        assert client.get(f"/v1/index/{found[0]['number']}").headers["content-type"] == "image/jpeg"
        two = client.get("/v1/search", params={"text": "a red hat", "top_k": 2}).json()["results"]
        assert two == found[:2]
        assert client.get("/v1/search", params={"text": "\0<b>\u202e\U0001f600" * 99}).status_code == 200  # any text
        for query, key in (
            ({}, "text"),
            ({"text": " "}, "text"),
            ({"text": "x" * 1001}, "text"),
            ({"text": "x", "top_k": 0}, "top_k"),
            ({"text": "x", "top_k": 10**30}, "top_k"),
            ({"text": "x", "top_k": "x"}, "top_k"),
        ):
            answer = client.get("/v1/search", params=query)
            assert answer.status_code == 400
            assert answer.json()["error"].startswith(key)
        assert client.get("/v1/search?text=%ff%fe").status_code == 200  # not UTF-8
        client.model_app.waiting = 128
        assert client.get("/v1/search", params={"text": "x"}).status_code == 503


def test_served_classes_are_those_of_predict_and_other_spaces_are_refused(
    serve, place, words_index, tmp_path, capsys, upload
) -> None:
    (tmp_path / "classes.txt").write_text("red hat\ngreen hat\n")
    model, classes = str(place / "words"), ["--classes", str(tmp_path / "classes.txt")]
    predict = ["predict", "--model", model, str(place / "images/red/000.png"), "--device", "cpu", *classes]
    assert main([*predict, "--out", str(tmp_path / "p.jsonl")]) == 0
    served = open_zero_shot(model, *read_prompts(tmp_path / "classes.txt"), device="cpu")
    with serve(served, index=read_index(words_index)) as client:
        (answer,) = client.post("/v1/predict", files=upload).json()["results"]
        assert answer["predictions"] == json.loads((tmp_path / "p.jsonl").read_text())["predictions"]
        assert len(client.get("/v1/search", params={"text": "hat"}).json()["results"]) == 6
    with serve("vit") as client:
        assert client.get("/v1/search", params={"text": "hat"}).status_code == 404
    other = tmp_path / "other.safetensors"
    embed = ["embed", str(place / "images"), "--out", str(other), "--device", "cpu", "--overwrite", "--model"]
    for maker, arguments in (
        ([str(place / "cnn")], [model]),
        ([str(place / "cnn")], [model, *classes]),
        ([model, "--backbone_features"], [model, *classes]),
        ([model], [str(place / "cnn")]),
    ):
        assert main([*embed, *maker]) == 0
        capsys.readouterr()
        assert main(["serve", *arguments, "--index", str(other), "--device", "cpu"]) == 1
        assert f"--index {other}: its features are of another model" in capsys.readouterr().err


def test_a_model_of_features_embeds_and_does_not_predict(serve, upload) -> None:
    model = Path(__file__).parents[1] / "compatibility/files/exports/simclr.onnx"
    with serve(model) as client:
        assert client.get("/v1/model").json()["runtime"] == "onnx"
        assert client.post("/v1/predict", files=upload).status_code == 404
        assert len(client.post("/v1/embed", files=upload).json()["results"][0]["features"]) > 0
    with serve("fcos") as client:
        assert client.post("/v1/embed", files=upload).status_code == 404


def test_a_preview_is_the_upright_image(client) -> None:
    import io

    from PIL import Image

    picture = Image.fromarray(np.full((10, 2000, 3), 90, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    answer = client.post("/v1/predict", params={"include": "preview"}, files={"a": file.getvalue()}).json()
    shown = Image.open(io.BytesIO(base64.b64decode(answer["results"][0]["preview"])))
    assert shown.size == (5, 1024)


def test_metrics_count_requests_and_batches(serve, upload) -> None:
    with serve("vit") as client:
        client.post("/v1/predict", files=upload)
        client.get("/nonsense")
        text = client.get("/metrics").text
    assert 'lit_vision_requests_total{path="/v1/predict",status="200"} 1.0' in text
    assert 'lit_vision_requests_total{path="other",status="404"} 1.0' in text
    assert "lit_vision_batch_images_count 1.0" in text
    assert "lit_vision_waiting_images 0.0" in text
    assert "nonsense" not in text
