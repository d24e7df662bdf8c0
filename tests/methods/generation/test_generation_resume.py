"""Both generators, the GAN with two optimizers: a resumed run, and a killed one, end with the bits of a whole one."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import toy_run
from lightning.pytorch import Callback, Trainer

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))
from soak.run import assert_same

from lit_vision import methods
from lit_vision.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint, SeedEachBatch
from lit_vision.callbacks.ema import EMA, KEY
from lit_vision.callbacks.generated import GeneratedImages
from lit_vision.callbacks.nonfinite import StopOnNonFinite

SIZES = {"img_size": 8, "num_classes": 2, "width": 8, "multipliers": (1, 2)}
MAKE = {
    "FlowMatching": lambda: methods.FlowMatching(**SIZES, blocks=1),
    "GAN": lambda: methods.GAN(**SIZES, noise_width=4, discriminator_width=8, r1_every=2),
}
STEPS, KEPT = 8, 5  # of four batches an epoch


class Keep(Callback):
    """Copy the checkpoint of one step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        folder = Path(trainer.default_root_dir)
        if trainer.global_step == KEPT and (folder / "last.ckpt").exists():
            shutil.copy(folder / "last.ckpt", folder / "kept.ckpt")


def fit(name: str, folder: Path, resume: Path | None = None) -> dict:
    torch.manual_seed(0)
    own = [EMA(0.9, warmup=True), GeneratedImages(images=4, columns=2), StopOnNonFinite(), Keep()]
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[SeedEachBatch(0), *own, LastCheckpoint(every_n_steps=1, folder=str(folder))],
    )
    trainer.fit(MAKE[name](), datamodule=toy_run.ToyData(n=16), ckpt_path=resume)
    assert trainer.global_step == STEPS  # of the GAN too: a step is a batch, not that of one optimizer
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(("name", "optimizers"), [("FlowMatching", 1), ("GAN", 2)])
def test_generation__resumed_in_the_middle_of_an_epoch_to_the_same_bits(name, optimizers: int, tmp_path: Path) -> None:
    whole = fit(name, tmp_path / "whole")
    rest = fit(name, tmp_path / "rest", tmp_path / "whole/kept.ckpt")
    assert torch.load(tmp_path / "whole/kept.ckpt", weights_only=True)["global_step"] == KEPT
    for part in ("state_dict", KEY, "optimizer_states", "lr_schedulers", "loops", "global_step"):
        assert_same(rest[part], whole[part], part)
    assert len(whole["optimizer_states"]) == optimizers
    assert whole["card"] == {"size": 8, "class_names": ["dark", "light"]}
    pictures = [(tmp_path / run / "samples/generated-e0002.png").read_bytes() for run in ("whole", "rest")]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_generation__a_killed_run_ends_with_the_bits_of_an_uninterrupted_one() -> None:
    import soak

    import lit_vision.cli.lightning_cli  # noqa: F401  imported before the forks, once for all of them

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="soak-") as folder:
        kills = soak.Soak(Path(folder), preload=("GAN",))
        kills.every_step(["GAN", "FlowMatching"], [0], [1], steps=1)
        assert kills.failures == []
        assert kills.counts["every step"]["kills"] == 4
