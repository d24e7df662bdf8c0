"""Make a folder of drawings with titles and keywords: `lit-vision data clipart`.

The drawings are the Open Clip Art Library's of 2005 (public domain), as Debian's openclipart-png has rendered them; the
words stand in the metadata of the same drawings in openclipart-svg. Left out are the 1,378 stars, sets of icons, and
drawings that do not say that they are in the public domain. The class of a picture is its top folder (animals), its
concept the folder that holds it (animals/birds).
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from lit_vision.data.make.archives import Package, find_packages
from lit_vision.data.make.captioned import SIDE, Picture, file_named, make_captioned, plain_captions

PACKAGES = ("openclipart-png", "openclipart-svg")
FETCH = "apt-get download openclipart-png openclipart-svg"
MOST_OF_A_TEXT = 3  # pictures: a title or keywords of more name a collection ("card", "symbol, sign"), not what is seen
_PNG, _SVG = "usr/share/openclipart/png/", "usr/share/openclipart/svg/"
_DC = "{http://purl.org/dc/elements/1.1/}"
_PUBLIC_DOMAIN = ("http://web.resource.org/cc/PublicDomain", "http://creativecommons.org/licenses/publicdomain/")
_NO_KEYWORDS = ("", "hash", "unsorted")  # of the library's own bookkeeping


def make_clipart(archives: Sequence[Path], out: Path, side: int = SIDE, seed: int = 0) -> dict[str, int]:
    """Make the data set in `out`, as OUT/<folder>/.../<drawing>.png and OUT/captions.csv.

    The first caption of a picture is its title, the second its keywords; neither if more than MOST_OF_A_TEXT have it.

    Args:
        archives: files of both PACKAGES.
        out: see `make_captioned`; likewise the rest.
        side: of the pictures, pixels.
        seed: of the splits.

    Raises:
        UserError: see `find_packages` and `make_captioned`.
    """
    drawings, words = find_packages(archives, PACKAGES, FETCH)

    def found(left_out: Counter[str]) -> Iterator[Picture]:
        captions = _read_captions(words, left_out)
        for name, data in drawings.files(lambda name: name.startswith(_PNG)):
            path = name.removeprefix(_PNG)
            if texts := captions.get(path.removesuffix(".png")):
                yield Picture(path, data, texts, posixpath.dirname(path), path.split("/")[0])

    def license_text() -> str:
        copyright = file_named(drawings, f"usr/share/doc/{drawings.name}/copyright").decode("utf-8", "replace")
        return f"From Debian's {drawings.name} {drawings.version}; its file copyright:\n\n{copyright}"

    return make_captioned("clipart", [drawings, words], found, license_text, out, side, seed)


def _read_captions(package: Package, left_out: Counter[str]) -> dict[str, list[str]]:
    """Return {path without its ending: captions} of the drawings in the public domain that have words."""
    titles: dict[str, str] = {}
    keywords: dict[str, str] = {}
    for name, data in package.files(lambda name: name.startswith(_SVG) and name.endswith(".svg")):
        path = name.removeprefix(_SVG).removesuffix(".svg")
        if path.startswith("shapes/stars/") or "-theme/" in path:
            left_out["a star, or an icon of a set"] += 1
            continue
        read = _read_metadata(data)
        if read is None:
            left_out["does not say that it is in the public domain"] += 1
            continue
        titles[path], keywords[path] = read
    count = Counter([*titles.values(), *keywords.values()])
    found = {}
    for path in titles:
        captions = plain_captions(text for text in (titles[path], keywords[path]) if count[text] <= MOST_OF_A_TEXT)
        if captions:
            found[path] = captions
        else:
            left_out["no title or keywords of its own"] += 1
    return found


def _read_metadata(svg: bytes) -> tuple[str, str] | None:
    """Return title and keywords of a drawing; None unless it says that it is in the public domain."""
    try:
        work = next((node for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}Work")), None)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):  # of an encoding
        return None
    if work is None:
        return None
    licenses = [value for node in work.iter() if node.tag.endswith("}license") for value in node.attrib.values()]
    if not licenses or not all(value in _PUBLIC_DOMAIN for value in licenses):
        return None
    title = (work.findtext(f"{_DC}title") or "").strip().removesuffix(".svg").replace("_", " ")
    words = [(node.text or "").strip().lower().replace("_", " ") for node in work.iter() if node.tag.endswith("}li")]
    return title, ", ".join(dict.fromkeys(word for word in words if word not in _NO_KEYWORDS))
