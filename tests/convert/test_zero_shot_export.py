"""export --classes: the image tower and the vectors of named classes as a classifier that needs no texts."""

from pathlib import Path

import numpy as np
import pytest
import toy_models

import lit_vision
from lit_vision.cli.main import main
from lit_vision.convert.export import FORMATS
from lit_vision.predict.models import load_model
from lit_vision.predict.zero_shot import load_image_text, open_zero_shot

CLASSES, TEMPLATES = ["red hat", "green shoe", "gray bag"], ["a photo of a {}.", "the {}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run of ImageText and one of a classifier, images, the names of three classes, two templates."""
    place = tmp_path_factory.mktemp("zero-shot-export")
    toy_models.write_image_text_run(place / "run", CLASSES)
    toy_models.write_run(place / "classifier", toy_models.make_classifier())
    toy_models.write_images(place / "set", 6)
    (place / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    (place / "templates.txt").write_text("\n".join(TEMPLATES))
    return place


NEEDS = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["onnx", "onnxscript", "openvino"], "pt2": []}


@pytest.mark.parametrize(
    "form", ["pt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "openvino"))]
)
def test_the_file_classifies_as_the_two_towers_do_and_holds_no_text_tower(
    form: str, place: Path, monkeypatch, capsys
) -> None:
    for package in (*NEEDS[form], "faiss"):
        pytest.importorskip(package, reason="needs the export and search extras")
    monkeypatch.chdir(place)
    call = ["export", "run", "--format", form, "--classes", "classes.txt", "--template", "templates.txt"]
    assert main(call) == 0
    assert "largest difference to torch: " in capsys.readouterr().out
    file = Path(f"run/export/zero-shot{FORMATS[form]}")
    model, wanted = load_model(file, trust_pt2=True), open_zero_shot("run", CLASSES, TEMPLATES, "cpu")
    assert model.metadata == wanted.metadata
    assert (model.metadata.class_names, model.metadata.options["templates"]) == (CLASSES, TEMPLATES)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    for n in (1, 5):
        for name, value in wanted(pixels[:n]).items():
            np.testing.assert_allclose(model(pixels[:n])[name], value, atol=1e-4)
    if form == "onnx":
        import onnx

        sizes = sum(int(np.prod(weight.dims)) for weight in onnx.load(file).graph.initializer)
        network, _, _ = load_image_text("run")
        tower = sum(value.numel() for value in network.backbone.state_dict().values())
        assert sizes < tower + network.image_projection.weight.numel() + len(CLASSES) * 8 + 200
    rows = [
        lit_vision.load(source, "cpu", trust_pt2=True).predict("set", top_k=3, **more)
        for source, more in ((file, {}), ("run", {"classes": CLASSES, "templates": TEMPLATES}))
    ]
    for found, one in zip(*rows):
        np.testing.assert_allclose(found.probabilities, one.probabilities, atol=1e-4)
    # its features are in the space of the run's texts: an index that it made can be searched by words
    embed = ["embed", "set", "--model", str(file), "--trust_pt2", "--out", "i.safetensors", "--overwrite"]
    assert main(embed) == 0
    assert main(["search", "--index", "i.safetensors", "--model", "run", "--text", "red hat", "--device", "cpu"]) == 0


def test_refused(place: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    Path("one.txt").write_text("hat\n")
    for code, says, arguments in (
        (2, "--classes: is for --format onnx", ["run", "--format", "safetensors", "--classes", "classes.txt"]),
        (2, "--classes: is for --format onnx", ["run", "--format", "hub", "--classes", "classes.txt"]),
        (2, "--template", ["run", "--format", "onnx", "--template", "templates.txt"]),
        (2, "--base", ["run", "--format", "onnx", "--classes", "classes.txt", "--base", "x"]),
        (2, "--classes", ["open_clip:ViT-B-32/openai", "--format", "onnx"]),
        (1, "--classes one.txt", ["run", "--format", "onnx", "--classes", "one.txt"]),
        (1, "last.ckpt: was not trained on", ["classifier", "--format", "onnx", "--classes", "classes.txt"]),
    ):
        assert main(["export", *arguments, "--overwrite"]) == code
        assert says in capsys.readouterr().err
    assert not list(place.glob("*/export/*.tmp*"))
