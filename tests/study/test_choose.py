"""lit-vision choose: its list is that of the strategy on embedded features; labels come from tables or folders."""

import csv
from pathlib import Path

import numpy as np
import pytest
from toy_models import make_classifier, write_images, write_run

from lit_vision.cli.main import main
from lit_vision.evaluation.acquisition import choose_next, margin
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.predict.api import load
from lit_vision.study import choose


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder with a run, images by color and images without a label, one of them broken, one of odd name."""
    folder = tmp_path_factory.mktemp("choose")
    write_run(folder / "run", make_classifier())
    write_images(folder / "set", 36, size=16)
    names = write_images(folder / "photos", 45, size=16)
    (folder / "photos" / names[0]).rename(folder / "photos/<b>&.png")
    (folder / "photos/broken.png").write_bytes(b"\x89PNG nothing")
    return folder


def run(place: Path, *arguments: str) -> list[dict[str, str]]:
    """Run the command; return the rows of its CSV."""
    out = place / "out.csv"
    words = ["choose", str(place / "photos"), "--model", str(place / "run"), "--run_dir", str(place / "kept")]
    assert main([*words, "--out", str(out), "--overwrite", *arguments]) == 0
    with open(out, newline="") as file:
        return list(csv.DictReader(file))


def features(place: Path) -> tuple[list[str], np.ndarray]:
    paths = sorted(path.relative_to(place / "photos").as_posix() for path in (place / "photos").rglob("*.png"))
    paths.remove("broken.png")
    return paths, load(place / "run", "cpu").embed([str(place / "photos" / path) for path in paths]).features


def color(path: str) -> str:
    return path.split("/")[0] if "/" in path else "odd"


def test_without_labels_the_list_is_probcover_on_what_embed_gives(place: Path, capsys) -> None:
    paths, x = features(place)
    rows = run(place, "--num", "6", "--ignore_folders")
    assert "1 images that cannot be read (broken.png)" in capsys.readouterr().out
    assert [row["path"] for row in rows] == [paths[i] for i in choose_next("probcover", x, [], 6)]
    assert [row["rank"] for row in rows] == list("123456")
    assert {row["nearest_label"] for row in rows} == {row["likely_label"] for row in rows} == {""}
    first = (place / "out.csv").read_bytes(), (place / "out.html").read_bytes()
    run(place, "--num", "6", "--ignore_folders")
    assert first == ((place / "out.csv").read_bytes(), (place / "out.html").read_bytes())


def test_a_table_of_labels_turns_to_the_margin_and_finds_the_features_again(place: Path, monkeypatch) -> None:
    paths, x = features(place)
    labeled = [i for i, path in enumerate(paths) if "/" in path][::3]
    names = sorted({color(paths[i]) for i in labeled})
    table = "path,label\n" + "".join(f"{paths[i]},{color(paths[i])}\n" for i in labeled) + "broken.png,red\n"
    (place / "labels.csv").write_text(table)
    run(place, "--num", "3", "--ignore_folders")
    monkeypatch.setattr(choose, "ON_PAGE", 4)
    monkeypatch.setattr("lit_vision.predict.feature_cache._Job.features", lambda *_: pytest.fail("computed again"))
    rows = run(place, "--num", "5", "--label_file", str(place / "labels.csv"))
    y = [names.index(color(paths[i])) for i in labeled]
    p = logistic_regression(x[labeled], y, x, 3).probabilities
    free = np.setdiff1d(np.arange(len(paths)), labeled)
    wanted = free[np.argsort(margin(p[free]), kind="stable")[:5]]
    assert sorted(row["path"] for row in rows) == sorted(paths[i] for i in wanted)
    for row in rows:
        assert f"{row['likely_label']} ({float(row['probability']):.0%})" in row["reason"]
        assert row["nearest_label"] == color(row["nearest_path"])
    assert (place / "out.html").read_text().count("<img") == 4


def test_names_on_the_page_are_escaped_and_several_labels_an_image_take_no_classifier(place: Path) -> None:
    paths, _ = features(place)
    (place / "several.csv").write_text(f'path,label\n{paths[1]},a|b\n"{paths[2]}",b\n')
    arguments = ["--label_file", str(place / "several.csv"), "--label_separator", "|"]
    rows = run(place, "--num", str(len(paths) - 2), *arguments)
    assert {row["nearest_label"] for row in rows} == {"a; b", "b"}
    page = (place / "out.html").read_text()
    assert "<b>&.png" not in page
    assert "&lt;b&gt;&amp;.png" in page
    assert "default-src 'none'" in page


def test_images_in_no_class_folder_are_chosen_and_the_test_split_is_not(place: Path, capsys) -> None:
    for part, n in (("train", 12), ("test", 6)):
        write_images(place / "classes" / part, n, size=16)
    write_images(place / "classes/unlabeled", 9, size=16)
    words = ["choose", str(place / "classes"), "--model", str(place / "run"), "--run_dir", str(place / "kept2")]
    assert main([*words, "--num", "9", "--strategy", "entropy"]) == 0
    assert "21 images, of which 12 have a label of 3 classes" in capsys.readouterr().out
    with open(place / "kept2/choose.csv", newline="") as file:
        assert all(row["path"].startswith("unlabeled/") for row in csv.DictReader(file))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--num", "0"], 2, "--num: 0"),
        (["--num", "99", "--ignore_folders"], 1, "46 images without a label"),
        (["--num", "46", "--ignore_folders"], 1, "45 images without a label"),  # one cannot be read
        (["--strategy", "best"], 2, "'best' is not one of auto, random"),
        (["--model", "nothing"], 2, "--model: 'nothing'"),
        (["--model", "mae"], 2, "--model: 'mae'"),
        (["--seed", "-1"], 2, "--seed"),
        (["--out", "list.txt"], 2, "--out list.txt: end its name in .csv"),
        (["--frozen_size", "0"], 2, "--frozen_size"),
        (["--label_file", "{}/missing.csv"], 1, "missing.csv"),
        (["--label_file", "{}/gone.csv"], 1, "there is no red/gone.png below"),
        (["--label_file", "{}/lists.csv", "--label_separator", "|", "--strategy", "margin"], 1, "one label an image"),
        ([], 1, "--ignore_folders"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_one_line(place: Path, capsys, arguments, code, words) -> None:
    (place / "gone.csv").write_text("path,label\nred/gone.png,red\n")
    (place / "lists.csv").write_text("path,label\nred/003.png,a|b\n")
    root = place / ("photos" if arguments else "set")
    base = ["choose", str(root), "--model", str(place / "run"), "--run_dir", str(place / "kept")]
    assert main(base + [argument.format(place) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_folder_of_which_no_image_can_be_read(place: Path, capsys) -> None:
    (place / "unreadable").mkdir()
    (place / "unreadable/a.png").write_bytes(b"\x89PNG nothing")
    words = ["choose", str(place / "unreadable"), "--model", str(place / "run"), "--run_dir", str(place / "kept")]
    assert main([*words, "--num", "1"]) == 1
    assert "none of its images can be read" in capsys.readouterr().err
