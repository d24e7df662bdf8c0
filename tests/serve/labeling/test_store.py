"""The store keeps every answer through kills, broken lines, moved and changed files."""

import json
import os
import shutil

import pytest

from lit_vision.data.label_table import read_label_table  # noqa: F401
from lit_vision.errors import UserError
from lit_vision.serve.labeling.events import LabelAnswer, LabelingError, check_class_name
from lit_vision.serve.labeling.store import FILE, LabelStore


def made(i: int, *labels: str, path: str = "") -> LabelAnswer:
    return LabelAnswer(f"a{i}", path or f"{i}.png", 10, 20, f"{i:064d}", "label", labels, "me", "2026-01-01T00:00:00Z")


def state(store: LabelStore) -> tuple:
    return dict(store.answers), list(store.classes), [i for i in store.answers if store.is_undone(i)]


def fill(folder, root) -> tuple:
    with LabelStore(folder, root) as store:
        store.begin_with(["cat", "dog"])
        for i in range(4):
            store.add_answer(made(i, "cat" if i % 2 else "dog"))
        store.undo("a1", "me")
        store.rename_class("dog", "hund")
        store.add_answer(made(4, "hund", path="b\udcff.png"))  # bytes of a name that are not UTF-8
        return state(store)


def test_a_store_read_again_is_the_same(tmp_path) -> None:
    before = fill(tmp_path / "s", tmp_path)
    assert before[0]["a0"].labels == ("hund",)
    assert before[1] == ["cat", "hund"]
    assert before[2] == ["a1"]
    with LabelStore(tmp_path / "s", tmp_path) as store:
        assert state(store) == before
        store.begin_with(["cat", "dog"])  # the same command again does not bring back what was renamed
        assert store.classes == ["cat", "hund"]


def test_a_cut_at_any_byte_of_the_last_line_loses_that_line_alone(tmp_path) -> None:
    fill(tmp_path / "s", tmp_path)
    file = tmp_path / "s" / FILE
    content = file.read_bytes()
    begin = content.rstrip(b"\n").rindex(b"\n") + 1
    for end in [*range(begin, len(content) - 3, 40), *range(len(content) - 3, len(content) + 1)]:
        file.write_bytes(content[:end])
        with LabelStore(tmp_path / "s", tmp_path) as store:
            whole = end >= len(content) - 1  # all but the end of the line: an editor may remove it
            assert store.has_answer("a4") == whole
            assert store.has_answer("a3")
            store.add_answer(made(5, "cat"))
        with LabelStore(tmp_path / "s", tmp_path) as store:
            assert list(store.answers) == ["a0", "a1", "a2", "a3", *(["a4"] if whole else []), "a5"]
    file.write_bytes(content[:begin] + b"\0" * 100)  # as a file system may leave it after a power failure
    with LabelStore(tmp_path / "s", tmp_path) as store:
        assert not store.has_answer("a4")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"event": "nothing"}',
        b'{"event": "answer", "id": "x"}',
        b'{"event": "undo", "answer": "none"}',
        b"[" * 100_000,
    ],
)
def test_a_broken_line_that_is_not_the_last_is_named(tmp_path, line) -> None:
    fill(tmp_path / "s", tmp_path)
    file = tmp_path / "s" / FILE
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]))
    before = file.read_bytes()
    with pytest.raises(UserError, match=f"{FILE}, line 4"):
        LabelStore(tmp_path / "s", tmp_path)
    assert file.read_bytes() == before


def test_the_same_id_is_one_answer_and_an_undo_counts_once(tmp_path) -> None:
    with LabelStore(tmp_path / "s", tmp_path) as store:
        for _ in range(3):
            store.add_answer(made(0, "cat"))
        assert len((tmp_path / "s" / FILE).read_text().splitlines()) == 2  # the folder, and one answer
        store.undo("a0", "me")
        with pytest.raises(LabelingError, match="before"):
            store.undo("a0", "me")
        with pytest.raises(LabelingError, match="no such answer"):
            store.undo("a9", "me")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch) -> None:
    with LabelStore(tmp_path / "s", tmp_path) as store:
        store.add_answer(made(0, "cat"))
        before = store.path.read_bytes()
        write = os.write

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        def write_some(file: int, data: bytes) -> int:
            monkeypatch.setattr(os, "write", full)
            return write(file, data[:7])

        for truncates in (True, False):  # a disk may also fail when the rest of the line is to be removed
            monkeypatch.setattr(os, "write", write_some)
            if not truncates:
                monkeypatch.setattr(os, "ftruncate", full)
            with pytest.raises(LabelingError, match="No space") as raised:
                store.add_answer(made(1, "cat"))
            assert raised.value.status == 507
            assert len(store.path.read_bytes()) == len(before) + 7 * (not truncates)
            assert not store.has_answer("a1")
            monkeypatch.undo()
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:50]))  # the rest in a second call
        store.add_answer(made(1, "cat"))
        monkeypatch.undo()
    with LabelStore(tmp_path / "s", tmp_path) as store:
        assert list(store.answers) == ["a0", "a1"]
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="cannot be written"):
        LabelStore(tmp_path / "new", tmp_path)


def test_a_store_has_one_server_one_folder_and_one_kind_of_labels(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with LabelStore(tmp_path / "s", tmp_path / "a"), pytest.raises(UserError, match="open"):
        LabelStore(tmp_path / "s", tmp_path / "a")
    with pytest.raises(UserError, match="--name"):
        LabelStore(tmp_path / "s", tmp_path / "b")
    with pytest.raises(UserError, match="--multiple"):
        LabelStore(tmp_path / "s", tmp_path / "a", multiple=True)
    shutil.move(tmp_path / "a", tmp_path / "c")  # the folder has another place now
    with LabelStore(tmp_path / "s", tmp_path / "c"):
        pass
    assert json.loads((tmp_path / "s" / FILE).read_text().splitlines()[-1])["root"] == str(tmp_path / "c")


def test_a_name_of_the_past_is_known_until_another_class_has_it(tmp_path) -> None:
    with LabelStore(tmp_path / "s", tmp_path) as store:
        store.begin_with(["a", "b"])
        store.rename_class("a", "c")
        store.rename_class("c", "d")
        assert [store.present_name(name) for name in "abcd"] == ["d", "b", "d", "d"]
        store.rename_class("b", "a")  # an answer "a" is one of the other class from now on
        store.rename_class("d", "a", merge=True)
        assert [store.present_name(name) for name in "abcd"] == ["a"] * 4
        store.add_class("c")
        assert [store.present_name(name) for name in "abcd"] == ["a", "a", "c", "a"]
    with LabelStore(tmp_path / "s", tmp_path) as store:
        assert [store.present_name(name) for name in "abcd"] == ["a", "a", "c", "a"]


def test_classes_are_joined_only_when_asked(tmp_path) -> None:
    with LabelStore(tmp_path / "s", tmp_path, multiple=True) as store:
        store.add_answer(made(0, "cat", "dog"))
        with pytest.raises(LabelingError, match="merge"):
            store.rename_class("dog", "cat")
        store.rename_class("dog", "cat", merge=True)
        assert store.classes == ["cat"]
        assert store.answers["a0"].labels == ("cat",)
        with pytest.raises(LabelingError, match="no class"):
            store.rename_class("dog", "x")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101, "NaN", 3, None, "a\u202eb", "\ud800", "ca\u200dt"])
def test_a_name_that_cannot_be_used(name) -> None:
    with pytest.raises(LabelingError):
        check_class_name(name)


@pytest.mark.parametrize("name", ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u0634", "<b>, 'x'"])
def test_a_name_that_can_be_used(name) -> None:
    assert check_class_name(name) == name


def test_names_with_several_labels_an_image() -> None:
    assert check_class_name(" a,b ") == "a,b"
    for name in ("a,b", "a;b", "Path", "split"):
        with pytest.raises(LabelingError):
            check_class_name(name, multiple=True)
