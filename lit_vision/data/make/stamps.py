"""Make a folder of photographs with captions, cut out on white: `lit-vision data stamps`.

They are the stamps of the drawing program Tux Paint (Debian's tuxpaint-stamps-default), mostly photographs once the
folders `cartoon` and `symbols` are left out. They are under the GPL: pictures of this set, and weights trained on them,
must not be published under another license. The class of a picture is the folder of its kind (birds, fruit, vehicles),
its concept the caption, since the same thing is often there twice.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_vision.data.make.archives import Package, find_packages
from lit_vision.data.make.captioned import SIDE, Picture, file_named, make_captioned, plain_captions

PACKAGES = ("tuxpaint-stamps-default",)
FETCH = "apt-get download tuxpaint-stamps-default"
_STAMPS = "usr/share/tuxpaint/stamps/"
_DRAWN = ("cartoon", "symbols")
_OF_SEVERAL_KINDS = ("animals", "food", "plants")  # folders whose own folders are the classes


def make_stamps(archives: Sequence[Path], out: Path, side: int = SIDE, seed: int = 0) -> dict[str, int]:
    """Make the data set in `out`, as OUT/<folder>/.../<name>.png and OUT/captions.csv, one English caption a picture.

    Args:
        archives: the file of the package.
        out: see `make_captioned`; likewise the rest.
        side: of the pictures, pixels.
        seed: of the splits.

    Raises:
        UserError: see `find_packages` and `make_captioned`.
    """
    (package,) = find_packages(archives, PACKAGES, FETCH)

    def found(left_out: Counter[str]) -> Iterator[Picture]:
        captions = _read_captions(package)
        for name, data in package.files(lambda name: name.startswith(_STAMPS) and name.endswith(".png")):
            path = name.removeprefix(_STAMPS)
            folders, texts = path.split("/")[:-1], captions.get(path.removesuffix(".png"))
            if set(folders) & set(_DRAWN):
                left_out["a drawing"] += 1
            elif not texts or not folders:
                left_out["no caption"] += 1
            else:
                kind = folders[1] if folders[0] in _OF_SEVERAL_KINDS and len(folders) > 1 else folders[0]
                yield Picture(path, data, texts, texts[0].lower().rstrip("."), kind)

    def license_text() -> str:
        copyright = file_named(package, f"usr/share/doc/{package.name}/copyright").decode("utf-8", "replace")
        return f"From Debian's {package.name} {package.version}; its file copyright:\n\n{copyright}"

    return make_captioned("stamps", [package], found, license_text, out, side, seed)


def _read_captions(package: Package) -> dict[str, list[str]]:
    """Return {path without its ending: [the English caption]}; other languages follow as lines like `de.utf8=...`."""
    found = {}
    for name, data in package.files(lambda name: name.startswith(_STAMPS) and name.endswith(".txt")):
        first = data.decode("utf-8-sig", "replace").split("\n", 1)[0]
        found[posixpath.splitext(name.removeprefix(_STAMPS))[0]] = plain_captions([first])
    return found
