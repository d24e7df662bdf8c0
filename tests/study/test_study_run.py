"""Small studies through the command line: written files, reuse by a second run, stop and continue, wrong usage."""

import csv
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from lit_vision.cli.main import main
from lit_vision.errors import UsageError
from lit_vision.results.schema import read_result
from lit_vision.study import chosen_labels, training
from lit_vision.study.image_checks import check_run_dir
from lit_vision.study.images import read_images
from lit_vision.study.presets import ON_LABELS, preset_for
from lit_vision.study.run_study import _text, run_study
from lit_vision.study.verify import verify

FIXED = ["--epochs", "mae=1,simclr=1,4=2,20=1", "--labels", "4,20", "--seeds", "2,1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bars, upright or lying, 16 pixels: 20 of each to learn from, 10 to test, 6 without a label."""
    root, rng = tmp_path_factory.mktemp("bars"), np.random.default_rng(0)
    for split, count in (
        ("train/lying", 20),
        ("train/upright", 20),
        ("test/lying", 10),
        ("test/upright", 10),
        ("unlabeled", 6),
    ):
        (root / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 80, (16, 16, 3), np.uint8)
            at = rng.integers(3, 12)
            image[at : at + 2] = 255
            cv2.imwrite(str(root / split / f"{i}.png"), image.transpose(1, 0, 2) if "upright" in split else image)
    return root


def _study(folder, run, *more: str) -> int:
    return main(["study", str(folder), "--run_dir", str(run), *FIXED, *more])


def test_study__writes_every_cell_a_report_and_pictures_and_keeps_them(folder, tmp_path, capsys, monkeypatch) -> None:
    assert _study(folder, tmp_path, "--choose", "auto") == 0
    assert str(tmp_path / "report.md") in capsys.readouterr().out
    result = read_result(tmp_path / "results.json")
    cells = {(c["init"], c["protocol"], c["labels"]): c for c in result["cells"]}
    inits = {"pixels": ("logreg", "knn"), "scratch-cnn": ("finetune",), "scratch-vit": ("finetune",)}
    inits |= dict.fromkeys(("mae", "simclr"), ("linear", "knn", "finetune"))
    counts = {c["labels"] for c in result["cells"]}
    assert len(counts) == 4  # those asked for, and two between them for what trains no network
    wanted = {(s, p, n) for s, protocols in inits.items() for p in protocols for n in counts}
    assert set(cells) == {(s, p, n) for s, p, n in wanted if p != "finetune" or n in (4, 20)}
    assert all(len(c["values"]) == {4: 2, 20: 1}.get(c["labels"], 2) for c in result["cells"])
    text = (tmp_path / "report.md").read_text()
    assert str(folder) not in text
    for name in ("accuracy", "pretraining", "reconstructions", "confusion", "reasons"):
        assert (tmp_path / "samples" / f"{name}.png").stat().st_size > 1000
    _the_model_answers_as_its_cell(folder, tmp_path, text)

    def no_training(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train", no_training)
    monkeypatch.setattr(chosen_labels, "suggest", no_training)
    assert _study(folder, tmp_path, "--choose", "auto") == 0
    again = read_result(tmp_path / "results.json")
    assert [c["values"] for c in again["cells"]] == [c["values"] for c in result["cells"]]
    assert again["chosen"] == result["chosen"] != []
    assert "## Choosing what to label" in text
    assert again["seconds"] > sum(c["seconds"] for c in result["cells"])  # not those of the second run alone
    with pytest.raises(AssertionError, match="trained again"):  # another recipe is another study
        _study(folder, tmp_path, "--rotation", "10")


def _the_model_answers_as_its_cell(folder, run, text) -> None:
    """model.safetensors, used as a user would, gives the probabilities that the study measured."""
    init, protocol, labels = re.search(r"([\w-]+), (finetune|linear), (\d+) labels, seed 0: test images", text).groups()
    kept = np.load(run / "cells" / f"{init}-{protocol}-{labels}-0.npy").astype(float)
    out = run / "answers.csv"
    assert main(["predict", "--model", str(run / "model.safetensors"), str(folder / "test"), "--out", str(out)]) == 0
    rows = sorted(csv.DictReader(out.open()), key=lambda row: row["path"])
    images = read_images(folder)
    kept = kept[np.argsort([path.removeprefix("test/") for path in images.test_paths])]
    assert [float(row["score"]) for row in rows] == pytest.approx(kept.max(1), abs=0.01)  # half precision in between
    sure = np.flatnonzero(np.abs(kept[:, 0] - kept[:, 1]) > 0.02)
    assert [rows[i]["label"] for i in sure] == [images.classes[kept[i].argmax()] for i in sure]


@pytest.mark.slow
def test_study__stopped_and_continued_gives_the_same_bits(folder, tmp_path, monkeypatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _study(folder, whole)
    train, calls = training.train, []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8:  # after two pre-trainings and five trainings on labels
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(training, "train", stopped)
    assert _study(folder, cut) == 130
    monkeypatch.setattr(training, "train", train)
    assert _study(folder, cut) == 0
    values = lambda run: [c["values"] for c in read_result(run / "results.json")["cells"]]  # noqa: E731
    assert values(cut) == values(whole)
    answers = {path.name: path.read_bytes() for path in (whole / "cells").glob("*.npy")}
    assert answers == {path.name: path.read_bytes() for path in (cut / "cells").glob("*.npy")}
    assert len(json.loads((cut / "weights" / "simclr.json").read_text())["losses"]) == 1


@pytest.mark.slow
def test_protocols__adapters_train_where_the_network_can_take_them_and_are_verified(folder, tmp_path) -> None:
    asked = ["lora", "bias", "last-1", "prompt-shallow", "head+norm"]
    arguments = ["--inits", "mae,simclr", "--epochs", "mae=1,simclr=1,4=1", "--labels", "4", "--seeds", "1"]
    arguments += ["--keep_weights", "1", "--pretrained", "off", "--protocols", ",".join(asked)]
    run = tmp_path / "run"
    assert main(["study", str(folder), "--run_dir", str(run), *arguments]) == 0
    cells = read_result(run / "results.json")["cells"]
    trained = {(c["init"], c["protocol"]) for c in cells if c["protocol"] in ON_LABELS}
    assert trained == {
        ("scratch-cnn", "finetune"),
        ("scratch-vit", "finetune"),
        *(("mae", protocol) for protocol in ("finetune", *asked)),
        *(("simclr", protocol) for protocol in ("finetune", "bias", "head+norm", "last-1")),
    }
    assert "lora" in (run / "report.md").read_text()
    images = read_images(folder)
    for encoder in (run / "weights").glob("*.safetensors"):
        encoder.rename(run / "cells" / encoder.name)
    checks = list(verify(cells, images, preset_for(images.size), run / "cells"))
    assert {c.key.protocol for c in checks} >= {"finetune", *asked}
    assert all(check.holds for check in checks)


@pytest.mark.slow
def test_pretrain_on__another_folder_gives_the_encoders_and_nothing_else(folder, tmp_path) -> None:
    other, rng = tmp_path / "other", np.random.default_rng(1)
    other.mkdir()
    for i in range(12):  # flat, no classes
        cv2.imwrite(str(other / f"{i}.png"), rng.integers(0, 255, (20, 24, 3), np.uint8))
    arguments = [
        "--epochs",
        "simclr=1,4=1",
        "--labels",
        "4",
        "--seeds",
        "1",
        "--inits",
        "simclr",
        "--pretrained",
        "off",
    ]
    own, far = tmp_path / "own", tmp_path / "far"
    assert main(["study", str(folder), "--run_dir", str(own), *arguments]) == 0
    assert main(["study", str(folder), "--pretrain_on", str(other), "--run_dir", str(far), *arguments]) == 0
    own, far = read_result(own / "results.json"), read_result(far / "results.json")
    values = lambda r: {c["init"]: c["values"] for c in r["cells"] if c["protocol"] == "finetune"}  # noqa: E731
    assert own["weights"]["simclr"] != far["weights"]["simclr"]
    assert values(own)["scratch-cnn"] == values(far)["scratch-cnn"]
    assert "12 images of another folder" in (tmp_path / "far" / "report.md").read_text()
    assert main(["study", str(folder), "--run_dir", str(tmp_path / "far"), *arguments]) == 0  # the same folder again
    again = read_result(tmp_path / "far" / "results.json")
    assert [cell["values"] for cell in again["cells"]] == [cell["values"] for cell in own["cells"]]
    assert again["weights"]["simclr"] != far["weights"]["simclr"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "ROOT"),
        (["--pretrain_on", "A"], "ROOT"),
        (["A", "B"], "B"),
        (["A", "--adapt_to", "B"], "--adapt_to"),
        (["A", "--adapt-to", "B"], "--adapt-to"),
        (["A", "--starts", "mae"], "--starts"),
        (["A", "--fewer", "mae=1"], "--fewer"),
        (["A", "--pretrain-on", "B"], "--pretrain-on"),
        (["A", "--budget", "long"], "--budget"),
        (["A", "--size", "0"], "--size"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, named, capsys) -> None:
    assert main(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_help_names_what_runs_both_directions(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    assert "experiments/transfer.py --pretrain_on A --adapt_to B" in " ".join(capsys.readouterr().out.split())


def test_read_images__holds_out_a_quarter_where_there_is_no_test_split(folder, tmp_path) -> None:
    (tmp_path / "lying").symlink_to(folder / "train" / "lying")
    (tmp_path / "upright").symlink_to(folder / "train" / "upright")
    images = read_images(tmp_path)
    assert (len(images.pool), len(images.test)) == (30, 10)
    assert not set(images.paths) & set(images.test_paths)
    assert np.bincount(images.test_labels).tolist() == [5, 5]
    assert "held out" in images.notes[0]


def test_read_images__unlabelled_images_join_the_pool_behind_the_labelled_ones(folder) -> None:
    images = read_images(folder)
    assert images.labels.tolist() == [0] * 20 + [1] * 20 + [-1] * 6
    assert images.subset(10, seed=1).max() < 40
    small, large = set(images.subset(4, 7)), set(images.subset(20, 7))
    assert small < large


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--inits", "moco"),
        ("--budget", "0"),
        ("--rotation", "200"),
        ("--epochs", "80=x"),
        ("--seeds", "1,2,3"),
        ("--seeds", "two"),
        ("--seeds", "0"),
        ("--epochs", "mae=0"),
        ("--epochs", "moco=1"),
        ("--epochs", "5=1"),
        ("--max_seeds", "moco=1"),
        ("--max_seeds", "mae=0"),
        ("--keep_weights", "-1"),
        ("--protocols", "magic"),
        ("--labels", "some"),
        ("--labels", "0"),
        ("--size", "17"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_code_2(folder, tmp_path, capsys, flag, value) -> None:
    options = {"--run_dir": str(tmp_path / "run"), "--labels": "4", "--pretrained": "off", flag: value}
    assert main(["study", str(folder), *(word for option in options.items() for word in option)]) == 2
    error = capsys.readouterr().err
    assert flag in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--budget", "inf"),
        ("--labels", "foo"),
        ("--labels", "0%"),
        ("--labels", "inf%"),
        ("--seeds", "0"),
        ("--epochs", "mae=0"),
        ("--max_seeds", "mae=0"),
        ("--keep_weights", "-1"),
        ("--cache_gb", "nan"),
        ("--frozen_size", "0"),
        ("--inits", "simclr@mae"),
    ],
)
def test_a_list_is_checked_before_the_folder_is_read(tmp_path, capsys, flag, value) -> None:
    assert main(["study", str(tmp_path / "none"), "--run_dir", str(tmp_path / "run"), flag, value]) == 2
    output = capsys.readouterr()
    assert flag in output.err
    assert output.out == ""


def test_a_run_folder_among_the_images_is_refused_before_its_figures_are_taken_for_a_class(
    folder, tmp_path, capsys, monkeypatch
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "set")
    for words in (["."], ["../set", "--run_dir", "run"], [str(folder), "--pretrain_on", "."]):
        assert main(["study", *words]) == 2
        assert "--run_dir" in capsys.readouterr().err
    check_run_dir(folder / "runs", folder)  # beside train and test it is left out


def test_a_plan_is_looked_for_before_the_folder_is_read(tmp_path, capsys) -> None:
    words = ["--run_dir", str(tmp_path / "run"), "--plan", str(tmp_path / "plan.jsonl")]
    assert main(["study", str(tmp_path / "none"), *words]) == 1
    output = capsys.readouterr()
    assert f"--plan {tmp_path / 'plan.jsonl'}: no such file" in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("given", "text"), [("1%,10%", "1%,10%"), (200, "200"), (["5-shot", 80, "all"], "5-shot,80,all"), ((5, 3), "5,3")]
)
def test_lists_of_python_are_those_of_the_command_line(given, text) -> None:
    assert _text(given) == text


def test_a_wrong_item_of_a_python_list_is_named(tmp_path) -> None:
    for options in ({"inits": ["mae", "dino"]}, {"labels": [0]}, {"seeds": [5, 0]}, {"protocols": ("lora", "none")}):
        with pytest.raises(UsageError, match=f"^--{next(iter(options))}"):
            run_study(tmp_path / "none", run_dir=tmp_path / "run", **options)


def test_preset__rotation_reaches_every_training() -> None:
    preset = preset_for(32, 180)
    assert all(
        views["rotation"] == 180 for views in (preset.simclr_views, preset.mae_views, *preset.train_views.values())
    )


def test_preset__a_short_fine_tuning_takes_smaller_steps() -> None:
    preset = preset_for(32)
    rates = [preset.options("simclr", "finetune", steps)["lr"] for steps in (10, 150, 300, 3000)]
    assert rates == pytest.approx([1e-3, 1.5e-3, 3e-3, 3e-3])
    assert preset.options("scratch-cnn", "finetune", 10) == preset.options("scratch-cnn", "finetune", 3000)


def test_preset__every_protocol_has_its_values() -> None:
    for size in (32, 96):
        preset = preset_for(size)
        assert set(preset.adapt) == set(ON_LABELS) - {"finetune"}
        assert all(preset.options("mae", one)["tune"] == one for one in preset.adapt)


def test_preset__the_hashed_fields_of_an_init_are_what_its_trainings_read() -> None:
    preset = preset_for(32)
    inits = ("mae", "simclr", "lejepa", "scratch-cnn", "scratch-vit", "timm:resnet18")
    changes = {  # a change of the preset: inits whose fields change
        "mae": {"mae"},
        "mae_views": {"mae"},
        "simclr": {"simclr"},
        "simclr_views": {"simclr"},
        "lejepa": {"lejepa"},
        "lejepa_views": {"lejepa"},
        "vit": {"mae", "scratch-vit"},
        "cnn": {"simclr", "lejepa", "scratch-cnn"},
        "scratch_factor": {"scratch-cnn", "scratch-vit"},
        "batch_size": set(inits),
    }
    values = {"vit": replace(preset.vit, backbone="vit_small_patch16_224"), "scratch_factor": 2, "batch_size": 8}
    values |= {"lejepa_views": {"crop_scale": [0.5, 1.0]}}
    values["cnn"] = replace(preset.cnn, backbone="resnet34")
    for name, changed in changes.items():
        other = replace(preset, **{name: values.get(name, {})})
        for init in inits:
            differs = other.fields([init], ["finetune", "bias"]) != preset.fields([init], ["finetune", "bias"])
            assert differs == (init in changed), (name, init)
    for field in ("tune", "train_views", "scratch"):
        content = getattr(preset, field)
        for network, users in (("cnn", {"simclr", "lejepa", "scratch-cnn"}), ("vit", {"mae", "scratch-vit"})):
            users = users & ({"scratch-cnn", "scratch-vit"} if field == "scratch" else set(inits))
            users -= {"scratch-cnn", "scratch-vit"} if field == "tune" else set()
            other = replace(preset, **{field: {**content, network: {**content[network], "lr": 0.5}}})
            changed = {i for i in inits if other.fields([i], ["finetune"]) != preset.fields([i], ["finetune"])}
            assert changed == users, (field, network)
    more = replace(preset, adapt={**preset.adapt, "new": {"tune": "new"}})
    assert more.fields(inits, ["finetune", "bias"]) == preset.fields(inits, ["finetune", "bias"])
    other = replace(preset, adapt={**preset.adapt, "bias": {"tune": "bias"}})
    assert other.fields(["mae"], ["finetune"]) == preset.fields(["mae"], ["finetune"])
    assert other.fields(["mae"], ["bias"]) != preset.fields(["mae"], ["bias"])
