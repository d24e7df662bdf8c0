"""The pre-trained starts of a study: trained here or fetched, on disk, with the frozen features that every protocol needs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lit_vision.io.atomic import write_json
from lit_vision.io.text import clock
from lit_vision.study.cells import digest
from lit_vision.study.figures import reconstructions
from lit_vision.study.images import Images
from lit_vision.study.presets import Recipe
from lit_vision.study.progress import Reporter
from lit_vision.study.training import features, precision_of, pretraining, public_weights, quiet, save, train
from lit_vision.weights.load import load_backbone, load_into, sha256_of


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
        images, recipe, report: of the study.
        folder: the run's; weights go to its weights/, the reconstructions to its samples/.
        source: the images to pre-train on; None: the study's own.
    """

    def __init__(
        self, images: Images, recipe: Recipe, folder: Path, report: Reporter, source: Images | None = None
    ) -> None:
        self.images, self.recipe, self.folder, self.report = images, recipe, folder, report
        self.source = source or images
        self.log = folder / "study.log"
        (folder / "weights").mkdir(exist_ok=True)

    def path(self, start: str) -> Path:
        """Where a start's weights lie."""
        return self.folder / "weights" / f"{start.replace(':', '_')}.safetensors"

    def fetch(self, start: str) -> str:
        """Bring public weights here. Returns their licence; UserError where they cannot be had."""
        path = self.path(start)
        with quiet(self.log):
            if not path.exists():
                public_weights(start, path)
            return load_backbone(path)[1].metadata.get("licence", "not stated")

    def public(self, start: str) -> Encoder:
        """Public weights, already fetched."""
        path = self.path(start)
        with quiet(self.log):
            backbone, report = load_backbone(path)
            pool, test = features(backbone, report.mean, report.std, self.images, self.recipe.side(start))
        return Encoder(path, sha256_of(path), 0.0, 0, pool, test)

    def pretrain(self, start: str, epochs: int, count: int | None = None) -> Encoder:
        """Pre-train on the pool (or `count` of it), or find the weights of an earlier run of the same images, recipe and epochs."""
        own = getattr(self.recipe, start), getattr(self.recipe, f"{start}_views"), asdict(self.recipe.network(start))
        inputs = digest(
            digest(self.images.fingerprint, self.images.size), start, epochs, own, *([count] if count else [])
        )
        weights = self.path(start)
        note = weights.with_suffix(".json")
        known = json.loads(note.read_text()) if note.exists() and weights.exists() else {}
        with quiet(self.log):
            module, data = pretraining(start, self.source, self.recipe, 0, count)
            if known.get("inputs") != inputs or known.get("sha256") != sha256_of(weights):
                self.report.begin(f"{start} pre-training", data.batch_size)
                trained = train(module, data, epochs, 0, self.report.tick)
                about = {"method": start, "data_fingerprint": self.source.fingerprint}
                save(module.backbone, module.mean, module.std, weights, **about)
                known = {
                    "inputs": inputs,
                    "sha256": sha256_of(weights),
                    "seconds": trained.seconds,
                    "images_seen": trained.steps * data.batch_size,
                    "precision": precision_of(module),
                    "losses": [round(loss, 5) for loss in trained.losses],
                }
                if start == "mae":
                    reconstructions(self.folder / "samples" / "reconstructions.png", module, self.images)
                write_json(note, known)
                took = f"{clock(trained.seconds)}, loss {np.mean(trained.losses[-20:]):.3f}"
                self.report.say(f"{start}: {epochs} epochs, {took}")
            else:
                load_into(module.backbone, weights)
                self.report.say(f"{start}: found, {known['seconds']:.0f} s of training kept")
            pool, test = features(module.backbone, module.mean, module.std, self.images, self.recipe.side(start))
        return Encoder(weights, known["sha256"], known["seconds"], known["images_seen"], pool, test)
