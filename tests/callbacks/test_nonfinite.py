"""Numbers that go wrong never reach the weights."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from toy_run import ToyData, ToyNet

from lit_vision.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint, SeedEachBatch
from lit_vision.callbacks.nonfinite import NonFiniteError, StopOnNonFinite
from lit_vision.errors import UserError


class Weights(Callback):
    """Copies of weights and optimiser state after each step."""

    def __init__(self) -> None:
        self.after: list[dict] = []

    def on_train_batch_end(self, trainer, module, *args) -> None:
        optimizer = trainer.optimizers[0].state_dict()["state"]
        state = {f"{i}.{k}": v for i, s in optimizer.items() for k, v in s.items()}
        learned = {name: p.detach() for name, p in module.named_parameters()}
        self.after.append({name: value.clone() for name, value in {**learned, **state}.items()})


class PoisonedGradient(ToyNet):
    """The loss is fine; one gradient is not."""

    def on_after_backward(self) -> None:
        if self.global_step in (2, 4):
            self.head.bias.grad.fill_(float("inf"))


def fit(folder: Path, guard: StopOnNonFinite, net: type = ToyNet, accumulate: int = 1, **trainer) -> Weights:
    torch.manual_seed(0)
    weights = Weights()
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[SeedEachBatch(0), guard, weights, LastCheckpoint(every_n_steps=2)],
        **trainer,
    ).fit(net(poison_step=2 if net is ToyNet else None), datamodule=ToyData(n=24 * accumulate))
    return weights


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("net", [ToyNet, PoisonedGradient])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_skip__found_inf_passed_to_fused_optimizer_or_read_at_once__is_the_same(
    tmp_path: Path, net, accumulate: int
) -> None:
    late = fit(tmp_path / "late", StopOnNonFinite("skip", late=True), net, accumulate).after
    at_once = fit(tmp_path / "once", StopOnNonFinite("skip"), net, accumulate).after
    assert all(same(a, b) for a, b in zip(late, at_once))
    last = 3 * accumulate - 1  # the bad step's last micro-batch
    assert same(late[last], late[last - 1])
    assert not same(late[last], late[last + accumulate])
    assert all(v.isfinite().all() for v in late[-1].values())
    steps = [2, 4] if net is PoisonedGradient else [2]
    for run in ("late", "once"):
        found = sorted((tmp_path / run / "nonfinite").iterdir())
        assert [p.name for p in found] == [f"step-{n:08d}-rank0.pt" for n in steps]
        kept = torch.load(found[0], weights_only=True)
        assert [b["key"].shape for b in kept["batches"]] == [(4, 3)] * accumulate
        assert kept["parameters"] == (
            ["head.bias"] if net is PoisonedGradient else list(dict(ToyNet().named_parameters()))
        )


@pytest.mark.parametrize("late", [True, "auto"])
def test_stop__before_any_checkpoint_of_that_step(tmp_path: Path, capsys, late) -> None:
    with pytest.raises(NonFiniteError, match=r"at step 2 the loss is \[nan\].*4 sample keys"):
        fit(tmp_path, StopOnNonFinite(late=late))
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(v.isfinite().all() for v in kept["state_dict"].values())


def test_stop__also_at_the_last_step(tmp_path: Path) -> None:
    class AtTheEnd(ToyNet):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if self.global_step == 5 else 1)

    with pytest.raises(NonFiniteError, match="at step 5"):
        fit(tmp_path, StopOnNonFinite(late=True), AtTheEnd, limit_train_batches=6)


@pytest.mark.parametrize("late", [True, "auto"])
def test_rollback__goes_back_to_the_checkpoint_and_on_with_the_data(tmp_path: Path, capsys, late) -> None:
    class Later(ToyNet):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if self.global_step == 3 else 1)

    after = fit(tmp_path, StopOnNonFinite("rollback", late=late), Later).after  # saved after steps 2, 4 and 6
    assert "weights of step 2 (last.ckpt)" in capsys.readouterr().out or late is True
    bad, saved = after[3], after[1]
    if late is True:  # the flag is read when the checkpoint of step 4 is written: that is the state from before
        assert same(bad, after[2])
    else:
        assert same(bad, saved)
    assert not same(after[5], after[4])


def test_patience(tmp_path: Path) -> None:
    class Always(ToyNet):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

    with pytest.raises(NonFiniteError, match="4 such steps"):
        fit(tmp_path, StopOnNonFinite("skip", patience=3), Always)
    with pytest.raises(UserError, match="policy"):
        StopOnNonFinite("ignore")
    with pytest.raises(UserError, match="patience"):
        StopOnNonFinite(patience=0)
