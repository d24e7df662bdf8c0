"""Shared by all tests: no network, no servers, few threads."""

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

sys.path.insert(0, str(Path(__file__).parent / "toys"))  # small models and data that recipes can name

# Files of more than about ten seconds, the longest first. Parallel runs start with them: a long file that came last
# would be run by one process while the others have nothing to do. A name that is not here costs time, nothing else.
LONG_FILES = (
    "experiments/test_soak.py",
    "test_distributed.py",
    "predict/test_dense_predict.py",
    "compatibility/test_runs.py",
    "study/test_study_report.py",
    "callbacks/test_checkpoint_resume.py",
    "runs/test_resume.py",
    "study/test_study_run.py",
    "notebooks/test_notebooks.py",
    "convert/test_import_refused.py",
    "experiments/test_dense_tables.py",
    "runs/test_fsdp.py",
    "convert/test_import_weights.py",
    "methods/detection/test_detector.py",
    "convert/test_export.py",
)


def pytest_configure(config):
    """Keep pytest-xdist (3.7 and later) from sorting files by their number of tests; see LONG_FILES."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Put the tests of LONG_FILES first."""
    here, last = Path(__file__).parent, len(LONG_FILES)
    place = {here / name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path, last))


@pytest.fixture(autouse=True)
def no_public_weights(monkeypatch):
    """Hide packages that ship public weights, which the extra `public` installs: a study would train them too."""
    monkeypatch.setattr("lit_vision.weights.public_packages.PACKAGES", {})


@pytest.fixture
def images():
    """Return images of a study: bars, lying or upright, 16 pixels, with noise; 48 to train on, 16 to test."""
    from lit_vision.study.images import StudyImages

    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    pixels = rng.integers(0, 60, (64, 16, 16, 1)).astype(np.uint8)
    for i, label in enumerate(labels):
        at = rng.integers(2, 12)
        view = pixels[i, :, :, 0].T if label else pixels[i, :, :, 0]
        view[at : at + 3] += 150
    names = [f"{i}.png" for i in range(64)]
    parts = {"pool": pixels[:48], "labels": labels[:48], "paths": names[:48]}
    parts |= {"test": pixels[48:], "test_labels": labels[48:], "test_paths": names[48:]}
    return StudyImages(**parts, classes=["lying", "upright"], fingerprint="f" * 64, size=16)


@pytest.fixture
def stopped_writer(monkeypatch):
    """Return a context manager that interrupts predict or embed by Ctrl-C while it writes its n-th batch.

    Half of the batch's bytes are written, and nothing is recorded.
    """
    from lit_vision.predict.resumable_writer import ResumableWriter

    @contextlib.contextmanager
    def at(call: int):
        append, calls = ResumableWriter.append, []

        def interrupted_append(self, texts, done):
            calls.append(done)
            if len(calls) == call:
                for name, text in texts.items():
                    self.files[name].write(text[: len(text) // 2])
                raise KeyboardInterrupt
            append(self, texts, done)

        with monkeypatch.context() as patch:
            patch.setattr(ResumableWriter, "append", interrupted_append)
            yield

    return at
