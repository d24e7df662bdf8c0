"""Cross-domain transfer: pre-train on one folder without labels, adapt to another with few labels, in both directions.

For each of the two folders: encoders pre-trained on it, on the other one, and none at all (from scratch, with the time that pre-training
and fine-tuning take), by linear probe and by fine-tuning on the same labels. Every finished piece is on disk, so a stopped run goes on.
Run: make table-transfer SCALE=desk     that is  python experiments/transfer.py     upright garments to turned ones, and back
     python experiments/transfer.py --pretrain-on data/A --adapt-to data/B --labels 1%,10% --seeds 3     your own two folders
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ablation import RESULTS, ROOT
from ablation_runs import frozen_features, probe

DESK = {
    "data/fashion": ((), 0.0),
    "data/fashion-turned": (("--rotated",), 180.0),
}  # folder: how it is made, rotation of the views
SCRATCH = "scratch"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        roots: the two folders.
        rotation: by folder, how far pictures turn in training on it, degrees.
        init: simclr or mae.   labels: as the study's --labels.   seeds: label subsets, initialisations and orders.
        epochs: of pre-training.   steps: of fine-tuning; from scratch takes the recipe's `scratch_factor` times as many.
    """

    roots: tuple[str, str]
    rotation: dict[str, float]
    init: str = "simclr"
    labels: str = "1%,10%"
    seeds: int = 3
    epochs: int = 20
    steps: int = 320


class Transfer:
    """Trains and measures what is not on disk yet.

    Args:
        plan: what.
        images: by folder, from `lit_vision.study.images.read_images`; of one size.
        folder: where pieces are kept.
        report: `lit_vision.study.progress.Reporter`.
    """

    def __init__(self, plan: Plan, images: dict[str, Any], folder: Path, report: Any) -> None:
        from lit_vision.study.cells import CellStore
        from lit_vision.study.presets import preset_for

        self.plan, self.images, self.folder, self.report = plan, images, folder, report
        self.presets = {root: preset_for(images[root].size, plan.rotation[root]) for root in plan.roots}
        self.store = CellStore(folder / "cells")
        (folder / "weights").mkdir(exist_ok=True)

    def pretrain(self, root: str) -> tuple[Path, str, float]:
        """(weights, their sha256, seconds) of the encoder of a folder."""
        from lit_vision.io.atomic import write_json
        from lit_vision.io.hashing import sha256_of_file
        from lit_vision.study.cells import hash_inputs
        from lit_vision.study.training import pretraining, redirect_output, train
        from lit_vision.weights.load import save_backbone

        plan, preset, images = self.plan, self.presets[root], self.images[root]
        inputs = hash_inputs(images.fingerprint, images.size, plan.init, plan.epochs, preset.used_by(plan.init))
        weights = self.folder / "weights" / f"{plan.init}-{Path(root).name}.safetensors"
        note = weights.with_suffix(".json")
        known = json.loads(note.read_text()) if note.exists() and weights.exists() else {}
        if known.get("inputs") != inputs or known.get("sha256") != sha256_of_file(weights):
            with redirect_output(self.folder / "transfer.log"):
                module, data = pretraining(plan.init, images, preset, 0)
                self.report.begin(f"pre-training on {root}", data.batch_size)
                trained = train(module, data, plan.epochs, 0, self.report.tick)
                save_backbone(weights, module.backbone, module.mean, module.std, half=True, method=plan.init)
            known = {"inputs": inputs, "sha256": sha256_of_file(weights), "seconds": trained.seconds}
            write_json(note, known)
        return weights, known["sha256"], known["seconds"]

    def run(self) -> dict[str, tuple[list, dict[str, float]]]:
        """By target folder: outcomes, and seconds of pre-training by start."""
        encoders = {root: self.pretrain(root) for root in self.plan.roots}
        return {root: self._adapt(root, encoders) for root in self.plan.roots}

    def _adapt(self, target: str, encoders: dict[str, tuple[Path, str, float]]) -> tuple[list, dict[str, float]]:
        from lit_vision.study.cells import CellKey, parse_labels

        plan, images = self.plan, self.images[target]
        outcomes = []
        frozen = {s: frozen_features(e[0], images, self.presets[target].side(plan.init)) for s, e in encoders.items()}
        for seed in range(plan.seeds):
            for labels in parse_labels(plan.labels, images.per_class):
                for source in (*plan.roots, None):
                    init = f"{plan.init}@{Path(source).name}" if source else SCRATCH
                    for protocol in ("linear", "finetune") if source else ("finetune",):
                        key = CellKey(init, protocol, labels, seed)
                        outcomes.append(
                            self._measure(target, key, encoders[source] if source else None, frozen.get(source))
                        )
        seconds = {f"{plan.init}@{Path(source).name}": encoder[2] for source, encoder in encoders.items()}
        return outcomes, seconds

    @property
    def _scratch(self) -> str:
        """The training from scratch of the same network."""
        return {"simclr": "scratch-cnn", "mae": "scratch-vit"}[self.plan.init]

    def _measure(self, target: str, key: Any, encoder: Any, frozen: Any) -> Any:
        from lit_vision.study.cells import CellKey, CellResult, hash_inputs

        plan, images, preset = self.plan, self.images[target], self.presets[target]
        kept = CellKey(f"{Path(target).name}-from-{key.init}", key.protocol, key.labels, key.seed)
        sha256 = encoder[1] if encoder else ""
        used = preset.used_by(plan.init if encoder else self._scratch, (key.protocol,))
        own = "frozen" if key.protocol == "linear" else (plan.init, plan.steps, plan.epochs, used)
        inputs = hash_inputs(images.fingerprint, images.size, sha256, own)
        if (found := self.store.get(kept, inputs)) is None:
            begin = time.perf_counter()
            if key.protocol == "linear":
                (answer, chosen), steps = probe("linear", *frozen, images, key), 0
            else:
                (answer, steps), chosen = self._train(target, key, encoder, frozen), "fixed recipe"
            top1 = float((answer.argmax(1) == images.test_labels).mean())
            found = CellResult(kept, top1, round(time.perf_counter() - begin, 3), steps, chosen, None)
            self.store.put(found, inputs, answer)
        self.report.say(
            f"to {Path(target).name}, {key.labels:>5} labels, seed {key.seed}, {key.init:<24} {key.protocol:<8} {100 * found.top1:5.1f} %"
        )
        return CellResult(key, found.top1, found.seconds, found.steps, found.chosen_on, None)

    def _train(self, target: str, key: Any, encoder: Any, frozen: Any) -> tuple[np.ndarray, int]:
        from lit_vision.evaluation.linear import logistic_regression
        from lit_vision.study.training import classification, probabilities, redirect_output, train

        plan, images, preset = self.plan, self.images[target], self.presets[target]
        rows, head, steps = images.subset(key.labels, key.seed), None, plan.steps
        init = plan.init if encoder else self._scratch
        with redirect_output(self.folder / "transfer.log"):
            if encoder:
                known = frozen[0][rows], images.labels[rows], frozen[1], len(images.classes)
                head = logistic_regression(*known, seed=key.seed)
            else:
                steps *= preset.scratch_factor
            module, data = classification(init, images, rows, preset, key.seed, encoder[0] if encoder else None, head)
            self.report.begin(key.name, data.batch_size)
            trained = train(module, data, -(-steps // data.batches_per_epoch), key.seed, self.report.tick)
            return probabilities(module, images, preset.side(init)), trained.steps


def result_of(target: str, out: Path) -> Path:
    """The results file of a target folder."""
    return out / f"transfer-to-{Path(target).name}.json"


def make(plan: Plan, images: dict[str, Any], folder: Path, out: Path) -> None:
    """Run, and write one results file per target."""
    from lit_vision.results.schema import write_result
    from lit_vision.study.cells import to_cells
    from lit_vision.study.progress import Reporter

    folder.mkdir(parents=True, exist_ok=True)
    with Reporter() as report:
        found = Transfer(plan, images, folder, report).run()
    for root, (outcomes, seconds) in found.items():
        facts = {"data_fingerprint": images[root].fingerprint, "test_images": len(images[root].test)}
        facts |= {"epochs": plan.epochs, "steps": plan.steps, "target": Path(root).name}
        took = sum(outcome.seconds for outcome in outcomes)
        cells = to_cells(outcomes, seconds)
        write_result(result_of(root, out), recipe="transfer", seconds=round(took, 1), cells=cells, **facts)


def check_names(roots: tuple[str, str]) -> None:
    """Pieces, results and starts are named by the last part of a folder's path: two folders must differ in it.

    Raises:
        UserError: they do not, or one has no name (".", "..", "/").
    """
    from lit_vision.errors import UserError

    names = [Path(root).name for root in roots]
    for root, name in zip(roots, names):
        if name in ("", ".."):
            raise UserError(f"{root}: has no name of its own, and results are named by it; give the folder by its name")
    if names[0] == names[1]:
        raise UserError(
            f"{roots[0]} and {roots[1]}: both are named {names[0]}, and so would be their results; "
            f"rename one, or give a link with another name (ln -s {roots[1]} other-{names[0]})"
        )


def show(roots: tuple[str, str], init: str, out: Path, name: str) -> None:
    """Print a table per target and what it says; write both as Markdown."""
    from lit_vision.evaluation.metrics import paired_difference
    from lit_vision.results.tables import Table, rows_from, score, to_markdown

    text = "# Transfer between two domains\n\n"
    for root in roots:
        file = result_of(root, out)
        rows = rows_from([file]) if file.exists() else []
        cells = {(row["init"], row["protocol"], row["labels"]): row for row in rows}
        counts, other = sorted({row["labels"] for row in rows}), next(r for r in roots if r != root)
        lines = []
        inits = {f"{init}@{Path(root).name}": "the same folder", f"{init}@{Path(other).name}": "the other folder"}
        for one, says in {**inits, SCRATCH: "nothing"}.items():
            for protocol in ("linear", "finetune") if one != SCRATCH else ("finetune",):
                lines.append([says, protocol, *(score(cells.get((one, protocol, n))) for n in counts)])
        table = Table(
            ["pre-trained on", "protocol", *(f"{n} labels" for n in counts)], lines, "Test top-1, mean ± sd (seeds)."
        )
        text += f"## Adapted to {Path(root).name}\n\n{to_markdown(table)}\n"
        same, far = inits
        for n in counts:
            for against, what in ((same, "pre-training on the folder itself"), (SCRATCH, "training from scratch")):
                pair = [cells.get((s, "finetune", n)) for s in (far, against)]
                if None in pair:
                    continue
                gap = paired_difference(*(row["values"] for row in pair))
                spread = "" if gap.se is None else f" ± {100 * gap.se:.1f}"
                text += f"- {n} labels: pre-training on {Path(other).name} gives {100 * gap.mean:+.1f}{spread} points against {what}.\n"
        text += "\n"
    print(text)
    (out / f"{name}.md").write_text(text, encoding="utf-8")


def main() -> int:
    """The script."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--pretrain-on", metavar="A", help="a folder as the study takes it (default: upright garments)")
    words.add_argument(
        "--adapt-to", metavar="B", help="another one (default: turned garments); both directions are run"
    )
    words.add_argument("--start", choices=["simclr", "mae"], default="simclr")
    words.add_argument("--labels", default="1%,10%", help="as lit-vision study takes them (default 1%%,10%%)")
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--epochs", type=int, default=20, help="of pre-training (default 20)")
    words.add_argument(
        "--run_dir", metavar="DIR", help="default runs/table-transfer, or runs/transfer for your folders"
    )
    words.add_argument("--scale", choices=["desk", "paper"], default="desk")
    words.add_argument("--dry", action="store_true", help="print what would be trained and leave")
    words.add_argument("--show", action="store_true", help="print from the results; train nothing")
    options = words.parse_args()
    from lit_vision.cli.main import main as run
    from lit_vision.errors import UserError

    if bool(options.pretrain_on) != bool(options.adapt_to):
        words.error("--pretrain-on and --adapt-to go together: give both or none")
    if options.seeds < 1 or options.epochs < 1:
        words.error("--seeds, --epochs: give 1 or more")
    if options.scale == "paper":
        print("transfer has no paper scale of its own; make table-simclr-transfer SCALE=paper DRY=1 has SimCLR's")
        return 0
    own = options.pretrain_on is not None
    roots = (options.pretrain_on, options.adapt_to) if own else tuple(DESK)
    rotation = {root: 0.0 if own else DESK[root][1] for root in roots}
    folder = Path(options.run_dir or ROOT / "runs" / ("transfer" if own else "table-transfer"))
    out = folder if own else RESULTS
    plan = Plan(roots, rotation, options.start, options.labels, options.seeds, options.epochs)
    try:
        check_names(roots)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--run_dir {folder}: is a file; name a folder")
    except UserError as error:
        print(f"transfer: error: {error}", file=sys.stderr)
        return error.exit_code
    if options.dry:
        print(
            f"{plan.init}, {plan.epochs} epochs on each of {roots[0]} and {roots[1]}; then to each of them from either and from scratch:"
        )
        print(
            f"  labels {plan.labels}, {plan.seeds} seeds, linear probe and {plan.steps} steps of fine-tuning; pieces in {folder}"
        )
        return 0
    try:
        if not options.show:
            from lit_vision.study.cells import parse_labels
            from lit_vision.study.images import read_images

            for root in () if own else roots:
                if code := run(["data", "fashion", *DESK[root][0], "--out", root]):
                    return code
            places = {root: Path(root) if own else ROOT / root for root in roots}
            first = read_images(places[roots[0]])
            images = {roots[0]: first, roots[1]: read_images(places[roots[1]], first.size)}
            for found in images.values():
                parse_labels(plan.labels, found.per_class)  # a wrong one is said before the pre-training
            make(plan, images, folder, out)
        show(roots, plan.init, out, "transfer" if own else "transfer-desk")
    except UserError as error:
        print(f"transfer: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
