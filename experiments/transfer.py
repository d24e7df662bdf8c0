"""Cross-domain transfer: pre-train on one folder without labels, adapt to another with few labels, in both directions.

For each of the two folders: encoders pre-trained on it, on the other one, and none at all (from scratch, with the time
that pre-training and fine-tuning take), by linear probe and by fine-tuning on the same labels. Finished pieces are
stored, so that a stopped run can be continued.
Run: make table-transfer SCALE=desk     (python experiments/transfer.py: upright garments to rotated ones, and back)
     python experiments/transfer.py --pretrain_on data/A --adapt_to data/B --labels 1%,10%     (your own two folders)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from table_script import RESULTS, ROOT

from lit_vision.cli.parser import ScriptParser

if TYPE_CHECKING:
    from lit_vision.study.cells import CellKey, CellResult, Measurement
    from lit_vision.study.encoders import PretrainedEncoder
    from lit_vision.study.images import StudyImages
    from lit_vision.study.progress import Reporter

# folder: (options of `lit-vision data fashion` that make it, rotation of the views in degrees)
DESK: dict[str, tuple[tuple[str, ...], float]] = {
    "data/fashion": ((), 0.0),
    "data/fashion-turned": (("--rotated",), 180.0),
}
SCRATCH = "scratch"


@dataclass(frozen=True)
class Plan:
    """Settings of a comparison.

    Attributes:
        roots: the two folders.
        rotation: of the images in all trainings, degrees, by folder.
        init: simclr or mae.
        labels: as the study's --labels.
        seeds: number of label subsets, initializations and orders.
        epochs: of pre-training.
        steps: of fine-tuning; a training from scratch takes `scratch_factor` times as many.
    """

    roots: tuple[str, str]
    rotation: dict[str, float]
    init: str = "simclr"
    labels: str = "1%,10%"
    seeds: int = 3
    epochs: int = 20
    steps: int = 320


class Transfer:
    """Trains and measures what is not stored yet.

    Args:
        plan: settings.
        images: by folder, from `lit_vision.study.images.read_images`; of one size.
        folder: for weights and cells.
        reporter: prints the progress.
    """

    def __init__(self, plan: Plan, images: dict[str, StudyImages], folder: Path, reporter: Reporter) -> None:
        from lit_vision.study.cells import CellStore
        from lit_vision.study.presets import preset_for

        self.plan, self.images, self.folder, self.reporter = plan, images, folder, reporter
        self.presets = {root: preset_for(images[root].size, plan.rotation[root]) for root in plan.roots}
        self.store = CellStore(folder / "cells")
        self.log = folder / "transfer.log"

    def pretrain(self, root: str) -> PretrainedEncoder:
        """Return the encoder of a folder: trained now, or found from an earlier run with the same settings."""
        from lit_vision.study.cells import hash_inputs
        from lit_vision.study.encoders import pretrain_once
        from lit_vision.study.training import pretraining

        plan, preset, images = self.plan, self.presets[root], self.images[root]
        fields = preset.pretraining_fields(plan.init)
        return pretrain_once(
            self.folder / "weights" / f"{plan.init}-{Path(root).name}.safetensors",
            hash_inputs(images.fingerprint, images.size, plan.init, plan.epochs, fields),
            lambda: pretraining(plan.init, images, preset, 0),
            plan.epochs,
            0,
            self.reporter,
            f"pre-training on {root}",
            self.log,
            half=True,
            metadata={"method": plan.init},
        )

    def run(self) -> dict[str, tuple[list[CellResult], dict[str, float]]]:
        """Return for each target folder the results, and the seconds of pre-training by init."""
        encoders = {root: self.pretrain(root) for root in self.plan.roots}
        return {root: self._adapt(root, encoders) for root in self.plan.roots}

    def _adapt(self, target: str, encoders: dict[str, PretrainedEncoder]) -> tuple[list[CellResult], dict[str, float]]:
        from lit_vision.study.cells import CellKey, parse_labels
        from lit_vision.study.frozen import frozen_features

        plan, images = self.plan, self.images[target]
        side = self.presets[target].side(plan.init)
        frozen = {root: frozen_features(encoder.weights, images, side) for root, encoder in encoders.items()}
        results = []
        for seed in range(plan.seeds):
            for labels in parse_labels(plan.labels, images.per_class):
                for root in plan.roots:
                    for protocol in ("linear", "finetune"):
                        key = CellKey(f"{plan.init}@{Path(root).name}", protocol, labels, seed)
                        results.append(self._measure(target, key, encoders[root], frozen[root]))
                results.append(self._measure(target, CellKey(SCRATCH, "finetune", labels, seed), None, None))
        return results, {f"{plan.init}@{Path(root).name}": encoder.seconds for root, encoder in encoders.items()}

    def _network_init(self, encoder: PretrainedEncoder | None) -> str:
        return self.plan.init if encoder else {"simclr": "scratch-cnn", "mae": "scratch-vit"}[self.plan.init]

    def _measure(
        self,
        target: str,
        key: CellKey,
        encoder: PretrainedEncoder | None,
        frozen: tuple[np.ndarray, np.ndarray] | None,
    ) -> CellResult:
        from lit_vision.study.cells import hash_inputs, measure_once
        from lit_vision.study.frozen import measure_frozen

        images = self.images[target]
        steps = self.plan.steps * (1 if encoder else self.presets[target].scratch_factor)
        fields = self.presets[target].training_fields(self._network_init(encoder))
        settings = "frozen" if key.protocol == "linear" else (steps, fields)
        seen = (images.fingerprint, images.size, "pixels of the files")
        inputs = hash_inputs(*seen, encoder.sha256 if encoder else "", settings)

        def measure() -> Measurement:
            if key.protocol == "linear" and frozen:
                return measure_frozen(key, *frozen, images)
            return self._train(target, key, encoder, frozen, steps)

        stored_key = replace(key, init=f"{Path(target).name}-from-{key.init}")  # one store for both targets
        result = replace(measure_once(self.store, stored_key, inputs, images.test_labels, measure), key=key)
        score = f"{key.init:<24} {key.protocol:<8} {100 * result.value:5.1f} %"
        self.reporter.log(f"to {Path(target).name}, {key.labels:>5} labels, seed {key.seed}, {score}")
        return result

    def _train(
        self,
        target: str,
        key: CellKey,
        encoder: PretrainedEncoder | None,
        frozen: tuple[np.ndarray, np.ndarray] | None,
        steps: int,
    ) -> Measurement:
        from lit_vision.study import training
        from lit_vision.study.cells import Measurement
        from lit_vision.study.frozen import fit_probe
        from lit_vision.study.weight_files import redirect_output

        images, preset, init = self.images[target], self.presets[target], self._network_init(encoder)
        rows = images.subset(key.labels, key.seed)
        with redirect_output(self.log):
            probe = fit_probe(key, *frozen, images) if frozen else None
            weights = encoder.weights if encoder else None
            module, data = training.classification(init, images, rows, preset, key.seed, weights, probe)
            self.reporter.start_task(key.name, data.batch_size)
            epochs = -(-steps // data.batches_per_epoch)
            trained = training.train(module, data, epochs, key.seed, self.reporter.update)
            return Measurement(training.probabilities(module, images, preset.side(init)), trained.steps)


def result_of(target: str, out: Path) -> Path:
    """Return the results file of a target folder."""
    return out / f"transfer-to-{Path(target).name}.json"


def make(plan: Plan, images: dict[str, StudyImages], folder: Path, out: Path) -> None:
    """Train and measure, and write a results file for each target."""
    from lit_vision.results.schema import write_result
    from lit_vision.study.cells import to_cells
    from lit_vision.study.progress import Reporter

    folder.mkdir(parents=True, exist_ok=True)
    with Reporter() as reporter:
        found = Transfer(plan, images, folder, reporter).run()
    for root, (results, seconds) in found.items():
        facts = {"data_fingerprint": images[root].fingerprint, "test_images": len(images[root].test)}
        facts |= {"epochs": plan.epochs, "steps": plan.steps, "target": Path(root).name}
        total = round(sum(result.seconds for result in results), 1)
        cells = to_cells(results, seconds)
        write_result(result_of(root, out), recipe="transfer", seconds=total, cells=cells, **facts)


def check_names(roots: tuple[str, str]) -> None:
    """Check that the last parts of the two paths differ: stored pieces, results and inits are named by them.

    Raises:
        UserError: they are equal, or one path has no name (".", "..", "/").
    """
    from lit_vision.errors import UserError

    names = [Path(root).name for root in roots]
    for root, name in zip(roots, names):
        if name in ("", ".."):
            raise UserError(f"{root}: has no name, and results are named by it; give the folder by its name")
    if names[0] == names[1]:
        raise UserError(
            f"{roots[0]} and {roots[1]}: both are named {names[0]}, and results are named by it; "
            f"rename one, or give a link with another name (ln -s {roots[1]} other-{names[0]})"
        )


def show(roots: tuple[str, str], init: str, out: Path, name: str) -> None:
    """Print a table for each target and its conclusions; write both as Markdown."""
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
        for row_init, source in {**inits, SCRATCH: "nothing"}.items():
            for protocol in ("linear", "finetune") if row_init != SCRATCH else ("finetune",):
                lines.append([source, protocol, *(score(cells.get((row_init, protocol, n))) for n in counts)])
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
                points = f"{100 * gap.mean:+.1f}{spread} points"
                text += f"- {n} labels: pre-training on {Path(other).name} gives {points} against {what}.\n"
        text += "\n"
    print(text)
    (out / f"{name}.md").write_text(text, encoding="utf-8")


def parser() -> ScriptParser:
    """Return the parser of the script's options."""
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--pretrain_on", metavar="A", help="a folder as the study takes it (default: upright garments)")
    add("--adapt_to", metavar="B", help="another one (default: rotated garments); both directions are run")
    add("--init", choices=["simclr", "mae"], default="simclr", help="method of pre-training (default simclr)")
    add("--labels", default="1%,10%", help="as lit-vision study takes them (default 1%%,10%%)")
    add("--seeds", type=int, default=3, help="number of label subsets (default 3)")
    add("--epochs", type=int, default=20, help="of pre-training (default 20)")
    add("--run_dir", metavar="DIR", help="default runs/table-transfer, or runs/transfer for your folders")
    add("--scale", choices=["desk", "paper"], default="desk", help="desk trains; paper prints what there is")
    add("--dry", action="store_true", help="print what would be trained and exit")
    add("--show", action="store_true", help="print from the results; train nothing")
    return parser


def main() -> int:
    """Run the script; return its exit code."""
    arguments = parser()
    options = arguments.parse_args()
    from lit_vision.cli.main import main as run
    from lit_vision.errors import UserError

    if bool(options.pretrain_on) != bool(options.adapt_to):
        arguments.error("--pretrain_on and --adapt_to go together: give both or none")
    if options.seeds < 1 or options.epochs < 1:
        arguments.error("--seeds, --epochs: give 1 or more")
    if options.scale == "paper":
        print("transfer has no paper scale; make table-simclr-transfer SCALE=paper DRY=1 has SimCLR's transfer table")
        return 0
    own = options.pretrain_on is not None
    roots = (options.pretrain_on, options.adapt_to) if own else tuple(DESK)
    rotation = {root: 0.0 if own else DESK[root][1] for root in roots}
    folder = Path(options.run_dir or ROOT / "runs" / ("transfer" if own else "table-transfer"))
    out = folder if own else RESULTS
    plan = Plan(roots, rotation, options.init, options.labels, options.seeds, options.epochs)
    try:
        check_names(roots)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--run_dir {folder}: is a file; name a folder")
    except UserError as error:
        print(f"transfer: error: {error}", file=sys.stderr)
        return error.exit_code
    if options.dry:
        print(f"{plan.init}, {plan.epochs} epochs on each of {roots[0]} and {roots[1]}; then on each, from both")
        print(f"encoders and from scratch: labels {plan.labels}, {plan.seeds} seeds, linear probe and fine-tuning of")
        print(f"{plan.steps} steps; stored in {folder}")
        return 0
    try:
        if not options.show:
            from lit_vision.study.cells import parse_labels
            from lit_vision.study.images import read_images

            for root in () if own else roots:
                if code := run(["data", "fashion", *DESK[root][0], "--out", root]):
                    return code
            paths = [Path(root) if own else ROOT / root for root in roots]
            first = read_images(paths[0])
            images = {roots[0]: first, roots[1]: read_images(paths[1], first.size)}
            for found in images.values():
                parse_labels(plan.labels, found.per_class)  # refuses a wrong list before the pre-training
            make(plan, images, folder, out)
        show(roots, plan.init, out, "transfer" if own else "transfer-desk")
    except UserError as error:
        print(f"transfer: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
