"""export of detectors and segmenters: int8 with accuracy before and after, half weights, wrong commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_dense import make_detector, make_segmenter
from toy_models import write_run

from lit_vision.cli.main import main
from lit_vision.convert.export import check_parity, write_safetensors
from lit_vision.data.make.scenes import GARMENT_CLASSES, make_scenes
from lit_vision.methods import Detector, Segmenter, lightning_module
from lit_vision.predict.models import load_method, load_model
from lit_vision.predict.tasks import accuracy_check_for

CNN = {"stem_type": "deep", "stem_width": 8, "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Scenes, a detector and a segmenter for them, untrained."""
    folder = tmp_path_factory.mktemp("dense-export")
    make_scenes(folder / "scenes", {"train": 6, "val": 2, "test": 4})
    torch.manual_seed(0)
    detector = Detector("resnet18", 10, 64, strides=[8, 16], pyramid_width=32, head_convs=1, backbone_args=CNN)
    detector.metadata = {"task": "detection", "class_names": list(GARMENT_CLASSES), "size": 64, "crop_pct": 1.0}
    segmenter = Segmenter("resnet18", 11, 64, strides=[4, 8], width=16, backbone_args=CNN)
    segmenter.metadata = {
        "task": "segmentation",
        "class_names": ["background", *GARMENT_CLASSES],
        "size": 64,
        "crop_pct": 1.0,
    }
    with torch.no_grad():
        for name, value in (*detector.head.named_parameters(), *segmenter.head.named_parameters()):
            if "cls_logits.bias" in name:
                value.fill_(-2.0)
            elif "cls_logits.weight" in name or name.startswith("scores"):
                value.normal_(std=0.2)
    write_run(folder / "detector", detector.eval())
    write_run(folder / "segmenter", segmenter.eval())
    return folder


@pytest.mark.parametrize("task", ["detector", "segmenter"])
def test_accuracy_checks__measure_what_the_method_measures(root, task: str) -> None:
    from lightning.pytorch import Trainer

    model = load_model(root / task, "cpu")
    check = accuracy_check_for(str(root / "scenes"), model.metadata)
    assert (check.split, check.images) == ("test", 4)
    assert sum(1 for _ in check.calibration(5)) == 5
    assert next(check.calibration(1)).shape == (1, 64, 64, 3)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    (found,) = trainer.test(lightning_module(model.method), datamodule=check.data, verbose=False)
    name = "test/map" if task == "detector" else "test/dice"
    assert check.measure(model) == pytest.approx(found[name], abs=1e-6)


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.slow), "openvino"])
@pytest.mark.parametrize("task", ["detector", "segmenter"])
def test_int8__reports_the_loss_of_accuracy(root, task: str, form: str, tmp_path, capsys) -> None:
    pytest.importorskip("nncf", reason="needs the export extra")
    pytest.importorskip({"onnx": "onnxruntime"}.get(form, "openvino"), reason="needs the export extra")
    out = tmp_path / ("q.onnx" if form == "onnx" else "q.xml")
    arguments = ["export", str(root / task), "--format", form, "--out", str(out), "--int8", str(root / "scenes")]
    assert main([*arguments, "--calibration", "4"]) == 0
    metric = "mAP" if task == "detector" else "mean Dice"
    assert f"int8: {metric} " in (text := capsys.readouterr().out)
    assert "on 4 images of test" in text
    model = load_model(out)
    assert model.metadata.precision == "int8"
    assert model.metadata.options["int8"]["metric"] == metric
    wanted = load_model(root / task, "cpu")
    pixels = np.concatenate(list(accuracy_check_for(str(root / "scenes"), wanted.metadata).calibration(3)))
    for name, value in wanted(pixels).items():
        got = model(pixels)[name]
        assert np.corrcoef(got.ravel(), value.ravel())[0, 1] > 0.9
        assert not np.allclose(got, value, atol=1e-4)


@pytest.mark.parametrize("make", [make_detector, make_segmenter])
def test_half_weights_come_back(make, tmp_path) -> None:
    write_run(tmp_path / "run", make())
    method, card = load_method(tmp_path / "run" / "checkpoints" / "last.ckpt")
    write_safetensors(method, card, tmp_path / "whole.safetensors")
    write_safetensors(method, card, tmp_path / "half.safetensors", half=True)
    whole, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.65 * whole
    again, _ = load_method(tmp_path / "half.safetensors")
    for name, value in method.state_dict().items():
        assert torch.allclose(again.state_dict()[name].float(), value.float(), rtol=1e-3, atol=1e-5), name


def test_parity__a_shifted_box_is_refused(root) -> None:
    from lit_vision.errors import UserError
    from lit_vision.predict.tasks import inference_network

    model = load_model(root / "detector", "cpu")
    network = inference_network(model.method, "detection")
    assert check_parity(network, model.metadata, model) < 1e-5
    run = model._run

    def shifted(images):
        return {name: value + (0.2 if name == "bbox_regression" else 0) for name, value in run(images).items()}

    model._run = shifted
    with pytest.raises(UserError, match="pixels"):
        check_parity(network, model.metadata, model)
    model._run = lambda images: {k: v + (0.01 if k == "cls_logits" else 0) for k, v in run(images).items()}
    with pytest.raises(UserError, match=r"more than 0\.0001"):
        check_parity(network, model.metadata, model)


BROKEN = {
    "two stages as onnx": (["two-stage", "onnx"], 1, "faster_rcnn"),
    "two stages as openvino": (["two-stage", "openvino"], 1, "faster_rcnn"),
    "adapter of a detector": (["detector", "adapter"], 1, "--format adapter"),
    "no run": (["nothing", "onnx"], 1, "/nothing"),
    "torn": (["torn.ckpt", "onnx"], 1, "torn.ckpt"),
    "other weights": (["misfit.ckpt", "onnx"], 1, "misfit.ckpt"),
    "int8 without a set": (["detector", "openvino", "--int8", "{root}/none"], 1, "--int8 {root}/none"),
    "int8 of a folder by class": (["detector", "openvino", "--int8", "{root}/bare"], 1, "--int8 {root}/bare"),
    "int8 of masks not there": (["segmenter", "openvino", "--int8", "{root}/bare"], 1, "{root}/bare"),
    "int8 of strange classes": (["toy", "openvino", "--int8", "{root}/scenes"], 1, "t-shirt"),
    "int8 as safetensors": (["segmenter", "safetensors", "--int8", "{root}/scenes"], 2, "--int8"),
    "base of a complete model": (["segmenter", "onnx", "--base", "{root}/x.ckpt"], 1, "--base"),
    "not finite": (["nan", "safetensors"], 1, "not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_command__one_line_and_nothing_lost(root, tmp_path, name: str, capsys) -> None:
    (model, form, *more), code, text = BROKEN[name]
    if form in ("onnx", "openvino"):
        pytest.importorskip("nncf", reason="needs the export extra")
    (root / "bare" / "train" / "red").mkdir(parents=True, exist_ok=True)
    for other, method in (("two-stage", lambda: make_detector("faster_rcnn")), ("toy", make_detector)):
        if model == other and not (root / other).exists():
            write_run(root / other, method())
    checkpoint = root / "detector" / "checkpoints" / "last.ckpt"
    if model == "torn.ckpt":
        (root / model).write_bytes(checkpoint.read_bytes()[:5000])
    if model == "misfit.ckpt":
        content = torch.load(checkpoint, weights_only=True)
        content["state_dict"].popitem()
        torch.save(content, root / model)
    if model == "nan" and not (root / "nan").exists():
        method = make_detector()
        next(method.backbone.parameters()).data.fill_(float("nan"))
        write_run(root / "nan", method)
    ending = {"onnx": "onnx", "openvino": "xml"}.get(form, "safetensors")
    before = {p: p.stat().st_size for p in root.rglob("*") if p.is_file()}
    arguments = ["export", str(root / model), "--format", form, "--out", str(tmp_path / f"o.{ending}")]
    assert main([*arguments, *(word.format(root=root) for word in more)]) == code
    error = capsys.readouterr().err.strip()
    assert text.format(root=root) in error
    assert len(error.splitlines()) == 1
    assert {p: p.stat().st_size for p in root.rglob("*") if p.is_file()} == before
    assert list(tmp_path.iterdir()) == []
