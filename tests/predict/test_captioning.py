"""Captions from a run: the command, Python, the API and its export agree; a decoder that lost is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_models
from PIL import Image

import lit_vision
from lit_vision.cli.main import main
from lit_vision.errors import UsageError, UserError
from lit_vision.predict.models import _WithoutRandomValues, load_method, load_model
from lit_vision.predict.runtimes import Model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Runs whose decoder won, lost, drew and was not measured; a classifier; three images."""
    place = tmp_path_factory.mktemp("captions")
    for name, decoder in (("won", 0.75), ("lost", 0.25), ("drew", 0.5), ("unknown", None)):
        toy_models.write_captioner_run(place / name, decoder)
    toy_models.write_run(place / "classifier", toy_models.make_classifier())
    (place / "set").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"set/{i}.png")
    return place


def test_the_command_python_the_api_and_an_export_give_the_networks_captions(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    command = ["predict", "set", "--device", "cpu", "--overwrite"]
    assert main([*command, "--model", "won", "--out", "p.csv"]) == 0
    rows = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
    network, _ = load_method(Path("won/checkpoints/last.ckpt"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(f"set/{i}.png"))) for i in range(3)])
    tokens, log_p = network.caption(((pixels / 255 - network.mean) / network.std).permute(0, 3, 1, 2))
    texts = network.tokenizer.decode(tokens)  # of random weights: control characters too
    texts = [" ".join("".join(c if c.isprintable() else " " for c in text).split()) for text in texts]
    assert [row["caption"] for row in rows] == texts
    assert len(set(texts)) > 1
    assert [float(row["log_probability"]) for row in rows] == pytest.approx(log_p.tolist(), abs=2e-6)

    found = lit_vision.load("won", "cpu").predict("set")
    assert [one.text for one in found] == texts
    assert [one.log_probability for one in found] == pytest.approx(log_p.tolist(), abs=1e-5)
    assert main(["export", "won", "--format", "safetensors", "--out", "e.safetensors"]) == 0
    assert main([*command, "--model", "e.safetensors", "--out", "e.csv"]) == 0
    assert Path("e.csv").read_text() == Path("p.csv").read_text()
    assert main([*command, "--model", "won", "--out", "p.jsonl"]) == 0
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert [(line["path"], line["caption"]) for line in lines] == [(row["path"], row["caption"]) for row in rows]


def test_a_network_is_built_whatever_the_memory_held_before() -> None:
    with _WithoutRandomValues():  # once without an end: torch draws again until all values are in range
        weight = torch.nn.init.trunc_normal_(torch.full((3, 4), 1e9))
    assert float(weight.abs().max()) <= 2


def one_error(command: list[str], capsys) -> str:
    """Return the one line of a command that fails."""
    assert main(command) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_decoder_that_does_not_beat_the_nearest_images_caption_is_refused(place: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    command = ["predict", "set", "--device", "cpu", "--overwrite", "--out", "q.csv"]
    for name, says in (("lost", "0.250"), ("drew", "0.500"), ("unknown", "no validation")):
        message = one_error([*command, "--model", name], capsys)
        assert says in message
        assert "--captions decoder" in message
        assert name == "unknown" or "nearest training image's caption has 0.500" in message
        with pytest.raises(UserError, match="--captions decoder"):
            lit_vision.load(name, "cpu").predict("set")
        assert not Path("q.csv").exists()
        assert len(lit_vision.load(name, "cpu").predict("set/0.png", captions="decoder")) == 1
    assert main([*command, "--model", "lost", "--captions", "decoder"]) == 0
    assert len(Path("q.csv").read_text().splitlines()) == 4


def test_errors(place: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    command = ["predict", "set", "--device", "cpu", "--overwrite", "--out", "r.csv"]
    assert "--captions" in one_error([*command, "--model", "classifier", "--captions", "decoder"], capsys)
    assert "--top_k" in one_error([*command, "--model", "won", "--top_k", "2"], capsys)
    assert "nothing" in one_error([*command, "--model", "won", "--captions", "nothing"], capsys)
    assert "csv, jsonl" in one_error([*command[:-1], "r.json", "--model", "won"], capsys)
    assert "--format onnx" in one_error(["export", "won", "--format", "onnx", "--out", "e.onnx"], capsys)
    assert "captioning" in one_error(["embed", "set", "--model", "won", "--out", "i.safetensors"], capsys)
    with pytest.raises(UsageError, match="captions"):
        lit_vision.load("won", "cpu").predict("set", captions="nothing")


def test_the_api_refuses_the_decoder_at_its_start_and_answers_with_captions(place: Path) -> None:
    pytest.importorskip("starlette", reason="pip install 'lit-vision[serve]'")
    from lit_vision.serve.predictor import Predictor, Wanted
    from lit_vision.serve.uploads import Upload

    def model(name: str) -> Model:
        return load_model(place / name, "cpu")

    with pytest.raises(UserError, match=r"0\.250.*0\.500.*--captions decoder"):
        Predictor(model("lost"), max_pixels=10**6)
    with pytest.raises(UsageError, match="--captions"):
        Predictor(model("classifier"), max_pixels=10**6, captions="decoder")
    expected = lit_vision.load(place / "won", "cpu").predict(str(place / "set/0.png"))[0]
    data = (place / "set/0.png").read_bytes()
    for name, captions in (("won", None), ("lost", "decoder")):  # the same weights
        with Predictor(model(name), max_pixels=10**6, captions=captions, readers=1) as predictor:
            answer = predictor.submit(Upload("0.png", data), Wanted()).result(30)
        assert (answer["path"], answer["caption"]) == ("0.png", expected.text)
