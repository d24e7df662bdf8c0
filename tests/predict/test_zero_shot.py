"""Zero-shot and search by words against the network: commands and Python, prompt ensembles, refused input."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy_models
from PIL import Image
from safetensors.torch import save_file

import lit_vision
from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.predict.search import read_index
from lit_vision.predict.zero_shot import class_vectors, load_image_text

CLASSES, TEMPLATES = ["red hat", "green shoe", "gray bag"], ["a photo of a {}.", "the {}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run of ImageText with random weights, four images, the names of three classes and two templates."""
    place = tmp_path_factory.mktemp("zero-shot")
    toy_models.write_image_text_run(place / "run", [f"a photo of a {name}." for name in CLASSES])
    toy_models.write_run(place / "classifier", toy_models.make_classifier())
    rng = np.random.default_rng(0)
    (place / "set").mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"set/{i}.png")
    (place / "classes.txt").write_text("\n".join(CLASSES) + "\n\n")
    (place / "templates.txt").write_text("\n".join(TEMPLATES))
    return place


def test_class_vectors__mean_of_unit_vectors_normalized_again() -> None:
    vectors = {"a x": [3.0, 0.0], "x b": [0.0, 5.0], "a y": [-2.0, 0.0], "y b": [0.0, 0.1]}
    found = class_vectors(lambda texts: torch.tensor([vectors[text] for text in texts]), ["x", "y"], ["a {}", "{} b"])
    half = math.sqrt(0.5)
    torch.testing.assert_close(found, torch.tensor([[half, half], [-half, half]]))


def test_the_command_gives_the_networks_probabilities_and_python_the_same(place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    command = ["predict", "--model", "run", "set", "--classes", "classes.txt", "--template", "templates.txt"]
    assert main([*command, "--out", "p.csv", "--top_k", "3", "--device", "cpu", "--overwrite"]) == 0
    rows = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
    network, _, _ = load_image_text("run")
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(f"set/{i}.png"))) for i in range(4)])
    images = ((pixels / 255 - network.mean) / network.std).permute(0, 3, 1, 2)
    prompts = [[template.replace("{}", name) for template in TEMPLATES] for name in CLASSES]
    vectors = torch.stack([F.normalize(network.encode_texts(several).mean(0), dim=0) for several in prompts])
    expected = (network.similarity.scale * network(images) @ vectors.T).softmax(1)
    assert [Path(row["path"]).name for row in rows] == [f"{i}.png" for i in range(4)]
    for row, probabilities in zip(rows, expected):
        best = probabilities.argsort(descending=True).tolist()
        assert [row["label"], row["label_2"], row["label_3"]] == [CLASSES[i] for i in best]
        assert float(row["score"]) == pytest.approx(float(probabilities.max()), abs=2e-6)
    model = lit_vision.load("run", "cpu")
    found = model.predict("set", classes=CLASSES, templates=TEMPLATES)
    assert [f"{one.probabilities[0]:.6f}" for one in found] == [row["score"] for row in rows]
    other = model.predict("set", classes=CLASSES[::-1])  # another order and template, not those kept
    assert set(other[0].classes) == set(CLASSES)
    assert other[0].probabilities[0] != found[0].probabilities[0]


def test_search_by_words__is_the_sorted_list_of_all_cosines(place: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("faiss", reason="needs the search extra")
    monkeypatch.chdir(place)
    assert main(["embed", "set", "--model", "run", "--out", "i.safetensors", "--device", "cpu"]) == 0
    index = read_index("i.safetensors")
    assert index.feature_settings["space"] == "images and texts"
    network, _, _ = load_image_text("run")
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(f"set/{i}.png"))) for i in range(4)])
    images = network(((pixels / 255 - network.mean) / network.std).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(index.features, images, atol=1e-6)  # unit vectors
    texts = ["red hat", "gray bag", "a photo of a green shoe."]
    Path("texts.txt").write_text("\ngray bag \na photo of a green shoe.\n")
    call = ["search", "--index", "i.safetensors", "--model", "run", "--device", "cpu"]
    asked = ["--text", "red hat", "--text_file", "texts.txt"]
    assert main([*call, *asked, "--out", "o.csv", "--top_k", "3", "--overwrite"]) == 0
    cosines = np.array([[float(text @ image) for image in images] for text in network.encode_texts(texts).numpy()])
    rows = list(csv.DictReader(Path("o.csv").read_text().splitlines()))
    expected = [(text, int(i)) for text, row in zip(texts, cosines) for i in np.argsort(-row)[:3]]
    assert [(row["query"], row["path"]) for row in rows] == [(text, f"{i}.png") for text, i in expected]
    wanted = [cosines[texts.index(text), i] for text, i in expected]
    np.testing.assert_allclose([float(row["score"]) for row in rows], wanted, atol=1e-4)
    assert "(gray bag)" in capsys.readouterr().out  # several texts: each answer names its own

    model = lit_vision.load("run", "cpu")
    np.testing.assert_array_equal(model.embed("set").features, index.features)
    np.testing.assert_allclose(model.embed("set").features @ model.embed_texts(texts).T, cosines.T, atol=1e-6)
    assert main([*call, "--query", "set/2.png", "--top_k", "1"]) == 0
    assert capsys.readouterr().out == "1.0000  2.png\n"


def test_search_by_words__refuses_other_spaces(place: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("faiss", reason="needs the search extra")
    monkeypatch.chdir(place)
    stored = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    stored["state_dict"]["text_projection.weight"] += 1  # the image tower stays, the texts move
    Path("other/checkpoints").mkdir(parents=True)
    torch.save(stored, "other/checkpoints/last.ckpt")
    for name, model, more in (
        ("space", "run", []),
        ("backbone", "run", ["--backbone_features"]),
        ("images", "classifier", []),
    ):
        command = ["embed", "set", "--model", model, "--out", f"{name}.safetensors", "--device", "cpu", *more]
        assert main([*command, "--overwrite"]) == 0
    assert "space" not in read_index("backbone.safetensors").feature_settings
    backbone = lit_vision.load("run", "cpu", backbone_features=True)
    np.testing.assert_array_equal(backbone.embed("set").features, read_index("backbone.safetensors").features)
    with pytest.raises(UserError, match="has no words"):
        backbone.embed_texts(["hat"])
    with pytest.raises(UserError, match="none empty"):
        lit_vision.load("run", "cpu").embed_texts(["hat", " "])
    text = ["--text", "red hat"]
    for code, says, index, arguments in (
        (1, "not in the space of --model's texts", "space", ["--model", "other", *text]),
        (1, "another model", "space", ["--model", "other", "--query", "set/0.png"]),
        (1, "not in the space of --model's texts", "backbone", ["--model", "run", *text]),
        (0, "", "backbone", ["--model", "run", "--query", "set/0.png"]),
        (1, "not in the space of --model's texts", "images", ["--model", "run", *text]),
        (1, "classifier/checkpoints/", "images", ["--model", "classifier", *text]),
        (1, "--text: give one text or more", "space", ["--model", "run", "--text", " "]),
        (1, "--text: is not Unicode text", "space", ["--model", "run", "--text", os.fsdecode(b"hat \xff")]),
        (2, "--text needs --model", "space", text),
        (2, "give one of --query", "space", ["--model", "run", *text, "--query", "set/0.png"]),
        (2, "give one of --query", "space", [*text, "--duplicates", "0.5"]),
    ):
        capsys.readouterr()
        assert main(["search", "--index", f"{index}.safetensors", "--device", "cpu", *arguments]) == code
        error = capsys.readouterr().err
        assert says in error
        assert len(error.splitlines()) == (code > 0)


def test_refused(place: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    Path("one.txt").write_text("hat\n")
    Path("twice.txt").write_text("hat\nshoe\nhat \n")
    Path("plain.txt").write_text("a photo\n")
    call = ["predict", "set", "--out", "no.csv", "--device", "cpu"]
    for code, says, arguments in (
        (1, "--classes one.txt", ["--model", "run", "--classes", "one.txt"]),
        (1, "--classes twice.txt: 'hat'", ["--model", "run", "--classes", "twice.txt"]),
        (1, "--template plain.txt", ["--model", "run", "--classes", "classes.txt", "--template", "plain.txt"]),
        (2, "--template", ["--model", "run", "--template", "templates.txt"]),
        (2, "--base", ["--model", "run", "--classes", "classes.txt", "--base", "x"]),
        (2, "--explain", ["--model", "run", "--classes", "classes.txt", "--explain", "maps"]),
        (
            1,
            "last.ckpt: was not trained on images with captions",
            ["--model", "classifier", "--classes", "classes.txt"],
        ),
        (1, "returns features", ["--model", "run"]),
    ):
        assert main([*call, *arguments]) == code
        assert says in capsys.readouterr().err
    with pytest.raises(UserError, match="classes"):
        lit_vision.load("run", "cpu").predict("set", classes="hat")
    with pytest.raises(UserError, match="classes: is not Unicode text"):
        lit_vision.load("run", "cpu").predict("set", classes=["hat", "\ud83d"])


@pytest.mark.slow
def test_a_model_of_open_clip_has_open_clips_probabilities(place: Path, tmp_path, monkeypatch, capsys) -> None:
    """Random weights in a file: zero-shot and embed against open_clip's own towers; what is refused."""
    open_clip = pytest.importorskip("open_clip")
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "toy-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "toy-clip.json")
    torch.manual_seed(0)
    theirs = open_clip.create_model("toy-clip").eval()
    save_file(theirs.state_dict(), tmp_path / "toy.safetensors")
    monkeypatch.chdir(place)
    name = f"open_clip:toy-clip/{tmp_path}/toy.safetensors"
    model = lit_vision.load(name, "cpu")
    pixels = [torch.from_numpy(np.array(Image.open(f"set/{i}.png"))).permute(2, 0, 1) / 255 for i in range(4)]
    mean, std = (torch.tensor(x)[:, None, None] for x in (theirs.visual.image_mean, theirs.visual.image_std))
    tokenizer = open_clip.get_tokenizer("toy-clip")
    with torch.no_grad():
        images = theirs.encode_image((torch.stack(pixels) - mean) / std, normalize=True)
        prompts = [theirs.encode_text(tokenizer([t.replace("{}", c) for t in TEMPLATES]), True) for c in CLASSES]
        vectors = F.normalize(torch.stack([several.mean(0) for several in prompts]), dim=1)
        expected = (theirs.logit_scale.exp() * images @ vectors.T).softmax(1)
    found = model.predict("set", classes=CLASSES, templates=TEMPLATES, top_k=3)
    for one, probabilities in zip(found, expected):
        np.testing.assert_allclose(one.probabilities, probabilities[list(one.labels)], atol=1e-5)
    np.testing.assert_allclose(model.embed("set").features, images, atol=1e-5)
    with torch.no_grad():
        texts = theirs.encode_text(tokenizer(CLASSES), normalize=True)
    np.testing.assert_allclose(model.embed_texts(CLASSES), texts, atol=1e-5)
    embed = ["embed", "set", "--model", name, "--out", "clip.safetensors", "--device", "cpu"]
    assert main([*embed, "--backbone_features"]) == 2
    assert main(embed) == 0
    assert main(["search", "--index", "clip.safetensors", "--model", name, "--text", "hat", "--device", "cpu"]) == 0
    call = ["predict", "set", "--classes", "classes.txt", "--out", "o.csv", "--overwrite", "--device", "cpu", "--model"]
    assert main([*call, name]) == 0
    export = ["export", name, "--classes", "classes.txt", "--template", "templates.txt", "--format", "onnx"]
    assert main(export) == 2  # there is no run's folder to write to
    assert main([*export, "--out", "toy.onnx"]) == 0
    for exported, one in zip(lit_vision.load("toy.onnx").predict("set", top_k=3), found):
        assert exported.classes == one.classes
        np.testing.assert_allclose(exported.probabilities, one.probabilities, atol=1e-4)
    (tmp_path / "broken.pt").write_bytes(b"broken")
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    for model_name, says in (
        ("open_clip:ViT-B-33/openai", "ViT-B-32"),
        ("open_clip:toy-clip/none", "neither a file nor weights"),
        (f"open_clip:toy-clip/{tmp_path}/broken.pt", "broken.pt: its weights cannot be read"),
        (f"open_clip:toy-clip/{tmp_path}/other.safetensors", "other.safetensors: its weights cannot be loaded"),
    ):
        assert main([*call, model_name]) == 1
        assert says in capsys.readouterr().err
