"""Labels from tables: the columns people have, what is refused by file and line, groups, splits, batches."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_vision.data import ImageFolderDataModule
from lit_vision.data.holdout import folder_groups
from lit_vision.data.label_table import TableColumns, read_label_table
from lit_vision.data.labeled_folder import folder_of_table
from lit_vision.errors import UserError

SPLITS = {"train": "train", "val": "val", "test": "test"}


@pytest.fixture
def root(tmp_path):
    """Twelve images in three folders, which say nothing about their labels."""
    for i in range(12):
        file = tmp_path / "images" / f"p{i // 4}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(file)
    return tmp_path / "images"


def table(root, text: str, name: str = "labels.csv"):
    file = root.parent / name
    file.write_text(text, encoding="utf-8")
    return file


def rows(count: int = 12, value=lambda i: "ab"[i % 2]) -> list[tuple[str, str]]:
    return [(f"p{i // 4}/{i:02d}.png", value(i)) for i in range(count)]


def module(root, file, **options) -> ImageFolderDataModule:
    data = ImageFolderDataModule(str(root), label_file=str(file), img_size=8, batch_size=4, num_workers=0, **options)
    data.setup()
    return data


def labels_by_path(data: ImageFolderDataModule, split: str = "train") -> dict[str, list[float]]:
    found = data.folder.splits[split]
    return dict(zip(found.paths, found.labels.tolist()))


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("path,label\n{}", "a.csv", {}),
        ("\ufefffilename;Category\n{}", "a.csv", {}),
        ("image\tlabel\tnote\n{}", "a.tsv", {}),
        ("img,label,what\n{}", "a.csv", {"path_column": "img", "label_column": "what"}),
        ("", "a.jsonl", {}),
        ("windows", "a.csv", {}),
        ("windows, the folder joined by a program", "a.csv", {}),
        ("with the root's name", "a.csv", {}),
    ],
)
def test_the_same_labels_from_every_form_of_a_table(root, text: str, name: str, options) -> None:
    wanted = {path: "ab".index(label) for path, label in rows()}
    if name.endswith("jsonl"):
        text = "\n".join(json.dumps({"path": path, "label": label}) for path, label in rows())
    elif text.startswith("windows"):
        prefix = "./" if "joined" in text else ""
        text = "path,label\n" + "".join(prefix + path.replace("/", "\\") + f",{label}\n" for path, label in rows())
    elif text.startswith("with"):
        text = "path,label\n" + "".join(f"images/{path},{label}\n" for path, label in rows())
    else:
        header, _ = text.split("\n")
        mark = max(",;\t", key=header.count)
        extra = header.count(mark) - 1
        body = [mark.join([path, *["x"] * extra, label] if options else [path, label, *["x"] * extra])
                for path, label in rows()]  # fmt: skip
        text = "\n".join([header, *body]) + "\n"
    data = module(root, table(root, text, name), **options)
    assert data.class_names == ["a", "b"]
    assert labels_by_path(data) == wanted


def test_classes_that_are_whole_numbers_are_sorted_as_numbers(root) -> None:
    text = "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows(value=lambda i: str((2, 10, 9)[i % 3])))
    assert module(root, table(root, text)).class_names == ["2", "9", "10"]


def test_splits_are_those_of_the_table_under_any_usual_name(root) -> None:
    names = ["Training", "train", "valid", "TEST"]
    text = "path,label,split\n" + "".join(
        f"{path},{label},{names[i % 4]}\n" for i, (path, label) in enumerate(rows(value=lambda i: "ab"[i % 4 == 1]))
    )
    with pytest.raises(UserError, match=r"val.*label c"):
        module(root, table(root, text.replace(",a,valid", ",c,valid")))
    data = module(root, table(root, text))
    assert {name: len(split) for name, split in data.folder.splits.items()} == {"train": 6, "val": 3, "test": 3}


def test_what_a_table_lacks_is_said_of_the_table(root) -> None:
    lines = [f"{path},{label if i < 8 else ''},{'train' if i < 8 else 'val'}" for i, (path, label) in enumerate(rows())]
    file = table(root, "\n".join(["path,label,split", *lines]))
    data = module(root, file)
    with pytest.raises(UserError, match=r"labels\.csv: no image of the val split has a label"):
        data.val_dataloader()
    with pytest.raises(UserError, match=r"no test split.*split column of .*labels\.csv"):
        data.test_dataloader()
    one = table(root, "path,label\n" + "".join(f"{path},a\n" for path, _ in rows()))
    with pytest.raises(UserError, match=r"labels\.csv: has one label \(a\)"):
        module(root, one)


WRONG = {
    "no row": ("path,label\n", "no row"),
    "no path column": ("a,label\nx,y\n", "path column"),
    "no label column": ("path,kind\nx,y\n", "label column"),
    "two label columns": ("path,class,target\nx,y,z\n", "several label columns"),
    "missing file": ("path,label\np0/00.png,a\nnone.png,b\n", r"line 3.*none\.png"),
    "outside": ("path,label\n../x.png,a\n", r"line 2.*no \.\./x\.png below"),
    "absolute": ("path,label\n/etc/passwd,a\n", r"line 2.*no /etc/passwd below"),
    "a folder": ("path,label\np0,a\n", r"line 2.*no p0 below"),
    "no ending": ("path,label\n00,a\n", r"line 2.*p0/00\.png is there"),
    "one file by two paths": ("path,label\np0/00.png,a\nC:\\x\\p0\\00.png,a\n", r"line 3: p0/00\.png .*line 2"),
    "one file in two spellings": ("path,label\np0/00.png,a\n./p0//00.png,b\n", r"line 3.*line 2"),
    "no header": ("p0/00.png,a\np0/01.png,b\n", "first line names an image"),
    "one number in two spellings": ("path,label\np0/00.png,1\np0/01.png,1.0\n", "1 and 1.0 are one number"),
    "a label that lists others": ("path,label\np0/00.png,a\np0/01.png,b\np0/02.png,b|a\n", r"'b\|a' .*label_separator"),
    "decimal comma": ("path;label\np0/00.png;0,5\np0/01.png;1,0\n", "regression"),
    "no path": ("path,label\n,a\n", r"line 2.*path"),
    "ragged": ("path,label\np0/00.png\n", r"line 2.*1 values for 2"),
    "quote": ('path,label\n"p0/00.png,a\n', "CSV"),
    "two labels": ("path,label\np0/00.png,a\np0/00.png,b\n", r"line 3.*line 2.*label_separator"),
    "split": ("path,label,split\np0/00.png,a,later\n", r"line 2.*'later'"),
    "no split": ("path,label,split\np0/00.png,a,train\np0/01.png,b,\n", r"line 3.*split"),
    "decimal": ("path,label\np0/00.png,0.5\np0/01.png,1.25\n", "regression"),
    "columns twice": ("path,label,label\np0/00.png,a,a\n", "same name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_refused_by_file_and_line(root, name: str) -> None:
    text, message = WRONG[name]
    with pytest.raises(UserError, match=message) as caught:
        module(root, table(root, text))
    assert "\n" not in str(caught.value)


def test_paths_of_another_machine_are_found_by_their_longest_end(root, caplog) -> None:
    paths = ["C:\\data\\images\\p0\\00.png", str(root / "p0/01.png"), "https://host/images/p1/04.png?x=1", "p1/05.png"]
    found = module(root, table(root, "path,label\n" + "".join(f"{p},{i % 2}\n" for i, p in enumerate(paths))))
    assert labels_by_path(found) == {"p0/00.png": 0, "p0/01.png": 1, "p1/04.png": 0, "p1/05.png": 1}
    assert "3 paths found" in caplog.text


def test_a_column_without_a_name_is_no_split_and_nan_is_no_label(root) -> None:
    lines = [f"{i},{path},{'nan' if i == 5 else label}" for i, (path, label) in enumerate(rows(6))]
    data = module(root, table(root, "\n".join([",path,label", *lines])))
    assert data.folder.classes == ["a", "b"]
    assert labels_by_path(data)["p1/05.png"] == -1
    assert "train 6 in 2 classes, 5 with a label" in data.folder.lines()[0]


@pytest.mark.parametrize("split", [False, True])
def test_images_without_a_label_are_never_evaluated_and_counted(root, split: bool) -> None:
    labeled = rows(value=lambda i: "" if i % 3 == 2 else "ab"[i % 3])
    text = "path,label,split\n" + "".join(
        f"{p},{c},{'val' if i > 5 else 'train'}\n" for i, (p, c) in enumerate(labeled)
    )
    text = text if split else text.replace(",split", "").replace(",train", "").replace(",val", "")
    folder = module(root, table(root, text), **({} if split else {"val_fraction": 0.5})).folder
    assert sorted(folder.splits["val"].labels.tolist()) == [0, 0, 1, 1]
    assert folder.inventory.not_labeled == (2 if split else 0)
    assert ("2 to validate" in "".join(folder.lines())) == split


def test_columns_of_labels_may_be_floats_as_pandas_writes_them(root) -> None:
    text = "path,x,y\n" + "".join(
        f"{path},{i % 2}.0,{'' if i == 3 else '1.0'}\n" for i, (path, _) in enumerate(rows(4))
    )
    labels = module(root, table(root, text), label_columns=["x", "y"]).folder.splits["train"].labels
    np.testing.assert_array_equal(labels, [[0, 1], [1, 1], [0, 1], [1, np.nan]])


def test_numbers_that_differ_for_almost_every_image_are_no_classes(root) -> None:
    text = "path,label\n" + "".join(f"{i}.png,{1000 + i}\n" for i in range(50))
    with pytest.raises(UserError, match="50 different numbers"):
        read_label_table(table(root, text))


@pytest.mark.parametrize("form", ["columns", "separator", "rows", "lists"])
def test_several_labels_an_image_are_one_matrix_in_every_form(root, form: str) -> None:
    wanted = {path: [float(i % 2 == 0), float(i % 3 == 0)] for i, (path, _) in enumerate(rows())}
    names = {path: [name for name, value in zip("ab", values) if value] for path, values in wanted.items()}
    options = {}
    if form == "columns":
        text = "path,b,a\n" + "".join(f"{path},{b:g},{a:g}\n" for path, (a, b) in wanted.items())
        options = {"label_columns": ["a", "b"]}
    elif form == "lists":
        text = "\n".join(json.dumps({"path": path, "labels": labels}) for path, labels in names.items())
    else:
        options = {"label_separator": "|"}
        cells = [(p, "|".join(ls)) for p, ls in names.items()] if form == "separator" else [
            (p, label) for p, ls in names.items() for label in ls]  # fmt: skip
        text = "path,label\n" + "".join(f"{p},{cell}\n" for p, cell in cells)
        wanted = {p: values if names[p] else [np.nan, np.nan] for p, values in wanted.items()}
        if form == "rows":  # an image without a row is not in the table
            wanted = {p: values for p, values in wanted.items() if names[p]}
    data = module(root, table(root, text, "a.jsonl" if form == "lists" else "a.csv"), use_unlabeled=True, **options)
    found = labels_by_path(data)
    assert found.keys() == wanted.keys()
    for path, values in wanted.items():
        np.testing.assert_array_equal(found[path], values)
    batch = next(iter(data.train_dataloader()))
    assert batch["label"].dtype == torch.float32
    assert batch["label"].shape == (4, 2)
    paths = list(data.folder.splits["train"].paths)
    for key, label in zip(batch["key"].tolist(), batch["label"]):
        np.testing.assert_array_equal(label.numpy(), wanted[paths[key[1]]])


def test_unknown_labels_are_nan_and_a_subset_hides_the_rest(root) -> None:
    text = "path,a,b\n" + "".join(f"{path},{'' if i == 0 else -1 if i == 1 else i % 2},1\n"
                                  for i, (path, _) in enumerate(rows()))  # fmt: skip
    data = module(root, table(root, text), label_columns=["a", "b"])
    labels = data.folder.splits["train"].labels
    assert np.isnan(labels[:2, 0]).all()
    assert not np.isnan(labels[2:]).any()
    subset = module(root, table(root, text), label_columns=["a", "b"], labels=5)
    assert subset.num_train == 5
    with pytest.raises(UserError, match="shots"):
        module(root, table(root, text), label_columns=["a", "b"], shots=1)


def test_a_group_in_two_splits_is_refused_by_name(root) -> None:
    text = "path,label,split,who\n" + "".join(
        f"{path},{label},{'train' if i < 6 else 'val'},{i // 4}\n" for i, (path, label) in enumerate(rows())
    )
    module(root, table(root, text))
    with pytest.raises(UserError, match=r"1 group\(s\).*'1'.*train.*val"):
        module(root, table(root, text), group_by="who")
    with pytest.raises(UserError, match=r"'p1'"):
        module(root, table(root, text), group_by=-1)
    with pytest.raises(UserError, match="no column 'patient'"):
        module(root, table(root, text), group_by="patient")


@pytest.mark.parametrize("group_by", [None, "who", -1])
def test_splits_that_are_drawn_hold_each_image_once_and_whole_groups(root, group_by) -> None:
    text = "path,label,who\n" + "".join(f"{path},{label},{i // 2}\n" for i, (path, label) in enumerate(rows()))
    options = {"val_fraction": 0.25, "test_fraction": 0.25, "group_by": group_by}
    data, again = (module(root, table(root, text), **options) for _ in range(2))
    splits = {name: list(split.paths) for name, split in data.folder.splits.items()}
    assert splits == {name: list(split.paths) for name, split in again.folder.splits.items()}
    assert sorted(path for paths in splits.values() for path in paths) == [path for path, _ in rows()]
    assert splits.keys() == {"train", "val", "test"}
    if group_by is None:
        assert {name: len(paths) for name, paths in splits.items()} == {"train": 6, "val": 3, "test": 3} or all(
            {label for path, label in rows() if path in paths} == {"a", "b"} for paths in splits.values()
        )
    else:
        group = {p: str(i // 2) if group_by == "who" else p.split("/")[0] for i, (p, _) in enumerate(rows())}
        sides = [{group[path] for path in paths} for paths in splits.values()]
        assert not set.intersection(*sides)
        assert sum(map(len, sides)) == len(set(group.values()))
    other = module(root, table(root, text), label_seed=1, **options)
    assert group_by == -1 or {n: list(s.paths) for n, s in other.folder.splits.items()} != splits


def test_drawn_splits_work_without_a_table_too(root) -> None:
    data = ImageFolderDataModule(str(root), img_size=8, val_fraction=0.25, num_workers=0)
    data.setup()
    assert {name: len(split) for name, split in data.folder.splits.items()} == {"train": 9, "val": 3}
    assert sorted(data.folder.splits["val"].labels) == [0, 1, 2]  # stratified
    with pytest.raises(UserError, match="empty"):
        ImageFolderDataModule(str(root), img_size=8, val_fraction=0.9, group_by=-1, num_workers=0).setup()


def test_groups_are_folders_at_a_level() -> None:
    paths = ["train/cat/p1/a.png", "train/dog/p2/b.png"]
    assert folder_groups(paths, -1) == ["p1", "p2"]
    assert folder_groups(paths, 1) == ["cat", "dog"]
    with pytest.raises(UserError, match="3 folder"):
        folder_groups(paths, 3)


@given(text=st.text(max_size=80), header=st.sampled_from(["path,label\n", "path,label,split\n", ""]),
       name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl"]), several=st.booleans())  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_table_or_one_line_that_names_the_file(tmp_path_factory, text, header, name, several) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_bytes((header + text).encode("utf-8", "surrogatepass"))
    try:
        listed = read_label_table(file, TableColumns(separator="|" if several else None))
        found = folder_of_table(folder, listed, file, SPLITS, dict.fromkeys(listed.paths, 1))
    except UserError as caught:
        error = str(caught)
    else:
        error = f"none in {name}"
        assert sum(map(len, found.splits.values())) == len(listed.paths) > 0
    assert name in error
    assert "\n" not in error
