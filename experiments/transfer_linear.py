"""Transfer by a linear classifier on frozen features: L-BFGS logistic regression. Chen et al. 2020, App. B.8.

The L2 strength is chosen on val out of 45 from 1e-6 to 1e5, evenly spaced in their logarithm; images under the
evaluation view (center crop), no augmentation; the chosen strength is fitted again on train and val together, and test
is read once. Unlike the paper: features are centered and scaled. Run: python experiments/transfer_linear.py RUN_OR_FILE
--root data/food101 --out results.json [--per_class]
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from lit_vision.cli.parser import ScriptParser

STRENGTHS = tuple(10 ** (-6 + 11 * i / 44) for i in range(45))


def main(argv: Sequence[str] | None = None, strengths: Sequence[float] = STRENGTHS) -> int:
    """Run the script; return 1 after a one-line message for an error that the user can fix."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("model", help="a run's folder or a weights file")
    parser.add_argument("--root", required=True, help="a folder with train/, val/ and test/ by class")
    parser.add_argument("--out", required=True, help="the results file")
    parser.add_argument("--per_class", action="store_true", help="mean of the classes' accuracies instead of top-1")
    parser.add_argument("--batch_size", type=int, default=256, help="images per batch (default 256)")
    args = parser.parse_args(argv)
    from lit_vision.errors import UserError

    try:
        print(measure(args, strengths))
    except UserError as error:
        print(f"transfer_linear.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(args: Namespace, strengths: Sequence[float]) -> str:
    """Extract features, choose the strength, measure test; write the results file and return a line to print."""
    import torch

    from lit_vision.data import ImageFolderDataModule
    from lit_vision.evaluation.features import extract_features
    from lit_vision.evaluation.linear import logistic_regression
    from lit_vision.evaluation.metrics import confusion_matrix, per_class_accuracy
    from lit_vision.predict.models import load_method, resolve_model_file
    from lit_vision.results.schema import write_result

    start = time.perf_counter()
    method, metadata = load_method(resolve_model_file(args.model))
    data = ImageFolderDataModule(
        args.root, img_size=metadata.size, crop_pct=metadata.crop_pct, batch_size=args.batch_size
    )
    data.setup()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, val, test = (
        extract_features(method.backbone, data.eval_loader(split), method.mean, method.std, device)
        for split in ("train", "val", "test")
    )
    validation = (val.features, val.labels)
    chosen = logistic_regression(
        train.features, train.labels, val.features, data.num_classes, strengths=strengths, validation=validation
    )
    both = torch.cat([train.features, val.features]), torch.cat([train.labels, val.labels])
    probe = logistic_regression(*both, test.features, data.num_classes, strengths=[chosen.strength])
    matrix = confusion_matrix(probe.predictions, test.labels, data.num_classes)
    per_class = per_class_accuracy(matrix)
    name = "test/mean_per_class" if args.per_class else "test/top1"
    value = float(per_class[per_class == per_class].mean()) if args.per_class else float(matrix.trace() / matrix.sum())
    write_result(
        Path(args.out),
        recipe="transfer_linear",
        metric={"name": name, "value": value},
        samples=len(test),
        seconds=time.perf_counter() - start,
        data_fingerprint=data.fingerprint,
        weights_sha256=metadata.features,
        strength=chosen.strength,
        chosen_on=chosen.chosen_on,
    )
    return f"{name} {value:.4f} ({len(test)} images, strength {chosen.strength:.3g} of {chosen.chosen_on}): {args.out}"


if __name__ == "__main__":
    sys.exit(main())
