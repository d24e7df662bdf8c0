"""lit-vision restore: tiles, what files keep, masks, in-painting by MAE, kill and resume, export."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from toy_restorer import write_restorer_run

import lit_vision
from lit_vision.cli.main import main
from lit_vision.convert.export_model import export_model
from lit_vision.errors import UserError
from lit_vision.methods import MAE
from lit_vision.methods.mae.network import patchify
from lit_vision.predict import restore
from lit_vision.predict.full_depth import read_full
from lit_vision.predict.mae_fill import fill, open_mae, tiled_mae
from lit_vision.predict.models import load_model
from lit_vision.predict.restoration import tiled_restorer
from lit_vision.predict.tiles import TiledNetwork, run_tiled

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


def picture(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top + 1, (height, width, channels), dtype=dtype)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("restorers")
    write_restorer_run(place / "noise")
    write_restorer_run(place / "larger", degradations=[], scale=2)
    write_restorer_run(place / "holes", kind="resnet", degradations=["rectangle_holes 0.2"])
    write_restorer_run(place / "gray", backbone_args={"in_chans": 1, "depth": 2, "width": 3}, mean=[0.5], std=[0.2])
    gray = {"mean": [0.5], "std": [0.2]}
    for name, normalized, more in (("mae", False, {}), ("mae-normalized", True, {}), ("mae-gray", False, gray)):
        torch.manual_seed(0)
        sizes = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
        mae = MAE(
            "vit_tiny_patch16_224", {**VIT, "in_chans": 1 if more else 3}, **sizes, **more, norm_pix_loss=normalized
        )
        (place / name / "checkpoints").mkdir(parents=True)
        stored = {"state_dict": mae.state_dict(), "hyper_parameters": dict(mae.hparams)}
        torch.save({**stored, "pytorch-lightning_version": "2.6.6"}, place / name / "checkpoints/last.ckpt")
    return place


@pytest.mark.parametrize(("run", "sizes"), [("noise", (32, 7)), ("larger", (24, 24)), ("holes", (96, 88))])
def test_tiles_equal_the_whole_inside_the_reach(runs, run: str, sizes: tuple[int, int]) -> None:
    model = load_model(runs / run, "cpu")
    pixels, holes = picture(150, 117), np.random.default_rng(1).random((150, 117)) < 0.3
    for tile in sizes:
        network = tiled_restorer(model, max(tile, 16))
        assert network.reach is not None
        whole = TiledNetwork(network.run, 512, network.reach, network.stride, network.scale)
        found, wanted = (run_tiled(one, pixels, holes if run == "holes" else None) for one in (network, whole))
        assert found.shape == (150 * network.scale, 117 * network.scale, 3)
        assert np.abs(found.astype(int) - wanted).max() <= 1  # a level where rounding falls the other way
        assert (found != wanted).mean() < 0.001
        assert not np.array_equal(found[:150, :117], pixels)


def test_tiles__blended_where_a_network_sees_everything_and_16_bits_stay() -> None:
    pixels = picture(70, 53, 1, np.uint16)
    same = TiledNetwork(lambda tile, missing: tile, 16, None, 4, fixed=True)
    assert np.array_equal(run_tiled(same, pixels), pixels)
    level = iter(range(10**6))
    uneven = TiledNetwork(lambda tile, missing: np.full_like(tile, 0.4 + 0.1 * (next(level) % 2)), 16, None)
    steps = np.abs(np.diff(run_tiled(uneven, picture(16, 80, 1)).astype(int), axis=1))
    assert steps.max() <= 255 * 0.1 / 4 + 1  # tiles of other brightness meet over four pixels, without an edge


def test_files__orientation_alpha_profile_and_depth_are_kept_or_refused_by_name(runs, tmp_path, capsys) -> None:
    source, profile = tmp_path / "in", b"sixteen bytes..." + b"RGB " + b"a profile's rest"
    source.mkdir()
    turned = Image.fromarray(picture(20, 30))
    exif = turned.getexif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    turned.save(source / "turned.jpg", exif=exif.tobytes(), icc_profile=profile, quality=95)
    Image.fromarray(picture(18, 22, 4), "RGBA").save(source / "alpha.png")
    Image.fromarray(picture(18, 22, 4), "RGBA").save(source / "turned-alpha.png", exif=exif.tobytes())
    Image.fromarray(picture(18, 22, 1)[..., 0]).save(source / "gray.png", icc_profile=profile)
    gray_profile = profile.replace(b"RGB ", b"GRAY")
    Image.fromarray(picture(18, 22, 1, np.uint16)[..., 0]).save(source / "deep.png", icc_profile=gray_profile)
    Image.fromarray(picture(18, 22)).save(source / "b.tif", exif=exif.tobytes(), icc_profile=profile)
    Image.fromarray(picture(18, 22, 1)[..., 0].astype(np.float32)).save(source / "float.tif")
    (source / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert main(["restore", "--model", str(runs / "larger"), str(source), "--out", str(out), "--compare"]) == 0
    assert "6 images, 2 skipped" in capsys.readouterr().out
    upright = Image.open(out / "turned.png")
    assert (upright.size, upright.info["icc_profile"]) == ((40, 60), profile)
    assert (upright.getexif().get(0x0112), upright.getexif()[0x010F]) == (None, "a camera")
    alpha = Image.open(out / "alpha.png")
    assert (alpha.mode, alpha.size) == ("RGBA", (44, 36))
    turned_alpha = np.asarray(Image.open(out / "turned-alpha.png"))[..., 3]
    assert np.array_equal(turned_alpha, np.rot90(np.asarray(alpha)[..., 3], -1))
    assert (Image.open(out / "gray.png").mode, Image.open(out / "gray.png").info.get("icc_profile")) == ("L", None)
    assert read_full((out / "deep.png").read_bytes()).pixels.dtype == np.uint16
    assert Image.open(out / "deep.png").info["icc_profile"] == gray_profile
    tiff = Image.open(out / "b.png")
    assert (tiff.size, tiff.info["icc_profile"], dict(tiff.getexif())) == ((36, 44), profile, {0x010F: "a camera"})
    assert Image.open(out / "compare/alpha.png").size == (2 * 44 + 8, 36)
    skipped = {row["path"]: row["reason"] for row in csv.DictReader(open(out / "restored.csv.skipped.csv"))}  # noqa: SIM115
    assert set(skipped) == {"broken.png", "float.tif"}
    assert "float32" in skipped["float.tif"]


def test_gray_models_restore_each_channel(runs) -> None:
    network, pixels = tiled_restorer(load_model(runs / "gray", "cpu")), picture(20, 24)
    restored = run_tiled(network, pixels)
    for channel in range(3):
        alone = run_tiled(network, pixels[..., channel : channel + 1])
        assert np.abs(restored[..., channel : channel + 1].astype(int) - alone).max() <= 1


def test_killed_and_resumed__the_same_files(runs, tmp_path, monkeypatch, capsys) -> None:
    names = [f"{letter}.png" for letter in "abcd"]
    (tmp_path / "in").mkdir()
    for number, name in enumerate(names):
        Image.fromarray(picture(20 + number, 24)).save(tmp_path / "in" / name)
    arguments = ["restore", "--model", str(runs / "noise"), str(tmp_path / "in"), "--out"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    real, calls = restore._restore_one, []

    def killed(*given) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(restore, "_restore_one", killed)
    assert main([*arguments, str(tmp_path / "part")]) == 130
    assert "stopped after 2 of 4" in capsys.readouterr().err
    assert not (tmp_path / "part/restored.csv").exists()
    assert main([*arguments, str(tmp_path / "part")]) == 0
    assert "continuing after 2 of 4" in capsys.readouterr().out
    assert len(calls) == 5
    found, wanted = ({p.name: p.read_bytes() for p in (tmp_path / x).iterdir()} for x in ("part", "whole"))
    assert found == wanted
    assert set(found) == {*names, "restored.csv"}
    assert main([*arguments, str(tmp_path / "part")]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_nothing_is_overwritten_that_the_run_did_not_write(runs, tmp_path, capsys) -> None:
    """Neither a file of the output folder, nor an image by a comparison, nor a result by a comparison."""
    folder = tmp_path / "photos"
    for name in ("x.png", "compare/x.png", "other/x.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(picture(9, 8)).save(folder / name)
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    start = ["restore", "--model", str(runs / "noise"), "--device", "cpu"]
    for words, wanted in (
        ([f"{folder}/x.png", "--out", f"{folder}/other"], "exists already"),
        ([f"{folder}/compare/x.png", "--out", str(folder), "--compare", "--overwrite"], "one of the images"),
        ([str(folder), "--out", str(tmp_path / "out"), "--compare"], "the comparison of x.png"),
        ([str(folder / "no\nname.png"), "--out", str(tmp_path / "out")], "no such file"),
    ):
        assert main([*start, *words]) == 1
        error = capsys.readouterr().err
        assert wanted in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert main([*start, *[f"{folder}/x.png"] * 2, "--out", f"{folder}/other", "--overwrite"]) == 0
    assert "other: 1 images" in capsys.readouterr().out


def mask_of(size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[5:14, 8:20] = 255
    return mask


@pytest.mark.parametrize("run", ["holes", "mae", "mae-gray"])
def test_masks__known_pixels_stay_and_missing_ones_change_nothing(runs, tmp_path, run: str) -> None:
    pixels, mask = picture(37, 45), mask_of((37, 45))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/x.png")
    other = np.where(mask[..., None] > 0, 255 - pixels, pixels)
    results = []
    for number, (image, given) in enumerate(((pixels, "mask.png"), (other, "masks"))):
        Image.fromarray(image).save(tmp_path / "x.bmp")
        out = tmp_path / f"out{number}"
        lit_vision.restore_images(runs / run, str(tmp_path / "x.bmp"), out, mask=tmp_path / given, device="cpu")
        results.append(np.asarray(Image.open(out / "x.png")))
    assert np.array_equal(results[0], results[1])  # what is under the mask is not looked at
    far = np.ones(mask.shape, bool)
    far[5 - 3 : 14 + 3, 8 - 3 : 20 + 3] = False
    assert np.array_equal(results[0][far], pixels[far])
    assert (results[0][mask > 0] != pixels[mask > 0]).any()


def test_masks__wrong_ones_are_refused(runs, tmp_path, capsys) -> None:
    Image.fromarray(picture(37, 45)).save(tmp_path / "x.png")
    Image.fromarray(mask_of((37, 44))).save(tmp_path / "small.png")
    start = ["restore", str(tmp_path / "x.png"), "--out", str(tmp_path / "out")]
    for model, mask, wanted in (
        ("noise", ["--mask", str(tmp_path / "small.png")], "not trained with holes"),
        ("holes", [], "--mask"),
        ("holes", ["--mask", str(tmp_path / "small.png")], "none could be restored"),
        ("mae-normalized", ["--mask", str(tmp_path / "small.png")], "norm_pix_loss"),
        ("mae", [], "not for restoration"),
        ("mae", ["--mask", str(tmp_path / "small.png"), "--tile", "64"], "--tile 64"),
    ):
        assert main([*start, "--model", str(runs / model), *mask]) == 1
        assert wanted in capsys.readouterr().err


def test_mae_fill__is_the_prediction_of_the_touched_patches(runs) -> None:
    mae = open_mae(runs / "mae/checkpoints/last.ckpt")
    images, missing = torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.bool)
    missing[0, 3:9, 2] = True  # rows 0 to 2 of the first column of patches
    missing[1] = True  # everything
    with torch.no_grad():
        filled = fill(mae, images, missing)
        noise = torch.tensor([[1.0 if n in (0, 4, 8) else 0.0 for n in range(16)]])
        mae.num_keep = 13
        _, predicted, hidden = mae(images[:1], noise)
    patches = torch.where(hidden[..., None] > 0, predicted, patchify(images[:1], 4))
    torch.testing.assert_close(patchify(filled[:1], 4), patches)
    assert bool(filled.isfinite().all())
    assert tiled_mae(mae).needs_holes


@pytest.mark.slow
def test_export__onnx_gives_the_same_files(runs, tmp_path) -> None:
    Image.fromarray(picture(50, 61)).save(tmp_path / "x.png")
    Image.fromarray(mask_of((50, 61))).save(tmp_path / "mask.png")
    for run, options in (("noise", {}), ("holes", {"mask": tmp_path / "mask.png"})):
        exported = export_model(runs / run, "onnx", out=tmp_path / f"{run}.onnx")
        assert float(exported.notes[0].rpartition(" ")[2]) < 1e-4
        found = []
        for source in (runs / run, exported.path):
            out = tmp_path / f"{run}{len(found)}"
            lit_vision.restore_images(source, str(tmp_path / "x.png"), out, device="cpu", **options)
            found.append(np.asarray(Image.open(out / "x.png")).astype(int))
        assert np.abs(found[0] - found[1]).max() <= 1


@pytest.mark.slow
def test_24_megapixels_take_less_than_3_gb(runs, tmp_path) -> None:
    Image.fromarray(np.tile(picture(400, 600), (10, 10, 1))).save(tmp_path / "x.jpg")
    write_restorer_run(tmp_path / "run", backbone_args={"depth": 3, "width": 48})  # more layers are not more memory
    words = ["restore", "--model", str(tmp_path / "run"), str(tmp_path / "x.jpg"), "--out", str(tmp_path / "out")]
    program = (
        "import resource, sys\nfrom lit_vision.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    found = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert int(found.stdout.split()[-1]) < 3 * 1024**2  # KiB
    assert Image.open(tmp_path / "out/x.png").size == (6000, 4000)


def test_predict_names_the_command_and_export_the_formats(runs, tmp_path) -> None:
    for other in ("timm", "hub"):
        with pytest.raises(UserError, match="safetensors"):
            export_model(runs / "noise", other, out=tmp_path / f"{other}.safetensors")
    Image.fromarray(picture(20, 20)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="lit-vision restore"):
        lit_vision.load(runs / "noise", "cpu").predict(tmp_path / "x.png")
