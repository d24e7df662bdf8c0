"""predict: results are those of the model, resume after a kill; broken images and wrong commands lose nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from toy_models import NAMES, make_classifier, write_images, write_run

from lit_vision.backbones import adapters
from lit_vision.cli.main import main
from lit_vision.data.views.decode import decode
from lit_vision.data.views.views import resize_and_crop
from lit_vision.errors import UserError
from lit_vision.predict import inputs, models
from lit_vision.predict.models import load_model
from lit_vision.weights import adapter_io
from lit_vision.weights.load import save_backbone
from lit_vision.weights.model_metadata import metadata_from_datamodule


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run, and twelve images in a folder."""
    folder = tmp_path_factory.mktemp("predict")
    write_run(folder / "run", make_classifier())
    write_images(folder / "images")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predict(root: Path, out: Path, *more: str, model: str = "run", images: str = "images") -> int:
    arguments = ["predict", str(root / images), "--model", str(root / model), "--out", str(out), "--device", "cpu"]
    return main([*arguments, "--batch_size", "5", *more])


def test_predict__is_the_classifier_on_the_evaluation_view(root, tmp_path, capsys) -> None:
    assert predict(root, tmp_path / "a.csv") == 0
    assert predict(root, tmp_path / "a.jsonl", "--top_k", "2") == 0
    assert f"{tmp_path / 'a.csv'}: 12 images\n" in capsys.readouterr().out
    rows, method = rows_of(tmp_path / "a.csv"), make_classifier()
    names = sorted(str(p.relative_to(root / "images")) for p in (root / "images").rglob("*.png"))
    assert [row["path"] for row in rows] == names
    assert list(rows[0]) == ["path", "label", "score", "label_2", "score_2", "label_3", "score_3"]
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for row, record in zip(rows, records):
        pixels = resize_and_crop(decode((root / "images" / row["path"]).read_bytes()), 16, 1.0)
        image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - method.mean[:, None, None]) / method.std[
            :, None, None
        ]
        want = method(image[None])[0].softmax(0)
        assert row["label"] == NAMES[int(want.argmax())]
        assert float(row["score"]) == pytest.approx(want.max().item(), abs=1e-5)
        assert record["path"] == row["path"]
        assert [(p["label"], f"{p['score']:.6f}") for p in record["predictions"]] == [
            (row["label"], row["score"]),
            (row["label_2"], row["score_2"]),
        ]
    assert len({row["label"] for row in rows}) > 1
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "a.jsonl"}  # no leftovers


def test_broken_images_are_listed_and_skipped(root, tmp_path, capsys) -> None:
    folder = tmp_path / "mixed"
    write_images(folder, 6)
    good = (folder / "red/000.png").read_bytes()
    (folder / "a_torn.png").write_bytes(good[: len(good) // 2])
    (folder / "b_empty.jpg").touch()
    (folder / "c_text.png").write_text("no image")
    (folder / "d_link.png").symlink_to("nowhere.png")
    (folder / "e_folder").mkdir()
    (folder / "e_folder" / "loop").symlink_to(folder)
    (folder / "f_gray.png").write_bytes(b"")
    Image.fromarray(np.full((9, 30), 200, np.uint8)).save(folder / "f_gray.png")
    (folder / "notes.txt").write_text("not listed: its ending is no image's")
    assert predict(root, tmp_path / "o.csv", images=str(folder)) == 0
    assert "7 images, 4 skipped (see o.csv.skipped.csv)" in capsys.readouterr().out
    skipped = rows_of(tmp_path / "o.csv.skipped.csv")
    assert [row["path"] for row in skipped] == ["a_torn.png", "b_empty.jpg", "c_text.png", "d_link.png"]
    assert all(row["reason"] and "\n" not in row["reason"] for row in skipped)
    rows = {row["path"]: row for row in rows_of(tmp_path / "o.csv")}
    assert len(rows) == 7
    predict(root, tmp_path / "all.csv")
    whole = {row["path"]: row for row in rows_of(tmp_path / "all.csv")}
    assert rows["red/000.png"]["label"] == whole["red/000.png"]["label"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").touch()
    assert predict(root, tmp_path / "bad.csv", images=str(tmp_path / "broken")) == 1
    assert str(tmp_path / "bad.csv.skipped.csv") in capsys.readouterr().err
    assert not (tmp_path / "bad.csv").exists()
    assert (tmp_path / "bad.csv.skipped.csv").exists()


def test_stopped_anywhere_and_resumed_gives_the_same_bytes(root, tmp_path, stopped_writer, capsys) -> None:
    folder = tmp_path / "images"
    write_images(folder, 12)
    (folder / "blue" / "0_bad.png").touch()
    assert predict(root, tmp_path / "whole.csv", images=str(folder)) == 0
    for stop in (1, 2, 3, 4):
        out = tmp_path / f"part{stop}.csv"
        with stopped_writer(stop):
            assert predict(root, out, images=str(folder)) == 130
        assert not out.exists()
        assert predict(root, out, images=str(folder)) == 0
        assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert Path(f"{out}.skipped.csv").read_bytes() == (tmp_path / "whole.csv.skipped.csv").read_bytes()
        assert len(list(tmp_path.glob(f"part{stop}*"))) == 2
    text = capsys.readouterr()
    assert "5 of 13" in text.err
    assert "5 of 13" in text.out


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_unfinished_run_of_before_the_flags_were_renamed_is_continued(root, tmp_path, stopped_writer, form) -> None:
    """The record as commit 37adabd wrote it: the same values under form, top and explain."""
    assert predict(root, tmp_path / f"all.{form}", "--top_k", "2") == 0
    out, state = tmp_path / f"part.{form}", tmp_path / f"part.{form}.part.json"
    with stopped_writer(3):
        assert predict(root, out, "--top_k", "2") == 130
    record = json.loads(state.read_text())
    identity = record["identity"]
    old_keys = {"model", "precision", "runtime", "images", "batch_size", "form", "top", "explain"}
    record["identity"] = {{"format": "form", "top_k": "top"}.get(key, key): value for key, value in identity.items()}
    assert set(record["identity"]) == old_keys
    state.write_text(json.dumps(record))
    assert predict(root, out, "--top_k", "3") == 1  # still another run
    assert predict(root, out, "--top_k", "2") == 0
    assert out.read_bytes() == (tmp_path / f"all.{form}").read_bytes()


def test_a_part_of_another_run_is_not_mixed_in(root, tmp_path, monkeypatch, capsys) -> None:
    run, calls = models.Model.__call__, []

    def broken(self, pixels):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, pixels)

    out = tmp_path / "o.csv"
    with monkeypatch.context() as patch:
        patch.setattr(models.Model, "__call__", broken)
        assert predict(root, out) == 130
    assert predict(root, out, "--top_k", "1") == 1
    assert f"{out}.part.json" in capsys.readouterr().err
    assert predict(root, out, "--top_k", "1", "--overwrite") == 0
    before = out.read_bytes()
    assert predict(root, out) == 1
    assert f"--out {out}" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert predict(root, out, "--overwrite") == 0
    assert out.read_bytes() != before


def test_a_run_that_did_nothing_is_replaced(root, tmp_path, monkeypatch, capsys) -> None:
    """A run that stopped before its first batch can be replaced; an unreadable record is never deleted."""

    def broken(self, pixels):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(models.Model, "__call__", broken)
        assert predict(root, tmp_path / "a.csv") == 130
    assert predict(root, tmp_path / "a.csv", "--top_k", "1") == 0
    assert predict(root, tmp_path / "b.csv", "--top_k", "1") == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "b.csv"}
    (tmp_path / "c.csv.part.json").write_text("{")
    capsys.readouterr()
    assert predict(root, tmp_path / "c.csv") == 1
    assert "c.csv.part.json" in capsys.readouterr().err


# where models come from


@pytest.mark.parametrize("tune", ["lora", "prompt-deep"])
def test_models__adapters_are_applied_and_lora_is_merged(root, tune: str, tmp_path) -> None:
    method = make_classifier(tune=tune, prompt_length=2)
    with torch.no_grad():
        for p in method.backbone.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    write_run(tmp_path / "run", method)
    model = load_model(tmp_path / "run", "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    want = method(model.normalized(pixels))
    np.testing.assert_allclose(model(pixels)["logits"], want.detach().numpy(), atol=1e-4)
    assert not any("lora" in key for key in model.method.state_dict())
    # the same from the adapter's file, on the weights that it was trained on
    base = make_classifier(tune="linear")
    digest = adapters.base_weights_sha256(method.backbone)
    assert digest == adapters.base_weights_sha256(base.backbone)
    start = save_backbone(tmp_path / "base.safetensors", base.backbone, base.mean, base.std)
    hyper = {**dict(method.hparams), "backbone_checkpoint": None}
    path = adapter_io.save_adapter(tmp_path / "a.safetensors", method, hyper_parameters=hyper, card=method.metadata)
    again = load_model(path, "cpu", base=str(start))
    np.testing.assert_allclose(again(pixels)["logits"], model(pixels)["logits"], atol=1e-5)
    assert again.metadata.class_names == NAMES


def test_models__without_metadata_have_numbers_for_names(tmp_path) -> None:
    method = make_classifier("cnn")
    method.metadata = None
    card = load_model(write_run(tmp_path / "run", method)).metadata
    assert card.class_names == ["0", "1", "2"]
    assert card.mean == [0.5, 0.4, 0.3]


def test_models__another_evaluation_view_is_refused(tmp_path) -> None:
    method = make_classifier("cnn")
    data = SimpleNamespace(class_names=NAMES, img_size=16, eval_options={"crop_pct": 0.5}, eval_view="eval")
    assert metadata_from_datamodule("classification", data)["crop_pct"] == 0.5
    data.eval_view = "albumentations:mine"
    method.metadata = metadata_from_datamodule("classification", data)
    with pytest.raises(UserError, match="eval_view albumentations:mine"):
        load_model(write_run(tmp_path / "run", method))
    assert metadata_from_datamodule("classification", SimpleNamespace()) is None


def test_best_is_taken_before_last(tmp_path) -> None:
    write_run(tmp_path / "run", make_classifier())
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "best.ckpt").write_bytes((checkpoints / "last.ckpt").read_bytes())
    assert load_model(tmp_path / "run").path.name == "best.ckpt"


def test_explain_draws_every_image(root, tmp_path) -> None:
    for kind in ("vit", "cnn"):
        write_run(tmp_path / kind, make_classifier(kind))
        where = tmp_path / f"drawn-{kind}"
        assert predict(root, tmp_path / f"{kind}.csv", "--explain", str(where), model=str(tmp_path / kind)) == 0
        drawn = sorted(where.rglob("*.png"))
        assert len(drawn) == 12
        picture = np.asarray(Image.open(drawn[0]))
        assert picture.shape == (224, 452, 3)
        assert (picture[:, :224] != picture[:, 228:]).any()


def test_explained_into_the_images_folder_is_explained_once(root, tmp_path) -> None:
    folder = tmp_path / "images"
    names = write_images(folder, 6)
    (tmp_path / "link").symlink_to(folder / "why")
    for out, where in (("a.csv", folder / "why"), ("b.csv", tmp_path / "link")):
        assert predict(root, tmp_path / out, "--explain", str(where), images=str(folder)) == 0
        assert [row["path"] for row in rows_of(tmp_path / out)] == names


# wrong commands: one line each, nothing written


def write_wrong_files(root: Path) -> None:
    """Write a run, images, and the files that wrong commands name."""
    for folder in ("empty", "bare"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_images(root / "images", 3)
    write_run(root / "run", make_classifier())
    data = (root / "run/checkpoints/last.ckpt").read_bytes()
    (root / "torn.ckpt").write_bytes(data[: len(data) // 3])
    torch.save({"state_dict": {}, "hyper_parameters": Path("x"), "f": os.system}, root / "evil.ckpt")
    save_file({"head.weight": torch.zeros(3, 4)}, root / "w.safetensors")
    (root / "x.onnx").write_text("not a model")
    (root / "x.pt2").write_bytes(b"PK")
    save_backbone(root / "body.safetensors", make_classifier().backbone, [0.5] * 3, [0.5] * 3)
    method = make_classifier()
    method.head.weight.data[0, 0] = float("nan")
    write_run(root / "nan", method)


WRONG = {  # a flag or the images, and the wrong value; {root} is the folder of write_wrong_files
    "no such run": ("--model", "{root}/nothing"),
    "empty folder as run": ("--model", "{root}/empty"),
    "no images there": ("images", "{root}/nowhere"),
    "folder without images": ("images", "{root}/bare"),
    "unknown ending": ("--out", "{root}/o.xlsx"),
    "out is a folder": ("--out", "{root}/images"),
    "damaged checkpoint": ("--model", "{root}/torn.ckpt"),
    "checkpoint that runs code": ("--model", "{root}/evil.ckpt"),
    "weights alone": ("--model", "{root}/w.safetensors"),
    "text as onnx": ("--model", "{root}/x.onnx"),
    "pre-trained only": ("--model", "{root}/body.safetensors"),
    "pt2 that is not trusted": ("--model", "{root}/x.pt2"),
    "batch of none": ("--batch_size", "0"),
    "top of none": ("--top_k", "0"),
    "unknown flag": ("--modle", "{root}/run"),
    "not a finite weight": ("--model", "{root}/nan"),
}


def wrong_command(root: Path, name: str) -> list[str]:
    """Return the arguments of a command with one thing wrong."""
    key, value = WRONG[name]
    values = {"images": f"{root}/images", "--model": f"{root}/run", "--out": f"{root}/o.csv", "--device": "cpu"}
    values[key] = value.format(root=root)
    return ["predict", values.pop("images"), *(word for pair in values.items() for word in pair)]


BROKEN = {
    "no such run": (1, "/nothing"),
    "empty folder as run": (1, "/empty"),
    "no images there": (1, "/nowhere"),
    "folder without images": (1, "/bare"),
    "unknown ending": (2, "o.xlsx"),
    "out is a folder": (1, "--out"),
    "damaged checkpoint": (1, "torn.ckpt"),
    "checkpoint that runs code": (1, "evil.ckpt"),
    "weights alone": (1, "w.safetensors"),
    "text as onnx": (1, "x.onnx"),
    "pre-trained only": (1, "lit-vision embed"),
    "pt2 that is not trusted": (1, "--trust_pt2"),
    "batch of none": (2, "--batch_size 0"),
    "top of none": (2, "--top_k 0"),
    "unknown flag": (2, "--modle"),
    "not a finite weight": (1, "/nan/"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_command__one_line_and_nothing_lost(name: str, tmp_path_factory, capsys) -> None:
    if name == "text as onnx":
        pytest.importorskip("onnxruntime", reason="needs the export extra")
    root = tmp_path_factory.getbasetemp() / "wrong-predict"
    if not root.exists():
        write_wrong_files(root)
    code, text = BROKEN[name]
    arguments = wrong_command(root, name)
    before = {p: p.stat().st_size for p in root.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(arguments) == code
    error = capsys.readouterr().err.strip()
    assert text in error
    assert len(error.splitlines()) == 1
    after = {p: p.stat().st_size for p in root.rglob("*") if p.is_file()}
    assert {p: s for p, s in after.items() if p in before} == before
    assert not (root / "o.csv").exists()
    for left in root.glob("o.csv*"):
        left.unlink()


# parts


def test_files_are_taken_as_typed_and_a_folder_beside_them_adds_the_others(root) -> None:
    a, b = str(root / "images/red/000.png"), str(root / "run/checkpoints/last.ckpt")
    found = inputs.find_images([b, a])
    assert list(found.names) == [b, a]
    mixed = list(inputs.find_images([a, str(root / "images")]).names)
    assert mixed[0] == a
    assert sorted(mixed) == [str(root / "images" / name) for name in inputs.find_images([str(root / "images")]).names]


def test_batches_begin_at_the_same_places_wherever_it_starts(root) -> None:
    found = inputs.find_images([str(root / "images")])
    prepare = lambda image: resize_and_crop(image, 16, 1.0)  # noqa: E731
    whole = list(inputs.batches(found, prepare, 5))
    assert [(b.start, b.stop) for b in whole] == [(0, 5), (5, 10), (10, 12)]
    rest = list(inputs.batches(found, prepare, 5, start=5))
    for got, want in zip(rest, whole[1:]):
        np.testing.assert_array_equal(got.pixels, want.pixels)
        assert got.names == want.names
        assert got.sizes == want.sizes


@pytest.mark.slow
def test_killed_for_real_and_memory_stays_flat(root, tmp_path) -> None:
    """After SIGKILL in the middle of 3,000 images the bytes are the same; memory is that of 300 images, to 30 MB."""
    folder = tmp_path / "many"
    folder.mkdir()
    data = (root / "images/red/000.png").read_bytes()
    for i in range(3000):
        (folder / f"{i:05d}.png").write_bytes(data)
    code = (
        "import sys, resource; from lit_vision.cli.main import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )

    def start(out: Path, images: Path) -> subprocess.Popen:
        arguments = ["predict", str(images), "--model", str(root / "run"), "--out", str(out), "--batch_size", "8"]
        return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)

    few = tmp_path / "few"
    few.mkdir()
    for i in range(300):
        (few / f"{i:05d}.png").write_bytes(data)
    small = int(start(tmp_path / "few.csv", few).communicate()[0].split()[-1])
    large = int(start(tmp_path / "whole.csv", folder).communicate()[0].split()[-1])
    assert large - small < 30_000  # KB
    victim, part = start(tmp_path / "o.csv", folder), tmp_path / "o.csv.part"
    while not (part.exists() and part.stat().st_size > 20_000):
        assert victim.poll() is None
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "o.csv").exists()
    assert start(tmp_path / "o.csv", folder).wait() == 0
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
