"""Worked medical case: train on a two-class folder or a MedMNIST file, then write a clinical report of the test split.

    python experiments/classify/medical.py FOLDER_OR_NPZ --positive CLASS [--sensitivity 0.95] [--data.img_size 224 ...]

Trains experiments/classify/resnet50_medical_100ep.yaml with class weights, takes the checkpoint that was best on the
validation split, and writes RUN/clinical.txt (sensitivity, specificity, AUROC with 95 % intervals, calibration,
classification report), RUN/confusion.png and RUN/results-medical.json. With --sensitivity the threshold is chosen on
the validation split; the test split is read once. Flags that are not known here go to `lit-vision fit`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.cli.parser import ScriptParser

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.data import DataLoader

    from lit_vision.data import ImageFolderDataModule
    from lit_vision.methods import Classifier

RECIPE = Path(__file__).with_name("resnet50_medical_100ep.yaml")


def probabilities(model: Classifier, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """Return softmax probabilities (N, K) and labels (N,) of a loader's images."""
    import torch

    from lit_vision.data.batch import normalize

    found, labels = [], []
    with torch.inference_mode():
        for batch in loader:
            images = normalize(batch["images"].to(model.device), model.mean, model.std)[:, 0]
            found.append(model(images).float().softmax(1).cpu())
            labels.append(batch["label"])
    return torch.cat(found).numpy(), torch.cat(labels).numpy()


def make_data(settings: dict[str, Any]) -> ImageFolderDataModule:
    """Return the data module of a run's config: the same images, size and crop as in its training."""
    from lit_vision.data import ImageFolderDataModule
    from lit_vision.errors import UserError

    if settings["data"]["class_path"].rsplit(".", 1)[-1] != "ImageFolderDataModule":
        raise UserError(
            f"data.class_path: {settings['data']['class_path']}; this script needs an ImageFolderDataModule"
        )
    data = ImageFolderDataModule(**settings["data"]["init_args"])
    data.setup()
    return data


def check_data(data: ImageFolderDataModule) -> None:
    """Check before the training what would end in an error, or in no number, after it.

    Raises:
        UserError: there are not two classes, a split or a class of a split is missing, or an image cannot be read.
    """
    from lit_vision.data.check.image_check import ImageCheck
    from lit_vision.errors import UserError

    if data.num_classes != 2:
        raise UserError(
            f"{data.root}: {data.num_classes} classes ({', '.join(data.class_names[:5])}); this script needs two"
        )
    for role in ("train", "val", "test"):
        split = data.folder.require_split(data.split_names[role], "this script")
        missing = [name for k, name in enumerate(data.class_names) if not (split.labels == k).any()]
        if missing:
            raise UserError(
                f"{data.root}: {data.split_names[role]} has no image of {' and '.join(missing)}, which this needs; "
                f"put some into {data.split_names[role]}/{missing[0]}"
            )
        if role != "train" and data.on_bad_image != "skip":
            check_image = ImageCheck(data.folder)
            for path in split.paths:
                if fault := check_image(path).error:
                    raise UserError(f"{data.root}/{path}: {fault}; replace it, or list it in data.quarantine")


def measure(run: Path, positive: int, sensitivity: float | None) -> str:
    """Measure a run's best checkpoint on the data of its config.yaml; write files to its folder, return the report."""
    import yaml

    from lit_vision.errors import UserError
    from lit_vision.evaluation import clinical, metrics
    from lit_vision.io.hashing import sha256_of_file
    from lit_vision.methods import Classifier
    from lit_vision.results import plots
    from lit_vision.results.schema import write_result

    start = time.perf_counter()
    checkpoint = run / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: not written by the training; it takes at least one epoch and its validation")
    data = make_data(yaml.safe_load((run / "config.yaml").read_text()))
    model = Classifier.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    threshold = 0.5
    if sensitivity is not None:
        scores, labels = probabilities(model, data.eval_loader("val"))
        threshold = clinical.threshold_for(scores[:, positive], labels == positive, sensitivity)
    scores, labels = probabilities(model, data.eval_loader("test"))
    report = clinical.clinical_report(scores[:, positive], labels == positive, threshold)
    names = data.class_names
    matrix = metrics.confusion_matrix((scores[:, positive] >= threshold) ^ (positive == 0), labels, 2)
    classes = metrics.classification_report(matrix, names)
    text = (
        clinical.format_clinical_report(report, names[positive], names[1 - positive])
        + "\n\n"
        + metrics.format_classification_report(classes)
    )
    (run / "clinical.txt").write_text(text + "\n")
    plots.confusion_heat_map(run / "confusion.png", matrix, names)
    write_result(
        run / "results-medical.json",
        recipe=RECIPE.name,
        metric={"name": "test/auroc", "value": report["auroc"]["value"]},
        samples=report["samples"],
        seconds=round(time.perf_counter() - start, 3),
        data_fingerprint=data.fingerprint,
        weights_sha256=sha256_of_file(checkpoint),
        clinical=report,
        confusion=matrix.tolist(),
    )
    return text


def main(argv: list[str] | None = None) -> int:
    """Train, measure and print the report; flags that are not known here go to `lit-vision fit`."""
    parser = ScriptParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train, val, test by class, or a MedMNIST .npz")
    parser.add_argument("--positive", help="the positive class (default: the second)")
    parser.add_argument("--class_names", nargs=2, help="class names for a MedMNIST file, class 0 first")
    parser.add_argument("--sensitivity", type=float, help="choose the threshold on the validation split to reach this")
    parser.add_argument(
        "--run_dir", type=Path, default=Path("runs/medical"), help="the run's folder (default runs/medical)"
    )
    parser.add_argument("--no_class_weights", action="store_true", help="weight every image alike, not every class")
    parser.add_argument(
        "--dry", action="store_true", help="unpack a MedMNIST file and print the command; train nothing"
    )
    args, rest = parser.parse_known_args(argv)

    import numpy as np

    from lit_vision.cli import fit
    from lit_vision.cli import main as cli
    from lit_vision.data.make.medmnist import unpack_medmnist
    from lit_vision.errors import UserError
    from lit_vision.evaluation.clinical import class_weights

    try:
        if args.sensitivity is not None and not 0 < args.sensitivity <= 1:
            raise UserError(f"--sensitivity {args.sensitivity}: give a share above 0, up to 1")
        folder = args.data
        if folder.suffix == ".npz":
            folder = folder.with_suffix("")
            unpack_medmnist(args.data, folder, args.class_names)
        elif args.class_names:
            raise UserError(
                "--class_names: only for a MedMNIST file; in a folder the classes have their folders' names"
            )
        arguments = ["fit", "--config", str(RECIPE), "--run_dir", str(args.run_dir), "--data.root", str(folder)]
        data = make_data(fit.resolve_config([*arguments, *rest]))
        check_data(data)
        if args.positive and args.positive not in data.class_names:
            raise UserError(
                f"--positive {args.positive}: the classes are {' and '.join(data.class_names)}; give one of them"
            )
        positive = data.class_names.index(args.positive) if args.positive else 1
        if not args.no_class_weights:
            counts = np.bincount(data.folder.splits[data.split_names["train"]].labels, minlength=2)
            arguments += ["--model.class_weights", str([round(w, 4) for w in class_weights(counts.tolist())])]
        print("lit-vision", *arguments, *rest, flush=True)
        if args.dry:
            return 0
        if code := cli.main([*arguments, *rest]):
            return code
        print(measure(args.run_dir, positive, args.sensitivity))
    except UserError as error:
        print(f"medical.py: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\n{args.run_dir}: clinical.txt, confusion.png, results-medical.json, checkpoints/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
