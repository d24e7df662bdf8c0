"""Names of files and folders: endings that can be decoded here, endings that cannot, and folders of the system."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lit_vision.data.views.pillow_plugins import PLUGINS
from lit_vision.errors import UserError

# Pillow decodes these in every build.
_ALWAYS = "jpg jpeg jpe jfif mpo png apng webp tif tiff bmp dib gif ppm pgm pbm pnm tga qoi pcx sgi ras dds"
_WITH_FEATURE = {"avif": "avif avifs", "jpg_2000": "jp2 j2k j2c jpc jpf jpx"}  # part of Pillow's build: endings
# Endings of pictures that are not decoded: raw photographs, drawings, documents, scientific formats.
_NOT_DECODED = (
    "3fr arw cr2 cr3 crw dng erf kdc mef mos nef nrw orf pef raf raw rw2 srw x3f svg svgz eps ai ps psd psb xcf kra "
    "pdf djvu ico cur icns exr hdr pfm dcm dicom nii mha mhd nrrd npy npz mat fits fit czi svs ndpi lif jls jxr wdp "
    "hdp mng jng heics jpm wmf emf"
)
_SYSTEM_FOLDERS = (
    "@eadir/@recycle/@tmp/@sharebin/@recently-snapshot/#recycle/#snapshot/#trash/$recycle.bin/recycler/.thumbnails/"
    ".trashes/__macosx/__pycache__/lost.dir/lost+found/system volume information/found.000"
)
_SYSTEM_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
    # what `lit-vision data` writes beside the splits, and beside the frames of a video
    | {"lit_vision_data.json", "license.txt", "broken_videos.csv", "frame_times.csv"}
)


@cache
def image_extensions() -> frozenset[str]:
    """Return the endings, in lower case and without the dot, of image files that can be decoded here."""
    from PIL import features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow does not know the name "avif"
        built = [endings for feature, endings in _WITH_FEATURE.items() if features.check(feature)]
    found = set(" ".join([_ALWAYS, *built]).split())
    for module, (_, endings) in PLUGINS.items():
        if find_spec(module):
            found |= set(endings)
    return frozenset(found)


def extension_of(name: str) -> str:
    """Return the ending of a file name, in lower case and without the dot; "" without one."""
    stem, _, ending = name.rpartition(".")
    return ending.lower() if stem else ""


def has_image_extension(name: str) -> bool:
    """True if a file name ends in one of `image_extensions`, in upper or lower case."""
    return extension_of(name) in image_extensions()


def is_picture_ending(ending: str) -> bool:
    """True for the ending of a picture, whether or not it can be decoded here."""
    return ending in image_extensions() or ending in _NOT_DECODED.split() or _package_for(ending) != ""


def is_system_folder(name: str) -> bool:
    """True for a folder of thumbnails, deleted files or metadata that an operating system or a NAS makes."""
    return name.lower() in _SYSTEM_FOLDERS.split("/")


def _package_for(ending: str) -> str:
    """Return the packages that would make an ending readable, "" if none is known."""
    packages = [package for package, endings in PLUGINS.values() if ending in endings]
    for feature, endings in _WITH_FEATURE.items():
        if ending in endings.split():
            packages.insert(0, "a newer Pillow" if feature == "avif" else "a Pillow with OpenJPEG")
    return " or ".join(packages)


@dataclass
class LeftOut:
    """Files and folders that a search for images passed over, counted by kind.

    Attributes:
        endings: number of files by ending ("" without one) that is none of `image_extensions`.
        hidden: number of hidden images and of hidden folders other than `system`.
        system: number of system folders by name; they are not entered.
        quarantined: number of images that a quarantine list named.
    """

    endings: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    system: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0

    def count(self, name: str, is_folder: bool) -> bool:
        """Return whether an entry is to be taken (an image) or entered (a folder); count it if it is not.

        Args:
            name: of the file or folder.
            is_folder: True for a folder.
        """
        if is_folder:
            if is_system_folder(name):
                self.system[name] += 1
            elif name.startswith("."):
                self.hidden += 1
            else:
                return True
        elif name.startswith("."):
            self.hidden += has_image_extension(name)
        elif has_image_extension(name):
            return True
        elif name.lower() not in _SYSTEM_FILES:
            self.endings[extension_of(name)] += 1
        return False

    def add(self, other: LeftOut) -> None:
        """Add the counts of another search."""
        self.endings += other.endings
        self.system += other.system
        self.hidden += other.hidden
        self.quarantined += other.quarantined

    @property
    def pictures(self) -> dict[str, int]:
        """Number of pictures that cannot be decoded here, by ending, the most frequent first."""
        return {ending: n for ending, n in self.endings.most_common() if is_picture_ending(ending)}

    @property
    def count_of_others(self) -> int:
        """Number of what was passed over and is no picture that could not be decoded."""
        others = self.endings.total() - sum(self.pictures.values())
        return others + self.hidden + self.system.total() + self.quarantined

    def phrases(self) -> list[str]:
        """Return a phrase for each kind: "72 .heic (install pillow-heif)", "3 other files (.csv, .txt)"."""
        found = []
        for ending, n in self.pictures.items():
            package = _package_for(ending)
            found.append(f"{n} .{ending} ({f'install {package}' if package else 'not a format that is read'})")
        other = {ending: n for ending, n in self.endings.items() if ending not in self.pictures}
        if other:
            names = ", ".join(f".{ending}" if ending else "no ending" for ending in sorted(other)[:4])
            total = sum(other.values())
            found.append(f"{total} other file{'s' * (total > 1)} ({names}{', ...' * (len(other) > 4)})")
        if self.hidden:
            found.append(f"{self.hidden} hidden")
        if self.system:
            names = ", ".join(sorted(self.system))
            total = self.system.total()
            found.append(f"{total} system folder{'s' * (total > 1)} ({names})")
        if self.quarantined:
            found.append(f"{self.quarantined} in quarantine")
        return found


def list_entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are files, folders or links; one that opens a pipe or a device would hang.

    Raises:
        UserError: the folder may not be read.
    """
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not _is_pipe_or_device(entry)]
    except PermissionError:
        raise UserError(f"{folder}: it may not be read; change its permissions") from None


def _is_pipe_or_device(entry: os.DirEntry[str]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):  # without a system call
        return False
    try:
        mode = entry.stat().st_mode
    except OSError:  # a broken link: reading it will report that
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def device_and_inode(folder: Path | str) -> tuple[int, int]:
    """Return the identity of a folder, equal for every path and link that leads to it."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino
