"""Pairs: an image has one of its own captions, drawn by key; splits share no image or group; bad input is named."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_vision.data import PairsDataModule
from lit_vision.data.batch import check_batch
from lit_vision.data.captions import CaptionTokenizer
from lit_vision.data.check.check_folder import check_folder
from lit_vision.errors import UserError

COUNTS = (1, 2, 3, 4, 1, 2)  # captions of image i % 6


def write_image(path: Path, i: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(path)  # its gray level says which image it is


def captions_of(i: int) -> list[str]:
    return [f"number {i} said in way {way}" for way in range(COUNTS[i % 6])]


def write_pairs(root: Path, form: str, n: int = 24, **columns) -> Path:
    """Write n images and their captions as a CSV with several rows an image, JSON lines with lists, or text files."""
    rows = []
    for i in range(n):
        write_image(root / f"{i % 4}/{i:02d}.png", i)
        more = {name: value(i) for name, value in columns.items()}
        if form == "txt":
            (root / f"{i % 4}/{i:02d}.txt").write_text("\n\n".join(captions_of(i)) + "\n")
        elif form == "jsonl":
            rows.append({"file_name": f"{i % 4}/{i:02d}.png", "text": captions_of(i), **more})
        else:
            rows += [{"path": f"{i % 4}/{i:02d}.png", "caption": caption, **more} for caption in captions_of(i)]
    if form == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "csv":
        with open(root / "captions.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return root


def pairs(root: Path, **more) -> PairsDataModule:
    options = {"img_size": 8, "batch_size": 4, "seed": 5, "num_workers": 0, "vocab_size": 300, "crop_scale": [1, 1]}
    return PairsDataModule(str(root), **{**options, "crop_aspect": [1, 1], **more})


def read_epoch(data: PairsDataModule, epoch: int) -> dict[int, str]:
    """Return the caption that each image of an epoch came with, by the image's number."""
    data.cursor = (epoch, 0)
    found = {}
    for batch in data.train_dataloader():
        check_batch(batch)
        assert (batch["label"] == -1).all()
        texts = data.tokenizer.decode(batch["tokens"])
        for image, text, key in zip(batch["images"], texts, batch["key"].tolist()):
            number = int(image.float().mean().item() / 10 + 0.5)
            assert text in captions_of(number)  # its own caption
            if data.on_bad_image == "auto":
                assert data.captions("train")[key[1]] == captions_of(number)
            found[number] = text
    return found


@pytest.mark.parametrize(("form", "in_memory"), [("csv", True), ("jsonl", False), ("txt", True)])
def test_an_image_comes_with_one_of_its_captions_drawn_by_its_key(form: str, in_memory: bool, tmp_path: Path) -> None:
    data = pairs(write_pairs(tmp_path, form), in_memory=in_memory)
    epochs = [read_epoch(data, epoch) for epoch in range(20)]
    assert read_epoch(pairs(tmp_path, in_memory=not in_memory, batch_size=8), 7) == epochs[7]
    assert read_epoch(pairs(tmp_path, in_memory=in_memory, seed=6), 7) != epochs[7]
    for number in (3, 9, 15, 21):  # four captions each: over 20 epochs every one comes, none always
        drawn = Counter(found[number] for found in epochs)
        assert set(drawn) == set(captions_of(number))
        assert max(drawn.values()) < 15
    assert sorted(epochs[0]) == list(range(24))


def test_evaluation_has_each_image_once_with_its_first_caption_and_all_captions_beside(tmp_path: Path) -> None:
    data = pairs(write_pairs(tmp_path, "csv", split=lambda i: "valid" if i % 3 == 0 else "train"))
    seen = []
    for batch in data.val_dataloader():
        texts = data.tokenizer.decode(batch["tokens"])
        for text, key in zip(texts, batch["key"].tolist()):
            assert text == data.captions("val")[key[1]][0]
            seen.append(key[1])
    assert seen == list(range(8))
    assert sorted(data.captions("val")) == sorted(captions_of(i) for i in range(0, 24, 3))
    assert [path[-6:-4] for path in data.paths("val")] == [text[0].split()[1].zfill(2) for text in data.captions("val")]
    assert not set(data.paths("val")) & set(data.paths("train"))
    assert "number 0 " not in data.tokenizer.json
    assert len(list(data.eval_loader("train", limit=5))) == 2


def test_splits_are_drawn_by_image_by_column_or_by_folder(tmp_path: Path) -> None:
    write_pairs(tmp_path, "jsonl", scene=lambda i: f"scene{i % 5}")
    by_image = pairs(tmp_path, val_fraction=0.25, test_fraction=0.25)
    by_image.setup()
    everything = [path for role in ("train", "val", "test") for path in by_image.paths(role)]
    assert len(everything) == len(set(everything)) == 24
    assert [len(by_image.paths(role)) for role in ("train", "val", "test")] == [12, 6, 6]
    for group_by, group in (("scene", lambda path: int(path[-6:-4]) % 5), (-1, lambda path: path[0])):
        found = []
        for seed in (0, 0, 1, 2):
            data = pairs(tmp_path, val_fraction=0.3, group_by=group_by, split_seed=seed)
            data.setup()
            groups = [{group(path) for path in data.paths(role)} for role in ("train", "val")]
            assert groups[0]
            assert groups[1]
            assert not groups[0] & groups[1]
            found.append(tuple(data.paths("val")))
        assert found[0] == found[1]
        assert len(set(found)) > 1


def test_an_image_in_place_of_a_broken_one_brings_its_own_caption(tmp_path: Path) -> None:
    write_pairs(tmp_path, "csv")
    (tmp_path / "2/06.png").write_bytes(b"no image")
    for in_memory in (True, False):
        found = read_epoch(pairs(tmp_path, in_memory=in_memory, on_bad_image="skip"), 0)
        assert 6 not in found


def test_workers_and_resuming_change_nothing(tmp_path: Path) -> None:
    write_pairs(tmp_path, "jsonl")
    alone = list(pairs(tmp_path).train_dataloader())
    workers = list(pairs(tmp_path, num_workers=1, in_memory=False).train_dataloader())
    data = pairs(tmp_path)
    state = {**data.state_dict()}
    data.cursor = (0, 8)
    resumed = list(data.train_dataloader())
    for name in ("images", "tokens", "token_mask", "key"):
        assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, workers, strict=True))
        assert all(torch.equal(a[name], b[name]) for a, b in zip(alone[2:], resumed, strict=True))
    rows = (tmp_path / "metadata.jsonl").read_text().replace("number 7 said", "number 7 told")
    (tmp_path / "metadata.jsonl").write_text(rows)
    with pytest.raises(UserError, match="data"):
        pairs(tmp_path).load_state_dict(state)  # other captions are other data


def test_a_models_tokenizer_replaces_the_trained_one(tmp_path: Path) -> None:
    data = pairs(write_pairs(tmp_path, "csv"))
    before = next(iter(data.eval_loader("train")))["tokens"]
    data.use_tokenizer(CaptionTokenizer(data.tokenizer.json, 4))
    after = next(iter(data.eval_loader("train")))["tokens"]
    assert before.shape[1] > 4
    assert after.shape[1] == 4
    (tmp_path / "own").mkdir()
    (tmp_path / "own/tokenizer.json").write_text(data.tokenizer.json)
    given = pairs(tmp_path, tokenizer=str(tmp_path / "own"), captions=str(tmp_path / "captions.csv"))
    assert torch.equal(next(iter(given.eval_loader("train")))["tokens"], before)


TABLE = "path,caption,split\na.png,one,train\nb.png,two,train\n"
BROKEN = {
    "no such file": (None, {"captions": "none.csv"}, r"data\.captions: .*none\.csv"),
    "empty": ("", {}, "captions.csv: has no row"),
    "header alone": ("path,caption\n", {}, "captions.csv: has no row"),
    "not UTF-8": (b"path,caption\na.png,s\xfc\xdf\n", {}, "captions.csv: is not UTF-8"),
    "no caption column": (TABLE.replace("caption", "words"), {}, "caption_column"),
    "named column": (TABLE, {"caption_column": "words"}, "no column 'words'"),
    "no header": ("a.png,one\nb.png,two\n", {}, "first line names an image"),
    "empty caption": (TABLE.replace("two", "  "), {}, "line 3: has an empty caption"),
    "missing image": (TABLE.replace("b.png", "c.png"), {}, r"line 3: there is no c\.png"),
    "outside": (TABLE.replace("b.png", "../c.png"), {}, r"line 3: there is no \.\./c\.png"),
    "twice": (TABLE + "a.png,one,train\n", {}, "line 4: a.png is also on line 2, with the same caption"),
    "two spellings": (TABLE.replace("b.png", "/home/me/a.png"), {}, "line 3: a.png is also on line 2"),
    "two splits": (TABLE + "a.png,more,val\n", {}, "line 4: a.png is also on line 2, in another split"),
    "unknown split": (TABLE.replace("two,train", "two,other"), {}, "line 3: the split 'other'"),
    "no split": (TABLE.replace("two,train", "two,"), {}, "line 3: has no split"),
    "no group": (TABLE, {"group_by": "place"}, "no column 'place'"),
    "ragged": (TABLE + "a.png\n", {}, "line 4: has 1 values"),
    "looks the same": (TABLE.replace("b.png", "e\u0301.png"), {}, r"line 3: .*another Unicode form \(NFC, NFD\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_in_a_table_is_named_with_its_line(case: str, tmp_path: Path, monkeypatch) -> None:
    content, options, message = BROKEN[case]
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.png", "b.png", "\u00e9.png")):
        write_image(tmp_path / name, i)
    if content is not None:
        (tmp_path / "captions.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        pairs(tmp_path, batch_size=1, **options).setup()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1: is not a JSON object"),
        ('{"path": "a.png", "caption": []}', "line 1: has an empty caption"),
        ('{"path": "a.png", "caption": ["x", " "]}', "line 1: has an empty caption"),
        ('{"path": "a.png", "caption": {"en": "x"}}', "line 1: its caption must be"),
        ('{"path": "a.png", "caption": null}', "line 1: has an empty caption"),
        ('{"path": "a.png", "caption": "a smile \\ud83d"}', "line 1: holds half a character"),
        ('{"path": "a.png", "caption": "a smile \\udc80"}', "line 1: its caption holds half a character"),
    ],
)
def test_what_is_wrong_in_json_lines_is_named(row: str, message: str, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "captions.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=message):
        pairs(tmp_path).setup()


def test_captions_may_hold_any_text(tmp_path: Path) -> None:
    """Captions as other programs write them: odd line separators, empty lines before a header, emoji."""
    texts = ["one\u2028two", "x\u0085y", "\u05e9\u05dc\u05d5\u05dd \U0001f44d\U0001f3fd", "word " * 2000]
    for i in range(4):
        write_image(tmp_path / f"{i}.png", i)
    rows = [{"path": f"{i}.png", "caption": text} for i, text in enumerate(texts)]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    (tmp_path / "table.csv").write_bytes(
        "\ufeff\r\n\r\npath;caption\r\n".encode()
        + "".join(f'{i}.png;"{text}"\r\n' for i, text in enumerate(texts)).encode()
    )
    plain = [[" ".join(text.split())] for text in texts]
    for table in ("captions.jsonl", "table.csv"):
        data = pairs(tmp_path, captions=str(tmp_path / table), batch_size=4)
        assert next(iter(data.train_dataloader()))["tokens"].shape[0] == 4
        assert data.captions("train") == plain


def test_a_tokenizer_without_a_token_for_what_it_does_not_know_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, "csv")
    model = {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(UserError, match="tokenizer: cannot encode"):
        pairs(tmp_path, tokenizer=str(tmp_path / "tokenizer.json")).train_dataloader()


def test_what_is_wrong_with_text_files_is_named(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            pairs(tmp_path, batch_size=1).setup()

    write_image(tmp_path / "a.png", 1)
    write_image(tmp_path / "b.png", 2)
    refused(r"no image has captions.*a\.txt")
    (tmp_path / "a.txt").write_text("one")
    refused(r"1 of 2 images have none.*b\.txt")
    (tmp_path / "b.txt").write_text(" \n")
    refused(r"b\.txt: has no caption")
    (tmp_path / "b.txt").write_bytes("süß".encode("latin-1"))
    refused(r"b\.txt: is not UTF-8")
    (tmp_path / "b.txt").write_text("two")
    data = pairs(tmp_path, batch_size=1)
    data.setup()
    assert data.captions("train") == [["one"], ["two"]]
    assert "txt" not in "".join(data.folder.inventory.phrases())
    write_image(tmp_path / "b.webp", 3)
    refused(r"b\.txt stands beside b\.png and b\.webp")
    (tmp_path / "captions.csv").write_text(TABLE)
    (tmp_path / "metadata.jsonl").write_text('{"path": "a.png", "text": "x"}')
    refused(r"several tables.*captions\.csv, metadata\.jsonl")


def test_doctor_reads_the_captions_too(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "set", "csv")
    report = check_folder(root, out=tmp_path / "report", workers=1)
    assert report["uses"]["training on captions"] == ""
    assert any("captions.csv: 52 captions" in finding["what"] for finding in report["findings"])
    with open(root / "captions.csv", "a") as file:
        file.write("0/00.png, \n")
    report = check_folder(root, out=tmp_path / "report", workers=1)
    assert "line 54: has an empty caption" in report["uses"]["training on captions"]
    assert report["fit"]  # the images are
