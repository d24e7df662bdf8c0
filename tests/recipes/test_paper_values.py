"""Every value of the papers' recipes, as the papers' own tables give it, against what a recipe gets (its own settings and the defaults)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lit_vision.lars import LARS
from lit_vision.methods import tuning
from lit_vision.methods.classifier import Classifier

ROOT = Path(__file__).parents[2] / "experiments"


def read(recipe: str) -> dict:
    return yaml.safe_load((ROOT / f"{recipe}.yaml").read_text())


def test_the_probes_optimizer_has_the_learning_rate_outside_the_momentum_buffer(capsys) -> None:
    """The optimiser that MAE's probe builds; SimCLR's, and a Classifier's default, is the other form."""
    data = SimpleNamespace(batches_per_epoch=4, global_batch_size=16384)
    trainer = SimpleNamespace(datamodule=data, max_epochs=90, limit_train_batches=1.0, accumulate_grad_batches=1)
    trainer.precision, trainer.is_global_zero = "32-true", True
    given = read("mae/vitb16_in1k_90ep_linear")["model"]["init_args"]
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    given |= {"backbone_checkpoint": None, "backbone_args": {**given["backbone_args"], **small}}
    for arguments, outside in ((given, True), ({**given, "lr_in_momentum": True}, False)):
        model = Classifier(**arguments)
        attached = SimpleNamespace(trainer=trainer, hparams=model.hparams, named_parameters=model.named_parameters)
        optimizer = tuning.configure(attached)["optimizer"]
        assert type(optimizer) is LARS
        assert all(group["lr_in_momentum"] is not outside for group in optimizer.param_groups)
        assert all(group["initial_lr"] == pytest.approx(6.4) for group in optimizer.param_groups)
