"""The pre-trained starts of a study: trained here or fetched, on disk, with the frozen features that every protocol needs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lit_vision.io.atomic import write_json
from lit_vision.io.hashing import sha256_of_file
from lit_vision.io.text import format_duration
from lit_vision.study.cells import hash_inputs
from lit_vision.study.figures import reconstructions
from lit_vision.study.images import StudyImages
from lit_vision.study.presets import StudyPreset
from lit_vision.study.progress import Reporter
from lit_vision.study.training import (
    features,
    precision_of,
    pretraining,
    public_weights,
    redirect_output,
    save_encoder,
    train,
)
from lit_vision.weights.load import load_backbone, load_into


@dataclass
class Encoder:
    """A pre-trained start: where its weights lie, what it cost, and its frozen features of the labelled pool and the test split."""

    weights: Path
    sha256: str
    seconds: float
    images_seen: int
    pool: np.ndarray
    test: np.ndarray


class Encoders:
    """Makes or finds the encoders of one folder's study.

    Args:
        images, preset, report: of the study.
        folder: the run's; weights go to its weights/, the reconstructions to its samples/.
        source: the images to pre-train on; None: the study's own.
    """

    def __init__(
        self,
        images: StudyImages,
        preset: StudyPreset,
        folder: Path,
        report: Reporter,
        source: StudyImages | None = None,
    ) -> None:
        self.images, self.preset, self.folder, self.report = images, preset, folder, report
        self.source = source or images
        self.log = folder / "study.log"
        (folder / "weights").mkdir(exist_ok=True)

    def path(self, init: str) -> Path:
        """Where a start's weights lie."""
        return self.folder / "weights" / f"{init.replace(':', '_')}.safetensors"

    def fetch(self, init: str) -> str:
        """Bring public weights here. Returns their license; UserError where they cannot be had."""
        path = self.path(init)
        with redirect_output(self.log):
            if not path.exists():
                public_weights(init, path)
            return load_backbone(path)[1].metadata.get("license", "not stated")

    def public(self, init: str) -> Encoder:
        """Public weights, already fetched."""
        path = self.path(init)
        with redirect_output(self.log):
            backbone, report = load_backbone(path)
            pool, test = features(backbone, report.mean, report.std, self.images, self.preset.side(init))
        return Encoder(path, sha256_of_file(path), 0.0, 0, pool, test)

    def pretrain(self, init: str, epochs: int, count: int | None = None) -> Encoder:
        """Pre-train on the pool (or `count` of it), or find the weights of an earlier run of the same images, recipe and epochs."""
        own = getattr(self.preset, init), getattr(self.preset, f"{init}_views"), asdict(self.preset.network(init))
        inputs = hash_inputs(
            hash_inputs(self.images.fingerprint, self.images.size), init, epochs, own, *([count] if count else [])
        )
        weights = self.path(init)
        note = weights.with_suffix(".json")
        known = json.loads(note.read_text()) if note.exists() and weights.exists() else {}
        with redirect_output(self.log):
            module, data = pretraining(init, self.source, self.preset, 0, count)
            if known.get("inputs") != inputs or known.get("sha256") != sha256_of_file(weights):
                self.report.begin(f"{init} pre-training", data.batch_size)
                trained = train(module, data, epochs, 0, self.report.tick)
                about = {"method": init, "data_fingerprint": self.source.fingerprint}
                save_encoder(module.backbone, module.mean, module.std, weights, **about)
                known = {
                    "inputs": inputs,
                    "sha256": sha256_of_file(weights),
                    "seconds": trained.seconds,
                    "images_seen": trained.steps * data.batch_size,
                    "precision": precision_of(module),
                    "losses": [round(loss, 5) for loss in trained.losses],
                }
                if init == "mae":
                    reconstructions(self.folder / "samples" / "reconstructions.png", module, self.images)
                write_json(note, known)
                took = f"{format_duration(trained.seconds)}, loss {np.mean(trained.losses[-20:]):.3f}"
                self.report.say(f"{init}: {epochs} epochs, {took}")
            else:
                load_into(module.backbone, weights)
                self.report.say(f"{init}: found, {known['seconds']:.0f} s of training kept")
            pool, test = features(module.backbone, module.mean, module.std, self.images, self.preset.side(init))
        return Encoder(weights, known["sha256"], known["seconds"], known["images_seen"], pool, test)
