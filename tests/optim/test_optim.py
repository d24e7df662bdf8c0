"""Schedule values, parameter groups and LARS against the papers' numbers and steps computed by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_vision import optim
from lit_vision.errors import UserError
from lit_vision.optim.lars import LARS
from lit_vision.optim.schedule import StableDecayLR, decay_start_of, decay_steps_from


@pytest.mark.parametrize(("epoch", "lr"), [(0, 0.0), (20, 1.2e-3), (40, 2.4e-3), (420, 1.2e-3), (800, 0.0), (900, 0.0)])
@pytest.mark.parametrize("steps_per_epoch", [1, 312])
def test_warmup_cosine__mae_pretraining_table(epoch: int, lr: float, steps_per_epoch: int) -> None:
    peak = optim.scaled_lr(1.5e-4, None, 4096)
    factor = optim.warmup_cosine(
        epoch * steps_per_epoch, total_steps=800 * steps_per_epoch, warmup_steps=40 * steps_per_epoch
    )
    assert peak == pytest.approx(2.4e-3)
    assert peak * factor == pytest.approx(lr, abs=1e-12)


def test_warmup_cosine__edges() -> None:
    assert optim.warmup_cosine(0, total_steps=10, warmup_steps=0) == 1.0
    assert optim.warmup_cosine(10, total_steps=10, warmup_steps=2, min_ratio=0.25) == 0.25
    assert optim.warmup_cosine(3, total_steps=4, warmup_steps=6) == 0.5  # the run ends inside the warm-up
    values = [optim.warmup_cosine(s, total_steps=50, warmup_steps=10) for s in range(51)]
    assert values[10] == max(values) == 1.0
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)


def test_scaled_lr__values_of_the_papers_and_errors() -> None:
    assert optim.scaled_lr(0.3, None, 4096) == pytest.approx(4.8)  # SimCLR
    assert optim.scaled_lr(5e-4, None, 1024) == pytest.approx(2e-3)  # MAE fine-tuning, ViT-B
    assert optim.scaled_lr(0.1, None, 16384) == pytest.approx(6.4)  # MAE linear probe
    assert optim.scaled_lr(0.3, 0.01, 4096) == 0.01
    with pytest.raises(UserError, match="base_lr"):
        optim.scaled_lr(None, None, 256)
    with pytest.raises(UserError, match=r"base_lr: 0\.0"):
        optim.scaled_lr(0.0, None, 256)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4), requires_grad=False)
        self.patch = nn.Conv2d(3, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def names_of(model: nn.Module, group: dict) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_decay_groups__vectors_tokens_and_positions_are_exempt_and_frozen_ones_absent() -> None:
    model = Tiny()
    decayed, exempt = optim.decay_groups(model.named_parameters(), 0.05)
    assert names_of(model, decayed) == {"patch.weight", "head.weight"}
    assert decayed["weight_decay"] == 0.05
    assert names_of(model, exempt) == {"cls_token", "patch.bias", "norm.weight", "norm.bias", "head.bias"}
    assert exempt["weight_decay"] == 0.0
    own_rule = optim.decay_groups(model.named_parameters(), 0.05, no_decay=lambda name, p: p.ndim <= 1)
    assert "cls_token" in names_of(model, own_rule[0])  # the rule of the official pre-training


def test_decay_without_effect_is_an_error() -> None:
    norm = nn.LayerNorm(4)
    with pytest.raises(UserError, match=r"weight_decay: 0\.05"):
        optim.decay_groups(norm.named_parameters(), 0.05)
    assert len(optim.decay_groups(norm.named_parameters(), 0.0)) == 1
    with pytest.raises(UserError, match="tune"):
        optim.decay_groups(norm.requires_grad_(False).named_parameters(), 0.0)
    head = nn.Linear(4, 2)
    with pytest.raises(UserError, match=r"layer_decay: 0\.5"):
        optim.layer_decay_groups(head.named_parameters(), [["weight"]], 0.0, 0.5)
    with pytest.raises(UserError, match=r"layer_decay: .*other"):
        optim.layer_decay_groups(head.named_parameters(), [["other"], ["weight"]], 0.0, 0.5)
    with pytest.raises(UserError, match=r"layer_decay: 1\.5"):
        optim.layer_decay_groups(head.named_parameters(), [], 0.0, 1.5)


def test_layer_decay_groups__values_of_mae_fine_tuning() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(14)])  # ViT-B: patch embedding, 12 blocks, norm; and a head
    model.add_module("head", nn.Linear(2, 2))
    layers = [[f"{i}.weight", f"{i}.bias"] for i in range(14)]
    groups = optim.layer_decay_groups(model.named_parameters(), layers, 0.05, 0.65)
    scale = {name: group["lr_scale"] for group in groups for name in names_of(model, group)}
    assert scale["0.weight"] == pytest.approx(0.003697, abs=5e-7)
    assert scale["1.bias"] == pytest.approx(0.005688, abs=5e-7)
    assert scale["12.weight"] == pytest.approx(0.65)
    assert scale["13.weight"] == scale["head.weight"] == scale["head.bias"] == 1.0
    assert len(scale) == len(list(model.parameters()))
    optimizer = optim.build_optimizer(groups, "adamw", lr=2e-3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * 0.65**13)


@pytest.mark.parametrize("inside", [True, False])
def test_lars__two_steps_by_hand(inside: bool) -> None:
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    b = nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [w], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0.1}]
    optimizer = LARS(groups, lr=2.0, momentum=0.5, trust_coefficient=0.01, lr_in_momentum=inside)
    w.grad, b.grad = torch.tensor([[0.0, 1.0]]), torch.tensor([0.5])
    optimizer.step()
    # g = (0, 1) + 0.1 (3, 4) = (0.3, 1.4); trust = 0.01 * 5 / |g|
    g = (0.3, 1.4)
    trust = 0.05 / math.hypot(*g)
    first = [2.0 * trust * x for x in g]
    torch.testing.assert_close(w.data, torch.tensor([[3.0 - first[0], 4.0 - first[1]]]))
    torch.testing.assert_close(b.data, torch.tensor([1.0 - 2.0 * 0.5]))  # 1-D: plain SGD, no decay, no trust
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1.0, 0.0
    before = w.data.clone()
    w.grad, b.grad = torch.zeros(1, 2), torch.zeros(1)  # only the buffer moves them
    optimizer.step()
    share = 0.5 if inside else 0.25  # inside: half of a step taken at lr 2; outside: at the present lr 1
    torch.testing.assert_close(w.data, before - share * torch.tensor([first]))
    torch.testing.assert_close(b.data, torch.tensor([-share]))


def test_lars__trust_does_not_depend_on_the_gradients_scale_and_zero_norms_give_plain_sgd() -> None:
    moved = []
    for scale in (1.0, 1000.0):
        w = nn.Parameter(torch.ones(2, 2))
        w.grad = scale * torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        LARS([w], lr=1.0).step()
        moved.append(w.data)
    torch.testing.assert_close(moved[0], moved[1])
    zero = nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    LARS([zero], lr=0.5).step()
    torch.testing.assert_close(zero.data, torch.full((2, 2), -0.5))
    with pytest.raises(ValueError, match="LARS"):
        LARS([zero], lr=-1.0)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_lowers_a_quadratic_and_restores_its_state(name: str) -> None:
    def run(steps: int, state: dict | None = None, start: torch.Tensor | None = None):
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(3, 3) if start is None else start.clone())
        optimizer = optim.build_optimizer([{"params": [w], "weight_decay": 0.0, "lr_scale": 0.5}], name, lr=0.1)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            optimizer.zero_grad()
            w.square().sum().backward()
            optimizer.step()
        return w.data, optimizer.state_dict()

    start, _ = run(0)
    uninterrupted, _ = run(6)
    assert uninterrupted.norm() < start.norm()
    half, state = run(3)
    resumed, _ = run(3, state, half)
    assert torch.equal(resumed, uninterrupted)


def test_build_optimizer__the_two_forms_of_lars_differ_when_the_learning_rate_changes() -> None:
    """By hand, a 1-D parameter (no trust): gradients 1 and 0 at learning rates 1 and 0.5, momentum 0.9."""
    for inside, moved in ((True, 1.0 + 0.9 * 1.0), (False, 1.0 + 0.5 * 0.9)):
        w = nn.Parameter(torch.zeros(1))
        groups = [{"params": [w], "weight_decay": 0.0}]
        optimizer = optim.build_optimizer(groups, "lars", lr=1.0, lr_in_momentum=inside)
        for gradient, lr in ((1.0, 1.0), (0.0, 0.5)):
            w.grad, optimizer.param_groups[0]["lr"] = torch.tensor([gradient]), lr
            optimizer.step()
        assert w.item() == pytest.approx(-moved)
    with pytest.raises(UserError, match=r"lr_in_momentum: .*sgd"):
        optim.build_optimizer(groups, "sgd", lr=1.0, lr_in_momentum=False)


def test_build_optimizer__unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"optimizer: 'adamx'.*adamw, adam, sgd, lars, lamb"):
        optim.build_optimizer([{"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.0}], "adamx", lr=0.1)


def attached(batches: int = 10, **trainer) -> SimpleNamespace:
    data = SimpleNamespace(batches_per_epoch=batches, global_batch_size=512)
    settings = {
        "datamodule": data,
        "max_epochs": 3,
        "limit_train_batches": 1.0,
        "accumulate_grad_batches": 1,
        "precision": "32-true",
    }
    return SimpleNamespace(trainer=SimpleNamespace(**{**settings, "is_global_zero": True, **trainer}))


def test_training_length__counts_accumulation_and_limits() -> None:
    assert optim.training_length(attached()) == optim.TrainingLength(10, 3, 512)
    # the last, partial window steps too
    assert optim.training_length(attached(accumulate_grad_batches=4)).steps_per_epoch == 3
    assert optim.training_length(attached(limit_train_batches=4)).steps_per_epoch == 4
    assert optim.training_length(attached(limit_train_batches=0.5, accumulate_grad_batches=5)).steps_per_epoch == 1
    for wrong, text in (
        ({"max_epochs": -1}, "max_epochs"),
        ({"datamodule": None}, "batches_per_epoch"),
        ({"limit_train_batches": 0}, "trainer.limit_train_batches"),
        ({"limit_train_batches": 0.01, "overfit_batches": 0.01}, "trainer.overfit_batches"),
        ({"batches": 0}, "batch_size"),
    ):
        with pytest.raises(UserError, match=text):
            optim.training_length(attached(**wrong))


def test_optimizer_and_schedule__steps_through_the_schedule_and_prints_once(capsys: pytest.CaptureFixture) -> None:
    model = Tiny()
    groups = optim.layer_decay_groups(
        model.named_parameters(), [["cls_token", "patch.weight"], ["head.weight"]], 0.05, 0.5
    )
    built = optim.optimizer_and_schedule(
        attached(), groups, optimizer="sgd", base_lr=0.1, lr=None, warmup_epochs=1, min_lr=0.02
    )
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(31):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen[0] == [0.0] * len(groups)
    assert seen[10] == pytest.approx([0.2 * g["lr_scale"] for g in groups])
    assert seen[20] == pytest.approx([0.11 * g["lr_scale"] for g in groups])
    assert seen[30] == pytest.approx([0.02 * g["lr_scale"] for g in groups])
    text = capsys.readouterr().out
    assert "lr 0.2 = base_lr 0.1 x 512 images a step / 256" in text
    assert text.count("layer_00") == 2
    assert text.count("SGD") == 1
    assert built["lr_scheduler"]["interval"] == "step"


def test_optimizer_and_schedule__notes_an_unfinished_warmup_and_refuses_a_floor_above_the_peak(
    capsys: pytest.CaptureFixture,
) -> None:
    groups = optim.decay_groups(Tiny().named_parameters(), 0.05)
    optim.optimizer_and_schedule(attached(), groups, optimizer="adamw", base_lr=None, lr=0.1, warmup_epochs=40)
    assert "0.0075" in capsys.readouterr().out
    with pytest.raises(UserError, match="min_lr"):
        optim.optimizer_and_schedule(attached(), groups, optimizer="adamw", base_lr=None, lr=0.1, min_lr=1.0)
    optim.optimizer_and_schedule(attached(is_global_zero=False), groups, optimizer="adamw", base_lr=None, lr=0.1)
    assert capsys.readouterr().out == ""


def test_warmup_stable_decay__value_table_and_a_decay_inside_the_warm_up() -> None:
    shape = {"warmup_steps": 4, "decay_start": 10, "decay_steps": 4, "min_ratio": 0.2}
    want = [0, 0.25, 0.5, 0.75, *[1.0] * 7, 0.6, 1 - 0.8 * 0.5**0.5, 1 - 0.8 * 0.75**0.5, 0.2, 0.2]
    assert [optim.warmup_stable_decay(s, **shape) for s in range(16)] == pytest.approx(want)
    early = {"warmup_steps": 8, "decay_start": 2, "decay_steps": 4}
    want = [0, 1 / 8, 1 / 4, 1 / 8, 1 / 4 * (1 - 0.5**0.5), 1 / 4 * (1 - 0.75**0.5), 0]
    assert [optim.warmup_stable_decay(s, **early) for s in range(7)] == pytest.approx(want)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_decay_steps_from__a_run_planned_for_its_length_decays_from_the_same_step(share: float) -> None:
    for start in range(1, 500):
        assert decay_start_of(start + decay_steps_from(start, share), share) == start


def rates(scheduler: StableDecayLR, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def test_optimizer_and_schedule__decay_can_begin_earlier_and_is_kept_by_the_state(capsys) -> None:
    groups = optim.decay_groups(Tiny().named_parameters(), 0.05)

    def make(**options):
        arguments = {"optimizer": "sgd", "lr": 0.1, "warmup_epochs": 0.4, "schedule": "warmup-stable-decay", **options}
        return optim.optimizer_and_schedule(attached(), groups, **arguments)["lr_scheduler"]["scheduler"]

    planned = make()
    assert "30 steps (3 epochs x 10), warm-up 4, then constant, 1 - sqrt decay in the last 6 steps" in (
        capsys.readouterr().out
    )
    lr = rates(planned, 31)
    assert lr[:5] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert lr[4:25] == [0.1] * 21
    assert lr[27] == pytest.approx(0.1 * (1 - 0.5**0.5))
    assert lr[30] == pytest.approx(0, abs=1e-12)

    moved = make()
    first = rates(moved, 8)
    assert moved.begin_decay() == 10
    second = make()  # a training that goes on from a checkpoint
    second.load_state_dict(moved.state_dict())
    expected = [0.1, 0.1 * (1 - 0.5**0.5), 0.0]
    assert rates(moved, 3) == rates(second, 3) == pytest.approx(expected, abs=1e-12)
    assert first == lr[:8]
    longer = make(decay_share=0.5)  # where no decay was moved, it follows from the length and share of the run
    longer.load_state_dict(planned.state_dict())
    assert (longer.decay_start, longer.decay_steps) == (15, 15)
    with pytest.raises(UserError, match=r"schedule: 'linear' .*cosine, warmup-stable-decay"):
        make(schedule="linear")
    with pytest.raises(UserError, match=r"decay_share: 1\.0"):
        make(decay_share=1.0)
