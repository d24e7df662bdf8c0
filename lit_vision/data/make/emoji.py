"""Make a folder of emoji with their names and tags: `lit-vision data emoji`.

The pictures are Microsoft's Fluent Emoji (3D, MIT) in the npm package @lobehub/fluent-emoji-3d, the words Unicode's
CLDR names and tags in emojibase-data (MIT). Flags and skin tones are left out. The class of a picture is its group in
Unicode's order (food-drink), its concept the subgroup (food-fruit).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_vision.data.make.archives import Package, find_packages
from lit_vision.data.make.captioned import SIDE, Picture, file_named, make_captioned, plain_captions
from lit_vision.errors import UserError

PACKAGES = ("@lobehub/fluent-emoji-3d", "emojibase-data")
FETCH = "npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0"
_LEFT_OUT_GROUPS = ("component", "flags")
_PICTURES = "package/assets/"


def make_emoji(archives: Sequence[Path], out: Path, side: int = SIDE, seed: int = 0) -> dict[str, int]:
    """Make the data set in `out`, as OUT/<group>/<subgroup>/<code points>.png and OUT/captions.csv.

    The first caption of a picture is its name ("red apple"), the second its tags ("apple, fruit, red").

    Args:
        archives: files of both PACKAGES.
        out: see `make_captioned`; likewise the rest.
        side: of the pictures, pixels.
        seed: of the splits.

    Raises:
        UserError: see `find_packages` and `make_captioned`.
    """
    pictures, words = find_packages(archives, PACKAGES, FETCH)

    def found(left_out: Counter[str]) -> Iterator[Picture]:
        entries = _read_words(words)
        for name, data in pictures.files(lambda name: name.startswith(_PICTURES)):
            code = _plain_code(name.removeprefix(_PICTURES).removesuffix(".webp"))
            if code in entries:
                path, captions, concept, group = entries.pop(code)
                yield Picture(path, data, captions, concept, group)
            else:
                left_out["a skin tone, flag or component, or no words"] += 1
        left_out["words without a picture"] += len(entries)

    def license_text() -> str:
        return (
            "Pictures: Fluent Emoji by Microsoft (https://github.com/microsoft/fluentui-emoji, MIT License), from the "
            f"npm package {pictures.name} {pictures.version}, whose package.json says MIT.\n"
            f"Words: {words.name} {words.version}, with names and tags of Unicode's CLDR; its license:\n\n"
            + file_named(words, "package/LICENSE").decode("utf-8", "replace")
        )

    return make_captioned("emoji", [pictures, words], found, license_text, out, side, seed)


def _read_words(package: Package) -> dict[str, tuple[str, list[str], str, str]]:
    """Return {code points: (path, captions, subgroup, group)}."""
    try:
        groups = json.loads(file_named(package, "package/meta/groups.json"))
        entries: list[dict[str, Any]] = json.loads(file_named(package, "package/en/data.json"))
        found = {}
        for entry in entries:
            if "group" not in entry or "subgroup" not in entry:  # single letters, of which flags are made
                continue
            group, concept = groups["groups"][str(entry["group"])], groups["subgroups"][str(entry["subgroup"])]
            code, captions = (
                entry["hexcode"].lower(),
                plain_captions([entry["label"], ", ".join(entry.get("tags", ()))]),
            )
            if not all(re.fullmatch("[0-9a-z-]+", part) for part in (group, concept, code)):
                raise ValueError(f"{group}/{concept}/{code}")
            if group not in _LEFT_OUT_GROUPS and captions:
                found[_plain_code(code)] = f"{group}/{concept}/{code}.png", captions, concept, group
        return found
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--archive {package.path}: its lists of emoji are not as in version 17 ({error!r}); {FETCH}"
        ) from None


def _plain_code(code: str) -> str:
    """Return code points without FE0F, which only asks for the colored form; not all packages write it."""
    return "-".join(part for part in code.split("-") if part != "fe0f")
