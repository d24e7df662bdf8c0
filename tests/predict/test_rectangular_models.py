"""Models for images that are not square, from training to predictions and exports that say the same."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch import Trainer
from PIL import Image
from toy_models import write_run

import lit_vision
from lit_vision.cli.main import main
from lit_vision.data import AnnotatedDataModule, ImageFolderDataModule
from lit_vision.data.views.views import resize_and_crop
from lit_vision.errors import UserError
from lit_vision.methods import MAE, Classifier, Detector, LeJEPA, MultiLabelClassifier, Segmenter, SimCLR
from lit_vision.predict.models import load_method
from lit_vision.weights.model_metadata import METADATA_KEY, ModelMetadata

SIZE = [16, 64]  # 4 x 16 patches, as many as a square of 8 x 8
VIT = {"img_size": SIZE, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
CNN = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of wide images, a bar at the left or the right end; a table with both as labels."""
    folder, rng = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    rows = []
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            pixels = rng.integers(0, 120, (20, 70, 3), dtype=np.uint8)
            pixels[:, slice(5, 20) if i % 2 else slice(50, 65)] += 130
            name = f"{split}/{'left' if i % 2 else 'right'}/{i}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
            rows.append((name, split, i % 2, 1 - i % 2))
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "split", "left", "right"), *rows])
    return folder


def fit(method, data: Path, folder: Path, view: str, **options) -> ImageFolderDataModule:
    """Train for one step."""
    module = ImageFolderDataModule(str(data), img_size=SIZE, batch_size=8, num_workers=0, train_view=view, **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, **quiet)
    trainer.fit(method, module)
    assert trainer.global_step == 1
    return module


@pytest.mark.parametrize("in_memory", [False, True])
def test_self_supervised_methods__train_on_wide_images(data: Path, tmp_path: Path, in_memory: bool) -> None:
    torch.manual_seed(0)
    dynamic = {**VIT, "dynamic_img_size": True}
    fit(MAE(NAME, VIT, decoder_width=8, decoder_depth=1, decoder_heads=2), data, tmp_path, "mae", in_memory=in_memory)
    simclr = SimCLR("resnet18", CNN, projection_width=8)
    fit(simclr, data, tmp_path, "simclr", in_memory=in_memory)
    exported = tmp_path / "body.safetensors"
    assert (
        main(["export", str(write_run(tmp_path / "run", simclr)), "--format", "safetensors", "--out", str(exported)])
        == 0
    )
    for path in (tmp_path / "run/checkpoints/last.ckpt", exported):  # a CNN knows its size from the data alone
        assert load_method(path)[1].size == SIZE
    lejepa = LeJEPA(NAME, dynamic, projection_width=8, projection_hidden=8, num_directions=8)
    module = fit(lejepa, data, tmp_path, "lejepa", in_memory=in_memory, local_views=2, local_size=8)
    batch = next(iter(module.train_dataloader()))
    assert batch["images"].shape == (8, 2, *SIZE, 3)
    assert batch["local_images"].shape == (8, 2, 8, 8, 3)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a classifier with large weights, so that its classes differ."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    method = Classifier(NAME, 2, {**VIT, "pool": "avg"}, head_init_std=1.0, mixup=0.8, cutmix=1.0)
    fit(method, data, folder, "train")
    torch.nn.init.normal_(method.backbone.model.pos_embed)
    return write_run(folder / "run", method)


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]


def test_predict_and_embed__are_the_network_on_the_wide_view(run: Path, data: Path, tmp_path: Path) -> None:
    method, metadata = load_method(run / "checkpoints/last.ckpt")
    assert metadata.size == SIZE
    assert json.loads(metadata.to_json())["size"] == SIZE
    names = sorted(str(p.relative_to(data)) for p in data.glob("val/*/*.png"))
    pixels = np.stack([resize_and_crop(np.asarray(Image.open(data / n)), SIZE, metadata.crop_pct) for n in names])
    assert pixels.shape == (4, *SIZE, 3)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    images = (images - method.mean[:, None, None]) / method.std[:, None, None]
    with torch.inference_mode():
        scores, features = method(images).softmax(1).amax(1), method.backbone(images)
    out = tmp_path / "a.csv"
    assert main(["predict", str(data / "val"), "--model", str(run), "--out", str(out), "--device", "cpu"]) == 0
    assert [float(row[2]) for row in rows_of(out)] == pytest.approx(scores.tolist(), abs=1e-5)
    model = lit_vision.load(run, device="cpu")
    np.testing.assert_allclose(model.embed([data / n for n in names]).features, features, atol=1e-5)


FORMATS = {"safetensors": ".safetensors", "timm": ".timm.safetensors"}
SLOW = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}


@pytest.mark.parametrize(
    ("form", "suffix"),
    [*FORMATS.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())],
)
def test_exports__predict_the_same(
    run: Path, data: Path, tmp_path: Path, form: str, suffix: str, capsys: pytest.CaptureFixture
) -> None:
    if form in SLOW:
        pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch"}[form])
    out = model = tmp_path / f"model{suffix}"
    assert main(["export", str(run), "--format", form, "--out", str(out)]) == 0
    assert ("x3x16x64" in capsys.readouterr().out) == (form == "onnx")
    if form == "timm":  # and back
        model = tmp_path / "back.safetensors"
        assert main(["import", str(out), "--out", str(model)]) == 0
    for name, source in (("a", run), ("b", model)):
        arguments = ["--model", str(source), "--out", str(tmp_path / f"{name}.csv"), "--device", "cpu"]
        more = ["--trust_pt2"] if form == "pt2" and name == "b" else []
        assert main(["predict", str(data / "val"), *arguments, *more]) == 0
    ours, theirs = rows_of(tmp_path / "a.csv"), rows_of(tmp_path / "b.csv")
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    assert [float(row[2]) for row in ours] == pytest.approx([float(row[2]) for row in theirs], abs=1e-4)


@torch.no_grad()
def test_hub__timm_builds_the_wide_model_from_its_folder(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--format", "hub", "--out", str(tmp_path / "wide")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'wide'}", pretrained=True).eval()
    images = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(model(images), load_method(run / "checkpoints/last.ckpt")[0](images))
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, *SIZE)
    assert "center crop 16x64" in (tmp_path / "wide/README.md").read_text()


def test_several_labels__and_wide_images_of_a_table(data: Path, tmp_path: Path) -> None:
    method = MultiLabelClassifier("resnet18", 2, CNN)
    options = {"label_file": str(data / "labels.csv"), "label_columns": ["left", "right"], "split_column": "split"}
    fit(method, data, tmp_path, "train", **options)
    metadata = load_method(write_run(tmp_path / "run", method) / "checkpoints/last.ckpt")[1]
    assert (metadata.task, metadata.size) == ("multilabel", SIZE)  # a CNN knows its size from the data alone


def test_damaged_sizes__are_refused() -> None:
    good = ModelMetadata("features", 32, [0.5] * 3, [0.5] * 3, outputs=["features"])
    for size, wanted in ((32, 32), ([16, 64], [16, 64]), ([32, 32], 32)):
        values = {**vars(good), "size": size}
        assert ModelMetadata.from_json(json.dumps(values), METADATA_KEY).size == wanted
    for size in (0, [16], [16, 0], "wide", None):
        with pytest.raises(UserError, match="metadata is damaged"):
            ModelMetadata.from_json(json.dumps({**vars(good), "size": size}), METADATA_KEY)


def test_boxes_and_masks__need_squares_and_say_so(data: Path) -> None:
    with pytest.raises(UserError, match="square: give one number"):
        AnnotatedDataModule(str(data), img_size=SIZE)
    for method in (Detector, Segmenter):
        with pytest.raises(UserError, match="square images: give one number"):
            method("resnet18", 2, img_size=SIZE)
    with pytest.raises(UserError, match=r"built for img_size \[16, 64\]"):
        Segmenter(NAME, 2, img_size=64, head="fcn", width=8, backbone_args=VIT)
