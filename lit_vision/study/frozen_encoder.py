"""Open a frozen encoder for commands that train nothing, as a study opens its weights and sees the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_vision.backbones.backbone import Backbone
from lit_vision.data.folder import Folder
from lit_vision.data.views.params import make_view_spec
from lit_vision.errors import UsageError, UserError
from lit_vision.study.images import typical_side
from lit_vision.study.init_weights import open_inits
from lit_vision.study.inits import Init, choose_public, init_of, parse_inits
from lit_vision.study.presets import TIMM, preset_for
from lit_vision.study.sizes import choose_sizes
from lit_vision.study.weight_files import WeightFiles
from lit_vision.weights.load import load_backbone


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder and how it sees an image.

    Attributes:
        name: of its weights, for people.
        backbone: the network.
        mean, std: (3,) of the pixels, in [0, 1].
        size: side of the evaluation view, pixels.
        crop_pct: share of the resized short side that the view keeps.
        license: of the weights.
        origin: source, license and sha256 of weights of a package or a file, to say in a line; "" for others.
    """

    name: str
    backbone: Backbone
    mean: Tensor
    std: Tensor
    size: int
    crop_pct: float
    license: str = ""
    origin: str = ""


def parse_model(model: str | None) -> Init | None:
    """Return the init of --model; None: public weights are to be chosen.

    Raises:
        UsageError: it is no name of timm's weights, file or folder.
    """
    if model is None:
        return None
    if not Path(model).expanduser().exists() and (not model.startswith(TIMM) or model == TIMM or "," in model):
        raise UsageError(f"--model: {model!r} is no such path and not {TIMM}NAME; give weights, a run or timm's name")
    return parse_inits([model])[0]


def open_frozen_encoder(
    folder: Folder, paths: Sequence[str], init: Init | None, run_dir: Path, frozen_size: int | None = None
) -> FrozenEncoder:
    """Return an encoder at the side at which a study would see the images; the weights are kept in run_dir/weights.

    Args:
        folder: of the images, or shards.
        paths: of the images; a sample gives their typical size.
        init: of `parse_model`; None: the public weights that a study would take.
        run_dir: created if missing.
        frozen_size: side, pixels; None: that of a study.

    Raises:
        UserError: weights that cannot be had or opened.
    """
    gpu, side = torch.cuda.is_available(), typical_side(folder, paths)
    given = init or init_of(choose_public(side, gpu))
    sizes = choose_sizes(side, [given.name], gpu, None, frozen_size)
    run_dir.mkdir(parents=True, exist_ok=True)
    files = WeightFiles(preset_for(sizes.train, gpu=gpu, frozen=sizes.frozen), run_dir, run_dir / "weights.log")
    opened = open_inits([given], files, () if init else [given.name])
    if not opened.inits:
        raise UserError(
            f"{given.name}: {opened.not_tried[given.name]}; connect once, pip install 'lit-vision[public]', or name "
            "weights by --model"
        )
    found = opened.inits[0]
    seen = opened.preset.frozen_side(found.name)
    backbone, report = load_backbone(files.path(found.name), seen)
    mean, std = (torch.as_tensor(values, dtype=torch.float32).flatten() for values in (report.mean, report.std))
    crop_pct = 1.0 if seen == sizes.train else make_view_spec("eval", seen).crop_pct  # as StudyImages.crop_pct
    origin = opened.origins.get(found.name, "")
    return FrozenEncoder(found.name, backbone, mean, std, seen, crop_pct, found.license, origin)
