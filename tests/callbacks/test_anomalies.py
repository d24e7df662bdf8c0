"""A loss that jumps, an encoder that collapses."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from toy_run import ToyData, ToyNet

from lit_vision.callbacks.anomalies import Collapse, CollapseError, LossSpike, LossSpikeError, _update_statistics
from lit_vision.callbacks.checkpoint import SeedEachBatch
from lit_vision.errors import UserError
from lit_vision.evaluation.collapse import effective_rank, embedding_std


def test_embedding_std__closed_forms() -> None:
    torch.manual_seed(0)
    assert embedding_std(torch.randn(20_000, 64)) == pytest.approx(1.0, abs=0.01)
    assert embedding_std(torch.ones(5, 8)) == pytest.approx(0.0, abs=1e-12)
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # deviation 1 and 0, mean 1/2, times sqrt(2)
    assert embedding_std(two * 7) == pytest.approx(math.sqrt(2) / 2)


def test_effective_rank__closed_forms() -> None:
    assert effective_rank(torch.ones(6, 4)) == 0.0
    line = torch.arange(6.0)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-6)
    axes = torch.cat([torch.eye(5), -torch.eye(5)])
    assert effective_rank(axes) == pytest.approx(5.0)
    p = torch.tensor([3.0, 1.0]) / 4  # singular values 3 to 1
    rows = torch.cat([torch.diag(torch.tensor([3.0, 1.0])), -torch.diag(torch.tensor([3.0, 1.0]))])
    assert effective_rank(rows + 9) == pytest.approx(float(torch.exp(-(p * p.log()).sum())))


def test_the_moving_mean_against_a_slow_loop() -> None:
    torch.manual_seed(0)
    losses, state = 2 + 0.1 * torch.randn(60, dtype=torch.float64), torch.tensor([0, 0, 0, -math.inf, -1, 0.0]).double()
    losses[50] = 5.0
    mean = variance = 0.0
    seen, spikes = 0, []
    for i, loss in enumerate(losses.tolist()):
        share = max(1 / (seen + 1), 1 / 20)
        if seen >= 20 and loss - mean > 8 * math.sqrt(variance + 1e-12):
            spikes.append(i)
        else:
            mean, variance = mean + share * (loss - mean), (1 - share) * (variance + share * (loss - mean) ** 2)
            seen += 1
        state = _update_statistics(state, losses[i], i, 8.0, 20)
        assert float(state[0]) == pytest.approx(mean)
        assert float(state[1]) == pytest.approx(variance)
    assert spikes == [50]
    assert state[4:].tolist() == [50, 5.0]


class Jumps(ToyNet):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + (100.0 if self.global_step == 6 else 0.0)


def fit(folder: Path, callback: Callback, net: LightningModule) -> None:
    torch.manual_seed(0)
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        use_distributed_sampler=False,
        default_root_dir=folder,
        logger=False,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        callbacks=[SeedEachBatch(0), callback],
    ).fit(net, datamodule=ToyData(n=40))


def test_a_spike_is_reported_once_and_may_stop_the_run(tmp_path: Path, capsys) -> None:
    spike = LossSpike(memory=4)
    fit(tmp_path, spike, Jumps())
    assert spike.spikes == [6]
    assert capsys.readouterr().out.count("LossSpike: at step 6 the loss is 100") == 1
    with pytest.raises(LossSpikeError, match="at step 6"):
        fit(tmp_path, LossSpike(memory=4, action="stop"), Jumps())
    again = LossSpike()
    again.load_state_dict(spike.state_dict())
    assert again.spikes == [6]
    assert again._loaded == spike._state.tolist()


def test_a_collapsed_encoder_is_reported(tmp_path: Path, capsys) -> None:
    fit(tmp_path, Collapse(limit=16, min_rank=1.2), ToyNet(width=8))
    assert "Collapse" not in capsys.readouterr().out
    net = ToyNet()
    net.backbone[0].weight.requires_grad_(False).zero_()
    with pytest.raises(CollapseError, match="16 images spread by 0 "):
        fit(tmp_path, Collapse(limit=16, action="stop"), net)
    fit(tmp_path, Collapse(limit=16), net)
    assert "Collapse: after epoch 1" in capsys.readouterr().out
    for wrong in ({"action": "hope"}, {"limit": 1}):
        with pytest.raises(UserError, match="Collapse"):
            Collapse(**wrong)
