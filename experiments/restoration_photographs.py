"""Photographs of table_restoration.py: which of Debian's wallpapers are photographs, the split, and the crops.

The archives stand in runs/: apt-get download plasma-workspace-wallpapers mate-backgrounds lomiri-wallpapers-16.04
lomiri-wallpapers-20.04. Their pictures are under CC-BY, CC-BY-SA and other licenses (see the packages' copyright
files): the table holds numbers only. Nothing is made from them that is committed, no picture and no weights.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from table_script import ROOT

PACKAGES = ("plasma-workspace-wallpapers", "mate-backgrounds", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
DATA = ROOT / "data" / "photographs"
PIXELS, TILE = 1_000_000, 96  # of a reduced photograph; side of the pieces that training crops are drawn from
CENTER = (320, 448)  # rows and columns of a held-out photograph that are measured
_PLASMA = "Autumn BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path"
_MATE = "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower"
_LOMIRI = (
    "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Kleiber_by_Lukas_Baubkus Picture_0B_by_freespace "
    "Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich "
    "friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi "
    "picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi"
)
# name of a photograph: its file in the packages
FILES = {
    **{n: f"usr/share/wallpapers/{n}/contents/images/2560x1600.jpg" for n in (*_PLASMA.split(), "summer_1am")},
    "Shell": "usr/share/wallpapers/Shell/contents/images/5120x2880.jpg",
    **{n: f"usr/share/backgrounds/mate/nature/{n}.jpg" for n in _MATE.split()},
    **{n: f"usr/share/backgrounds/{n}.jpg" for n in _LOMIRI.split()},
}
# photographs of the training part, on whose middle the strengths of classical filters are chosen
TUNING = ("FallenLeaf", "Garden", "friends_by_Aitzol_Berasategi", "OneStandsOut")
SHOWN = ("astronaut", "chelsea", "coffee", "rocket")  # of scikit-image; measured too


def split_of(name: str) -> str:
    """Return "test" for every third photograph by name, "val" for every eighth of the others, else "train"."""
    if name in SHOWN:
        return "test"
    names = sorted(FILES, key=str.lower)
    if names.index(name) % 3 == 2:
        return "test"
    return "val" if [n for n in names if names.index(n) % 3 != 2].index(name) % 8 == 4 else "train"


def make_photographs() -> Path:
    """Write data/photographs: test and val pictures, and the pieces that training draws its crops from.

    Raises:
        SystemExit: an archive is missing.
    """
    import cv2

    from lit_vision.io.atomic import atomic_path

    if (DATA / "fingerprint.json").exists():
        return DATA
    archives = {name: next(iter(sorted((ROOT / "runs").glob(f"{name}_*.deb"))), None) for name in PACKAGES}
    if missing := [name for name, path in archives.items() if path is None]:
        raise SystemExit(f"runs/: no archive of {missing[0]}; run in that folder: apt-get download {missing[0]}")
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as unpacked, atomic_path(DATA, fsync=False) as folder:
        for path in archives.values():
            subprocess.run(["dpkg-deb", "-x", str(path), unpacked], check=True)
        for name in (*sorted(FILES), *SHOWN):
            split, picture = split_of(name), _reduced(name, Path(unpacked))
            digest.update(name.encode() + picture.tobytes())
            pieces = _tiles(picture) if split != "test" else {name: _center(picture)}
            if split == "val":
                pieces = dict(list(pieces.items())[::8])
            if name in TUNING:
                _write(folder / "tuning" / f"{name}.png", _center(picture), cv2)
            for piece, pixels in pieces.items():
                file = f"{name}-{piece}" if split != "test" else piece
                where = folder / "held-out" if split == "test" else folder / split / "photograph"
                _write(where / f"{file}.png", pixels, cv2)
        counts = {s: sum(split_of(n) == s for n in (*FILES, *SHOWN)) for s in ("train", "val", "test")}
        (folder / "fingerprint.json").write_text(json.dumps({"sha256": digest.hexdigest(), "photographs": counts}))
    return DATA


def _reduced(name: str, unpacked: Path) -> np.ndarray:
    """Return a photograph of about a megapixel, (H, W, 3) uint8; scikit-image's are smaller and stay as they are."""
    from lit_vision.data.views.decode import decode
    from lit_vision.data.views.views import resize

    if name in SHOWN:
        import skimage.data

        return np.ascontiguousarray(getattr(skimage.data, name)()[..., :3])
    picture = decode((unpacked / FILES[name]).read_bytes())
    factor = min(1.0, (PIXELS / (picture.shape[0] * picture.shape[1])) ** 0.5)
    return resize(picture, round(picture.shape[0] * factor), round(picture.shape[1] * factor))


def _center(picture: np.ndarray) -> np.ndarray:
    """Return the middle of a photograph, at most CENTER, with sides that are multiples of 64."""
    rows, columns = (min(most, side // 64 * 64) for most, side in zip(CENTER, picture.shape))
    top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    return picture[top : top + rows, left : left + columns]


def _tiles(picture: np.ndarray) -> dict[str, np.ndarray]:
    """Return the pieces of TILE pixels a side that fit into a photograph, by their place."""
    return {
        f"{top:04d}-{left:04d}": picture[top : top + TILE, left : left + TILE]
        for top in range(0, picture.shape[0] - TILE + 1, TILE)
        for left in range(0, picture.shape[1] - TILE + 1, TILE)
    }


def _write(path: Path, pixels: np.ndarray, cv2: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[..., ::-1])  # type: ignore[attr-defined]
