"""lit-vision fewshot: the table is that of the functions behind it, and wrong commands print one line."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_dense import make_detector
from toy_models import CNN, TEXT, make_classifier, write_images, write_run

from lit_vision.cli.main import main
from lit_vision.data.captions import train_tokenizer
from lit_vision.data.splits import sample_per_class
from lit_vision.data.views.decode import decode
from lit_vision.data.views.views import resize_and_crop
from lit_vision.evaluation.few_shot import class_prototypes, nearest_prototype
from lit_vision.methods.image_text.network import ImageTextNetwork
from lit_vision.methods.image_text.prompt_learning import LearnedPrompts, learn_contexts
from lit_vision.predict.zero_shot import class_vectors, load_image_text


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    write_run(folder / "run", make_classifier())
    write_run(folder / "detector", make_detector())
    write_images(folder / "data" / "train", 18)
    write_images(folder / "data" / "test", 9, seed=1)
    return folder


def _run(place: Path, *more: str, root: str = "data", model: str = "run") -> int:
    return main(["fewshot", str(place / root), "--model", str(place / model), "--device", "cpu", *more])


def test_fewshot__is_the_nearest_prototype_of_the_same_draw(place, tmp_path, capsys) -> None:
    assert _run(place, "--shots", "1,3", "--seeds", "2", "--out", str(tmp_path / "o.csv")) == 0
    printed = capsys.readouterr().out
    assert "| prototypes |" in printed
    assert "Top-1 on 9 images of test, mean ± sd (2 draws)" in printed
    rows = list(csv.DictReader((tmp_path / "o.csv").open()))
    assert len(rows) == 2 * 2 * 2
    method = make_classifier()

    def features(split: str) -> tuple[torch.Tensor, np.ndarray]:
        paths = sorted((place / "data" / split).rglob("*.png"))
        names = sorted({p.parent.name for p in paths})
        pixels = np.stack([resize_and_crop(decode(p.read_bytes()), 16, 1.0) for p in paths])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        images = (images - method.mean[:, None, None]) / method.std[:, None, None]
        with torch.inference_mode():
            return method.backbone(images), np.array([names.index(p.parent.name) for p in paths])

    (train, labels), (test, truth) = features("train"), features("test")
    for seed in range(2):
        chosen = sample_per_class(labels, 3, seed)
        answer = nearest_prototype(class_prototypes(train[chosen], labels[chosen], 3), test).argmax(1).numpy()
        (row,) = [r for r in rows if (r["method"], r["shots"], r["seed"]) == ("prototypes", "3", str(seed))]
        assert float(row["top1"]) == pytest.approx((answer == truth).mean(), abs=1e-6)
    assert _run(place, "--out", str(tmp_path / "t.md"), "--shots", "2", "--seeds", "1") == 0
    assert "2 per class" in (tmp_path / "t.md").read_text()


def test_fewshot__takes_the_names_of_the_splits_and_the_quarantine_list_of_the_run(place, tmp_path, capsys) -> None:
    run = tmp_path / "own"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.ckpt").symlink_to(place / "run/checkpoints/last.ckpt")
    (tmp_path / "bad.txt").write_text("exam/red/000.png\n")
    names = f"{{root: x, train_split: learn, test_split: exam, quarantine: {tmp_path / 'bad.txt'}}}"
    (run / "config.yaml").write_text(f"data: {{class_path: lit_vision.data.ImageFolderDataModule, init_args: {names}}}")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/learn").symlink_to(place / "data/train")
    (tmp_path / "set/exam").symlink_to(place / "data/test")
    options = ["--shots", "1", "--seeds", "1", "--device", "cpu"]
    assert main(["fewshot", str(tmp_path / "set"), "--model", str(run), *options]) == 0
    assert "Top-1 on 8 images of exam" in capsys.readouterr().out
    assert main(["fewshot", str(place / "data"), "--model", str(run), *options]) == 0  # another set: the usual names
    assert "Top-1 on 9 images of test" in capsys.readouterr().out


def test_fewshot__of_a_model_of_images_and_captions(place, tmp_path, capsys) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a photo of a blue, green, red."], 300, 12)
    method = ImageTextNetwork({"backbone": "resnet18", "backbone_args": CNN, **TEXT, "tokenizer_json": tokenizer.json})
    hyper = {**method.hparams}
    stored = {"state_dict": method.state_dict(), "hyper_parameters": hyper, "card": {"size": 16}}
    torch.save({**stored, "pytorch-lightning_version": "2.6.6"}, tmp_path / "text.ckpt")
    out, model = str(tmp_path / "o.csv"), str(tmp_path / "text.ckpt")
    assert _run(place, "--shots", "1", "--seeds", "2", "--out", out, model=model) == 0
    printed = capsys.readouterr().out
    named = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    assert named[-4:] == ["zero-shot", "coop", "prototypes", "logreg"]
    network, _, _ = load_image_text(model)
    names = ["blue", "green", "red"]
    contexts = int(printed.split("coop: ")[1].split()[0])
    assert contexts == 12 - int(tokenizer.encode([f"{name}." for name in names])[1].sum(1).max())

    def vectors(split: str) -> tuple[torch.Tensor, np.ndarray]:
        paths = sorted((place / "data" / split).rglob("*.png"))
        pixels = np.stack([resize_and_crop(decode(p.read_bytes()), 16, 1.0) for p in paths])
        images = (torch.from_numpy(pixels) / 255 - network.mean) / network.std
        with torch.no_grad():
            return network(images.permute(0, 3, 1, 2)), np.array([names.index(p.parent.name) for p in paths])

    (train, labels), (test, truth) = vectors("train"), vectors("test")
    table = csv.DictReader(Path(out).read_text().splitlines())
    rows = {(r["method"], r["shots"], r["seed"]): float(r["top1"]) for r in table}
    assert len(rows) == 4 * 2
    prompts = LearnedPrompts(network, names, contexts, seed=1)
    chosen = sample_per_class(labels, 1, 1)
    learn_contexts(prompts, train[chosen], torch.from_numpy(labels[chosen]), 50, seed=1)
    for method, found in (
        ("zero-shot", class_vectors(network.encode_texts, names)),
        ("coop", prompts.class_vectors().detach()),
    ):
        accuracy = ((test @ found.T).argmax(1).numpy() == truth).mean()
        assert rows[method, "1", "1"] == pytest.approx(accuracy, abs=1e-6)
    assert _run(place, "--shots", "1", "--seeds", "1", "--methods", "logreg,zero-shot", model=model) == 0
    table = capsys.readouterr().out
    assert [name in table for name in ("zero-shot", "coop", "prototypes", "logreg")] == [True, False, False, True]
    hyper["tokenizer_json"] = None  # trained on tokens of one's own
    torch.save({**stored, "pytorch-lightning_version": "2.6.6"}, tmp_path / "text.ckpt")
    assert _run(place, "--shots", "1", "--seeds", "1", model=model) == 0
    table = capsys.readouterr().out
    assert "without zero-shot and coop: the model has no tokenizer" in table
    assert "| logreg " in table
    assert _run(place, "--shots", "1", "--seeds", "1", "--methods", "coop", model=model) == 1


BROKEN = {
    "no folder": (["--shots", "1"], {"root": "nowhere"}, 1, "nowhere"),
    "no model": ([], {"model": "nothing"}, 1, "/nothing"),
    "no classes": ([], {"root": "data/train/red"}, 1, "class"),
    "no test split": ([], {"root": "alone"}, 1, "/alone"),
    "words as shots": (["--shots", "many"], {}, 2, "--shots many"),
    "no shot": (["--shots", "0,1"], {}, 2, "--shots 0,1"),
    "too many shots": (["--shots", "50"], {}, 1, "50"),
    "an unknown method": (["--methods", "coop,svm"], {}, 2, "--methods coop,svm"),
    "no text tower": (["--methods", "coop,logreg"], {}, 1, "--methods coop"),
    "no seed": (["--seeds", "0"], {}, 2, "--seeds 0"),
    "unknown ending": (["--out", "o.xlsx"], {}, 2, "--out o.xlsx"),
    "out is there": (["--out", "{place}/taken.csv"], {}, 1, "--overwrite"),
    "a detector": ([], {"model": "detector"}, 1, "/detector/"),
    "a broken image": (["--shots", "1", "--seeds", "1"], {"root": "broken"}, 1, "bad.png"),
    "unknown flag": (["--shot", "1"], {}, 2, "--shot"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_command__one_line_and_nothing_lost(place, name: str, capsys) -> None:
    more, where, code, text = BROKEN[name]
    if name == "no test split" and not (place / "alone").exists():
        write_images(place / "alone" / "train", 6)
    if name == "a broken image" and not (place / "broken").exists():
        write_images(place / "broken" / "train", 6)
        write_images(place / "broken" / "test", 6)
        (place / "broken" / "test" / "red" / "bad.png").touch()
    (place / "taken.csv").write_text("mine")
    before = {p: p.stat().st_size for p in place.rglob("*") if p.is_file()}
    assert _run(place, *(word.format(place=place) for word in more), **where) == code
    error = capsys.readouterr().err.strip()
    assert text in error
    assert len(error.splitlines()) == 1
    assert {p: p.stat().st_size for p in place.rglob("*") if p.is_file()} == before


def test_fewshot__of_shards_is_that_of_their_folder(place, tmp_path, capsys) -> None:
    assert main(["pack", str(place / "data"), "--out", str(place / "shards"), "--lossless", "--workers", "1"]) == 0
    tables = []
    for root in ("data", "shards"):
        assert _run(place, "--shots", "2", "--seeds", "1", root=root) == 0
        tables.append(capsys.readouterr().out.split("| method", 1)[1])
    assert tables[0] == tables[1]
