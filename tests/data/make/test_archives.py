"""Packages from a stranger: what is read, and that nothing outside, too large, cut off or damaged passes."""

import contextlib
import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_packages import deb, link, npm, tar

from lit_vision.data.make import archives
from lit_vision.data.make.archives import find_packages
from lit_vision.errors import UserError

FILES = {"a.txt": b"one", "folder/b.txt": b"two" * 9000, "c.bin": b"\0"}
FETCH = "npm pack toy"


def read(path: Path, name: str = "toy") -> dict[str, bytes]:
    (package,) = find_packages([path], [name], FETCH)
    return dict(package.files(lambda name: True))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_files_of_both_kinds_of_package_come_under_their_names(tmp_path: Path) -> None:
    found = read(write(tmp_path / "x", npm("toy", FILES)))
    assert {name: data for name, data in found.items() if "json" not in name} == {
        f"package/{name}": data for name, data in FILES.items()
    }
    listed = tar({f"./usr/{name}": data for name, data in FILES.items()})
    wanted = {f"usr/{name}": data for name, data in FILES.items()}
    assert read(write(tmp_path / "y", deb("toy", listed))) == wanted
    assert read(write(tmp_path / "y", deb("toy", gzip.compress(listed), ".gz"))) == wanted
    assert read(write(tmp_path / "y", deb("toy", listed, ""))) == wanted
    (package,) = find_packages([tmp_path / "y"], ["toy"], FETCH)
    assert (package.name, package.version) == ("toy", "1:0.18")
    assert [name for name, _ in package.files(lambda name: name.endswith("a.txt"))] == ["usr/a.txt"]


def test_links_inside_are_not_followed(tmp_path: Path) -> None:
    inside = (link("usr/x/l", "../a.txt"), link("usr/h", "usr/a.txt", tarfile.LNKTYPE))
    assert read(write(tmp_path / "x", deb("toy", tar({"usr/a.txt": b"one"}, *inside)))) == {"usr/a.txt": b"one"}


OUTSIDE = {
    "absolute": tar({"/etc/passwd": b"x"}),
    "up": tar({"usr/../../x": b"x"}),
    "backslash": tar({"usr\\..\\..\\x": b"x"}),
    "absolute link": tar({}, link("usr/l", "/etc/passwd")),
    "link up": tar({}, link("usr/l", "../../etc/passwd")),
    "hard link up": tar({}, link("usr/l", "../etc/passwd", tarfile.LNKTYPE)),
    "device": tar({}, link("usr/l", "", tarfile.CHRTYPE)),
    "pipe": tar({}, link("usr/l", "", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_what_leads_out_of_an_archive_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out of the archive|no file, folder or link"):
        read(write(tmp_path / "x.deb", deb("toy", OUTSIDE[case])))


def test_small_files_that_unpack_to_huge_ones_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MOST_FILE_BYTES", 1 << 16)
    monkeypatch.setattr(archives, "MOST_FILES", 20)
    path = tmp_path / "x"
    with pytest.raises(UserError, match="more than 0 MiB"):  # one file
        read(write(path, deb("toy", tar({"a": bytes(1 << 17)}))))
    (package,) = find_packages([write(path, deb("toy", tar({"a": bytes(2 << 20)})))], ["toy"], FETCH)
    with pytest.raises(UserError, match="unpacks to more than 1 MiB"):  # a file that is not wanted
        list(package.files(lambda name: False))
    with pytest.raises(UserError, match="unpacks to more than 1 MiB"):  # zeros behind the end of the archive
        read(write(path, deb("toy", tar({"a": b"x"}) + bytes(3 << 20), "")))
    with pytest.raises(UserError, match="more than 20 files"):
        read(write(path, deb("toy", tar({str(i): b"" for i in range(30)}))))
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40  # a header that claims a tebibyte
    with pytest.raises(UserError, match=r"unpacks to more than 1 MiB|damaged"):
        read(write(path, deb("toy", header.tobuf() + bytes(3 << 20), "")))
    sparse = io.BytesIO()
    with tarfile.open(fileobj=sparse, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("s")
        member.size = 512
        member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"}
        archive.addfile(member, io.BytesIO(bytes(512)))
    with pytest.raises(UserError, match="more than 0 MiB"):
        read(write(path, deb("toy", sparse.getvalue())))


@pytest.mark.parametrize("kind", ["npm", "deb"])
def test_a_cut_archive_is_refused_wherever_it_is_cut(kind: str, tmp_path: Path) -> None:
    whole = npm("toy", FILES) if kind == "npm" else deb("toy", tar(FILES))
    whole = whole.rstrip(b"\n")  # the padding of a last part may be missing
    for end in [*range(0, len(whole) - 1, 7), len(whole) - 1]:
        with pytest.raises(UserError, match=r"x\.tgz.*npm pack toy|x\.tgz.*fetch it again"):
            read(write(tmp_path / "x.tgz", whole[:end]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1), value=st.integers(0, 255), kind=st.sampled_from(["npm", "deb", "plain"]))
def test_a_damaged_byte_gives_one_line_if_it_is_seen(position, value, kind: str, tmp_path: Path) -> None:
    whole = {"npm": npm("toy", FILES), "deb": deb("toy", tar(FILES)), "plain": deb("toy", tar(FILES), "")}[kind]
    at = int(position * (len(whole) - 1))
    path = write(tmp_path / "x", whole[:at] + bytes([value]) + whole[at + 1 :])
    with contextlib.suppress(UserError):  # any other error fails
        read(path)


def test_other_files_are_named_with_the_command_that_fetches_the_right_ones(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    toy, other = write(tmp_path / "toy.tgz", npm("toy", {})), write(tmp_path / "other.tgz", npm("other", {}))
    zipped = write(tmp_path / "zip.deb", b"PK\3\4")
    packed = write(tmp_path / "zstd.deb", deb("toy", b"\x28\xb5\x2f\xfd", ".zst"))
    unnamed = write(tmp_path / "unnamed.deb", deb("toy", tar({}), control=b"nothing"))
    (package,) = find_packages([packed], ["toy"], FETCH)
    with pytest.raises(UserError, match=r"zstd\.deb: is packed as data\.tar\.zst"):
        list(package.files(lambda name: True))
    for paths, message in (
        ([tmp_path / "missing.tgz"], r"missing\.tgz: no such file; npm pack toy"),
        ([tmp_path / "folder"], "folder: cannot be read.*npm pack toy"),
        ([zipped], r"zip\.deb: is neither an npm package.*npm pack toy"),
        ([unnamed], r"unnamed\.deb: is neither"),
        ([other], r"other\.tgz: holds other, not toy or two; npm pack toy"),
        ([toy, toy], r"toy\.tgz: holds toy, as .*leave one out"),
        ([toy], r"two is missing; npm pack toy"),
    ):
        with pytest.raises(UserError, match=message) as error:
            find_packages(paths, ["toy", "two"], FETCH)
        assert "\n" not in str(error.value)
