"""doctor and study take a table of labels and groups as the data module does."""

import numpy as np
import pytest
from PIL import Image

from lit_vision import check_folder
from lit_vision.cli.main import main
from lit_vision.data.labeled_folder import label_options
from lit_vision.study.images import read_images


@pytest.fixture
def root(tmp_path):
    """Sixteen images of two classes by four people, in one folder, one of them not in the table."""
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "photos").mkdir()
    for i in range(17):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02d}.png")
        rows.append(f"{i:02d}.png,{'cat' if i % 2 else 'dog'},{i // 4}")
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,person", *rows[:16]]) + "\n")
    return tmp_path / "photos"


def test_doctor_checks_the_images_of_a_table_and_says_what_it_does_not_list(root, tmp_path, capsys) -> None:
    table = root.parent / "labels.csv"
    assert (
        main(["doctor", str(root), "--label_file", str(table), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    )
    assert "1 images that the table does not list" in capsys.readouterr().out
    report = check_folder(root, label_file=table, out=tmp_path / "out", workers=1)
    assert report["images"] == 16
    assert report["classes"]["train"] == {"cat": 8, "dog": 8}


def test_doctor_refuses_a_group_in_two_splits(root, tmp_path) -> None:
    table = tmp_path / "split.csv"
    lines = (root.parent / "labels.csv").read_text().splitlines()
    rows = [f"{line},{'train' if i % 4 < 2 else 'test'}" for i, line in enumerate(lines[1:])]
    table.write_text("\n".join([lines[0] + ",split", *rows]))
    arguments = ["doctor", str(root), "--label_file", str(table), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--group_by", "person"]) == 1
    assert "stand in two splits" in (tmp_path / "out" / "doctor.json").read_text()


def test_a_study_reads_a_table_and_holds_out_whole_groups(root) -> None:
    table = root.parent / "labels.csv"
    images = read_images(root, labels=label_options(table, group_by="person"))
    assert images.classes == ["cat", "dog"]
    assert len(images.test_paths) + len(images.paths) == 16
    people = [{int(path[:2]) // 4 for path in paths} for paths in (images.paths, images.test_paths)]
    assert len(people[1]) == 1
    assert not people[0] & people[1]
    assert images.labels.tolist() == [1 - int(path[:2]) % 2 for path in images.paths]
    without = read_images(root, labels=label_options(table))
    assert {int(path[:2]) // 4 for path in without.test_paths} != people[1]


def test_a_study_has_the_labeled_images_of_a_table_first_and_counts_them(root) -> None:
    table = root.parent / "labels.csv"
    rows = table.read_text().splitlines()
    table.write_text(
        "\n".join(row if i % 4 else row.replace("cat", "").replace("dog", "") for i, row in enumerate(rows))
    )
    images = read_images(root, labels=label_options(table))
    assert (images.labels >= 0).tolist() == [True] * 9 + [False] * 4
    assert images.labels[:9].tolist() == [1 - int(path[:2]) % 2 for path in images.paths[:9]]
    assert any("3 of its 12 labeled images" in note for note in images.notes)


def test_doctor_counts_each_of_several_labels_by_itself_as_fit_does(root, tmp_path) -> None:
    sets = {0: "cat", 1: "dog", 2: "cat|dog"}  # train has no image of both
    text = "".join(f"{i:02d}.png,{sets[i % 2 if i < 8 else 2]},{'train' if i < 8 else 'val'}\n" for i in range(16))
    (tmp_path / "several.csv").write_text("path,label,split\n" + text)
    options = {"label_file": tmp_path / "several.csv", "label_separator": "|"}
    report = check_folder(root, out=tmp_path / "out", workers=1, **options)
    assert report["fit"], report["findings"]
    assert report["classes"] == {"train": {"cat": 4, "dog": 4}, "val": {"cat": 8, "dog": 8}}


@pytest.mark.parametrize("command", ["doctor", "study"])
@pytest.mark.parametrize("arguments", [["--label_column", "person"], ["--group_by", "person"]])
def test_options_of_a_table_without_a_table_are_wrong_usage(root, tmp_path, capsys, command: str, arguments) -> None:
    out = ["--out" if command == "doctor" else "--run_dir", str(tmp_path / "out")]
    assert main([command, str(root), *arguments, *out]) == 2
    assert "label_file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_reads_several_labels_of_a_cell(root) -> None:
    images = read_images(root, labels=label_options(root.parent / "labels.csv", label_separator="|"))
    cats = [1 - int(path[:2]) % 2 for path in images.paths]
    assert (images.labels[:, 1] == 1 - images.labels[:, 0]).all()
    assert images.labels[:, 1].tolist() == cats


def test_errors_name_the_flags_of_the_command(root, tmp_path, capsys) -> None:
    table = tmp_path / "german.csv"
    table.write_text((root.parent / "labels.csv").read_text().replace("path", "Bild"))
    assert main(["study", str(root), "--label_file", str(table), "--run_dir", str(tmp_path / "run")]) == 1
    assert "name it with --path_column" in capsys.readouterr().err
