"""export: every format gives torch's outputs and carries its card; a wrong one is refused and nothing is lost."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from toy_models import NAMES, make_classifier, write_images, write_run

from lit_vision.cli.main import main
from lit_vision.convert import export as exporting
from lit_vision.convert.quantize import require_packages
from lit_vision.errors import UserError
from lit_vision.predict.inputs import batches, find_images
from lit_vision.predict.models import load_model
from lit_vision.predict.tasks import preprocess_for
from lit_vision.weights.load import load_into, save_backbone
from lit_vision.weights.model_metadata import METADATA_KEY

NEEDS = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["onnx", "onnxscript", "openvino"]}


def need(form: str) -> None:
    for name in NEEDS.get(form, []):
        pytest.importorskip(name, reason="needs the export extra")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A ViT's and a CNN's run, a ViT with LoRA and one with prompts, and images."""
    folder = tmp_path_factory.mktemp("export")
    write_run(folder / "vit", make_classifier())
    write_run(folder / "cnn", make_classifier("cnn"))
    write_images(folder / "images")
    for tune in ("lora", "prompt-deep"):
        method = make_classifier(tune=tune, prompt_length=2)
        with torch.no_grad():
            for p in method.backbone.parameters():
                if p.requires_grad:
                    p.normal_(std=0.3)
        write_run(folder / tune, method)
    return folder


def agree(root: Path, run: str, form: str, *more: str) -> Path:
    """Exports, and compares through the model that predict would load."""
    need(form)
    out = root / f"{run}-{form}{exporting.FORMATS[form]}"
    assert (
        main(["export", str(root / run), "--format", form, "--out", str(out), "--license", "CC0", "--overwrite"]) == 0
    )
    model, wanted = load_model(out, "cpu", trust_pt2=True), load_model(root / run, "cpu")
    assert model.metadata.license == "CC0"
    card, own = vars(model.metadata).copy(), vars(wanted.metadata).copy()
    card.pop("license"), own.pop("license")
    assert card == own  # names, mean, std, size and the weights' digest travel
    assert model.metadata.class_names == NAMES
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    for n in (1, 5):
        for name, value in wanted(pixels[:n]).items():
            np.testing.assert_allclose(model(pixels[:n])[name], value, atol=1e-4)
    return out


CHEAP = [
    ("vit", "safetensors"),
    ("lora", "safetensors"),
    ("prompt-deep", "safetensors"),
    ("vit", "onnx"),
]
# OpenVINO by default: tests/predict/test_dense_predict.py
DEAR = [
    ("cnn", "openvino"),
    ("vit", "pt2"),
    ("cnn", "onnx"),
    ("vit", "openvino"),
    ("lora", "onnx"),
    ("prompt-deep", "onnx"),
]


@pytest.mark.parametrize(("run", "form"), [*CHEAP, *(pytest.param(*p, marks=pytest.mark.slow) for p in DEAR)])
def test_formats__give_torchs_outputs_and_carry_the_card(root, run: str, form: str, capsys) -> None:
    out = agree(root, run, form)
    text = capsys.readouterr().out
    assert "torch: " in text
    assert "license CC0" in text
    assert ("trtexec --onnx=" in text) == (form == "onnx")
    assert not list(root.glob(".*tmp*"))
    if form == "onnx":  # the exporter notes a stack trace for each node
        assert b"site-packages" not in out.read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in out.read_bytes()
    if form in ("onnx", "openvino"):  # predict says the same from the file as from the run
        arguments = ["predict", str(root / "images"), "--batch_size", "5", "--device", "cpu"]
        for name, model in (("a", root / run), ("b", out)):
            assert main([*arguments, "--model", str(model), "--out", str(root / f"{name}.csv"), "--overwrite"]) == 0
        rows = [(root / f"{name}.csv").read_text().splitlines()[1:] for name in "ab"]
        for ours, theirs in zip(*rows):
            assert ours.split(",")[:2] == theirs.split(",")[:2]
            assert float(ours.split(",")[2]) == pytest.approx(float(theirs.split(",")[2]), abs=1e-4)


def test_safetensors__begins_another_run(root) -> None:
    out = agree(root, "vit", "safetensors")
    fresh = make_classifier()
    torch.nn.init.zeros_(fresh.head.weight)
    load_into(fresh, out)
    torch.testing.assert_close(fresh.state_dict(), make_classifier().state_dict())


def test_features__of_a_body_without_a_head(tmp_path) -> None:
    method = make_classifier()
    seen = {METADATA_KEY: json.dumps({"size": 16, "crop_pct": 0.9})}
    body = save_backbone(tmp_path / "body.safetensors", method.backbone, method.mean, method.std, **seen)
    assert main(["export", str(body), "--format", "safetensors", "--out", str(tmp_path / "again.safetensors")]) == 0
    a, b = load_model(body, "cpu"), load_model(tmp_path / "again.safetensors", "cpu")
    assert a.metadata.task == b.metadata.task == "features"
    assert a.metadata == b.metadata
    assert (a.metadata.side, a.metadata.crop_pct) == (16, 0.9)


def test_adapter__is_small_and_comes_back(root, tmp_path) -> None:
    base = make_classifier(tune="linear")
    start = save_backbone(tmp_path / "base.safetensors", base.backbone, base.mean, base.std)
    for run in ("lora", "prompt-deep"):
        out = tmp_path / f"{run}.safetensors"
        assert main(["export", str(root / run), "--format", "adapter", "--out", str(out)]) == 0
        pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
        got, want = load_model(out, "cpu", base=str(start)), load_model(root / run, "cpu")
        np.testing.assert_allclose(got(pixels)["logits"], want(pixels)["logits"], atol=1e-5)
    assert main(["export", str(root / "vit"), "--format", "adapter", "--out", str(tmp_path / "v.safetensors")]) == 1


def test_parity__a_wrong_export_is_refused_and_the_old_one_stays(root, monkeypatch, capsys) -> None:
    out = root / "kept.safetensors"
    assert main(["export", str(root / "vit"), "--format", "safetensors", "--out", str(out)]) == 0
    before = out.read_bytes()
    write = exporting.write_safetensors

    def wrong(method, card, path):
        with torch.no_grad():
            head = method.head.weight.clone()
            method.head.weight *= 1.01
            write(method, card, path)
            method.head.weight.copy_(head)

    monkeypatch.setattr(exporting, "write_safetensors", wrong)
    assert main(["export", str(root / "vit"), "--format", "safetensors", "--out", str(out), "--overwrite"]) == 1
    assert f"{exporting.EXPORT_TOLERANCE:g}" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert not list(root.glob(".*tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("run", ["vit", "cnn"])
def test_int8__is_smaller_close_and_reports_the_loss_of_accuracy(root, run: str, form: str, tmp_path, capsys) -> None:
    need(form)
    pytest.importorskip("nncf", reason="needs the export extra")
    write_images(tmp_path / "data/train", 30)
    write_images(tmp_path / "data/test", 30, seed=4)
    out = tmp_path / f"q{exporting.FORMATS[form]}"
    arguments = ["export", str(root / run), "--format", form, "--out", str(out), "--int8", str(tmp_path / "data")]
    assert main([*arguments, "--calibration", "20"]) == 0
    text = capsys.readouterr().out
    assert "int8: top-1 " in text
    assert "on 30 images of test" in text
    model, wanted = load_model(out), load_model(root / run, "cpu")
    assert model.metadata.precision == "int8"
    assert set(model.metadata.options["int8"]) == {"metric", "before", "after", "split", "calibrated_on"}
    inputs = find_images([str(tmp_path / "data/test")])
    pixels = next(batches(inputs, preprocess_for(model.metadata), 30)).pixels
    got, want = model(pixels)["logits"], wanted(pixels)["logits"]
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.95
    assert not np.allclose(got, want, atol=1e-4)  # it is quantised


def test_onnx__axes_operators_and_half_precision_as_asked(root, tmp_path) -> None:
    need("onnx")
    import onnx

    out = tmp_path / "half.onnx"
    assert main(["export", str(root / "cnn"), "--format", "onnx", "--out", str(out), "--opset", "18", "--half"]) == 0
    model = onnx.load(out)
    assert model.opset_import[0].version == 18
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {w.data_type for w in model.graph.initializer if w.name.endswith("weight")} == {onnx.TensorProto.FLOAT16}
    wanted, found = load_model(root / "cnn", "cpu"), load_model(out)
    assert (wanted.metadata.precision, found.metadata.precision) == ("fp32", "fp16")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(found(pixels)["logits"], wanted(pixels)["logits"], atol=1e-2)


@pytest.mark.parametrize(
    "more",
    [["--half", "--int8", "x"], ["--format", "safetensors", "--half"], ["--format", "pt2", "--opset", "20"]],
)
def test_half_and_opset__where_they_do_not_apply(root, more: list[str], capsys) -> None:
    assert main(["export", str(root / "cnn"), "--format", "onnx", *more]) == 2
    assert ("--half" if "--half" in more else "--opset") in capsys.readouterr().err


@pytest.mark.slow
def test_opset__that_the_model_cannot_have_is_refused(root, tmp_path, capsys) -> None:
    need("onnx")
    arguments = ["export", str(root / "cnn"), "--format", "onnx", "--out", str(tmp_path / "c.onnx")]
    assert main([*arguments, "--opset", "9"]) == 1
    assert "--opset 9" in capsys.readouterr().err


@pytest.mark.slow
def test_openvino__half_precision_halves_the_weights(root, tmp_path) -> None:
    need("openvino")
    for name, more in (("a", []), ("b", ["--half"])):
        arguments = ["export", str(root / "cnn"), "--format", "openvino", "--out", str(tmp_path / f"{name}.xml")]
        assert main([*arguments, *more]) == 0
    sizes = [(tmp_path / f"{name}.bin").stat().st_size for name in "ab"]
    assert sizes[1] < 0.6 * sizes[0]


# broken commands


def wrong_command(root: Path, name: str) -> list[str]:
    run, work = str(root / "vit"), root / "wrong"
    work.mkdir(exist_ok=True)
    out = str(work / "o.safetensors")
    base = ["export", run, "--format", "safetensors", "--out", out]
    if name == "no checkpoint inside":
        (work / "empty").mkdir(exist_ok=True)
        return ["export", str(work / "empty"), "--format", "onnx"]
    if name == "out is there":
        (work / "there.safetensors").write_text("keep")
        return [*base[:-1], str(work / "there.safetensors")]
    if name == "torn checkpoint":
        (work / "torn.ckpt").write_bytes((root / "vit/checkpoints/last.ckpt").read_bytes()[:5000])
        return ["export", str(work / "torn.ckpt"), "--format", "onnx", "--out", str(work / "o.onnx")]
    if name == "strange classes":
        write_images(work / "data" / "train", 6)
        (work / "data/train/red").rename(work / "data/train/violet") if (work / "data/train/red").exists() else None
        return ["export", run, "--format", "openvino", "--out", str(work / "o.xml"), "--int8", str(work / "data")]
    return {
        "no such run": ["export", str(work / "none"), "--format", "onnx"],
        "no format": ["export", run, "--out", out],
        "unknown format": ["export", run, "--format", "tflite"],
        "ending of another": ["export", run, "--format", "onnx", "--out", out],
        "an export of an export": ["export", str(work / "x.onnx"), "--format", "openvino"],
        "adapter of a whole": ["export", run, "--format", "adapter", "--out", out],
        "int8 as safetensors": [*base, "--int8", str(root / "images")],
        "int8 of nothing": [
            "export",
            run,
            "--format",
            "openvino",
            "--out",
            str(work / "o.xml"),
            "--int8",
            str(work / "none"),
        ],
        "calibrate on none": [*base, "--calibration", "0"],
        "base of a whole": [*base, "--base", str(root / "cnn/checkpoints/last.ckpt")],
        "out is a folder": ["export", run, "--format", "safetensors", "--out", str(work / "folder.safetensors")],
        "two models": ["export", run, run, "--format", "onnx"],
    }[name]


BROKEN = {
    "no checkpoint inside": (1, "/empty"),
    "out is there": (1, "--overwrite"),
    "torn checkpoint": (1, "torn.ckpt"),
    "strange classes": (1, "violet"),
    "no such run": (1, "/none"),
    "no format": (2, "--format"),
    "unknown format": (2, "tflite"),
    "ending of another": (2, ".onnx"),
    "an export of an export": (1, "x.onnx"),
    "adapter of a whole": (1, "--format adapter"),
    "int8 as safetensors": (2, "--int8"),
    "int8 of nothing": (1, "/none"),
    "calibrate on none": (2, "--calibration 0"),
    "base of a whole": (1, "--base"),
    "out is a folder": (1, "--out"),
    "two models": (2, "unrecognized arguments"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_command__one_line_and_nothing_lost(name: str, root, capsys) -> None:
    if name in ("strange classes", "int8 of nothing"):
        pytest.importorskip("nncf", reason="needs the export extra")
        need("openvino")
    arguments = wrong_command(root, name)
    (root / "wrong" / "folder.safetensors").mkdir(exist_ok=True)
    (root / "wrong" / "x.onnx").touch()
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    capsys.readouterr()
    code, text = BROKEN[name]
    assert main(arguments) == code
    error = capsys.readouterr().err.strip()
    assert text in error
    assert len(error.splitlines()) == 1
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_missing_packages_are_named_and_only_they(root, monkeypatch, capsys) -> None:
    for name in ("onnx", "onnxscript", "openvino", "onnxruntime", "nncf"):
        monkeypatch.setitem(sys.modules, name, None)
    for writer, text in (
        (exporting.write_onnx, "--format onnx: onnx and onnxscript are "),
        (exporting.write_openvino, "--format openvino: openvino is "),
    ):
        with pytest.raises(UserError, match=rf"^{text}.*pip install 'lit-vision\[export\]'$"):
            writer(None, None, Path("x.onnx"))
    monkeypatch.setitem(sys.modules, "openvino", ModuleType("openvino"))
    sys.modules["openvino"].__spec__ = ModuleSpec("openvino", None)
    arguments = ["export", str(root / "cnn"), "--format", "openvino", "--out", str(root / "m.xml"), "--int8", "x"]
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("lit-vision: error: --int8: nncf is ")


def test_a_package_that_is_there_and_broken_is_not_called_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "brokenpackage.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"--int8: brokenpackage .*nothing_of_this_name"):
        require_packages("--int8", "json", "brokenpackage")
