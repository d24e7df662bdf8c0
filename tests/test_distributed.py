"""Two gloo processes against one: losses, gradients after DDP's averaging, weights after three steps, batch norm."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_vision import distributed
from lit_vision.errors import UserError

METHODS = (
    "simclr_resnet",
    "simclr_vit",
    "simclr_densenet",
    "mae",
    "lejepa",
    "classifier_vit",
    "classifier_resnet",
    "multilabel",
    "video_classifier",
    "image_text",
    "flow_matching",
    "captioner",
)
DENSE = ("segmenter", "segmenter_upernet", "fcos", "retinanet", "faster_rcnn", "mask_rcnn")
GANS = ("gan_discriminator", "gan_generator")
ONE_SIDED = ("fcos one-sided", "mask_rcnn one-sided")  # no object at all on the second process
OWN_OPTIMIZER = ("simclr_resnet lars", "mae adamw")  # through optim.build_optimizer; the others by SGD with momentum
IN_FLOAT64 = (*DENSE, *GANS, *ONE_SIDED, *OWN_OPTIMIZER)  # alone
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Results of gloo_checks.py: one run for all tests here, since most of its time is imports."""
    out = tmp_path_factory.mktemp("gloo")
    script = Path(__file__).with_name("gloo_checks.py")
    env = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(out)], capture_output=True, text=True, timeout=3600, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: torch.load(out / f"{name}.pt", weights_only=True) for name in ("rank0", "rank1", "single")}


def relative_error(got: torch.Tensor, expected: torch.Tensor, scale: float) -> float:
    return float((got.double() - expected.double()).abs().max()) / max(scale, 1e-30)


def gradient_errors(runs: dict, check: str) -> dict[str, float]:
    """Largest relative error over the ranks of each gradient, in its norm.

    A gradient that is zero by symmetry (a gain or bias before batch norm) holds rounding only: the floor is a hundredth
    of the model's largest.
    """
    expected = {name: value.double() for name, value in runs["single"][check].items() if name.startswith("grad")}
    floor = 0.01 * max(float(value.norm()) for value in expected.values())
    return {
        name: max(float((runs[rank][check][name].double() - value).norm()) for rank in ("rank0", "rank1"))
        / max(float(value.norm()), floor)
        for name, value in expected.items()
    }


def distance_over_movement(got: dict[str, torch.Tensor], single: dict[str, torch.Tensor]) -> float:
    """Return the distance of the two runs' weights after three steps over the length of the steps, as one vector."""
    names = [name.removeprefix("before ") for name in single if name.startswith("before ")]
    after = {name: single[f"after three steps {name}"].double() for name in names}
    apart = sum(float((got[f"after three steps {name}"] - value).square().sum()) for name, value in after.items())
    moved = sum(float((value - single[f"before {name}"]).square().sum()) for name, value in after.items())
    return (apart / moved) ** 0.5


def gradient_tolerance(runs: dict, method: str, dtype: str) -> float:
    """Return TOLERANCE or, in float32, this network's error in float64 times the ratio of the formats' epsilons.

    Batch norm over a few values makes SimCLR's small ResNet and DenseNet ill conditioned: rounding of 1e-16 comes out
    as 6e-14, so rounding of 1e-7 must come out as 3e-5. An error of the exchange would show in float64, whose tolerance
    is 1e-10.
    """
    if dtype == "float64":
        return TOLERANCE[dtype]
    rounding = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    return max(TOLERANCE[dtype], 4 * rounding * max(gradient_errors(runs, f"{method} float64").values()))


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, dtype) for method in METHODS for dtype in TOLERANCE), *((m, "float64") for m in IN_FLOAT64)],
)
def test_two_processes_give_the_gradients_and_weights_of_one(runs: dict, method: str, dtype: str) -> None:
    check = f"{method} {dtype}"
    single = runs["single"][check]
    errors = gradient_errors(runs, check)
    worst = max(errors, key=errors.get)
    tolerance = gradient_tolerance(runs, method, dtype)
    assert errors[worst] <= tolerance, worst
    for rank in ("rank0", "rank1"):
        got = runs[rank][check]
        assert got.keys() == single.keys()
        # 6e-13 at most was seen in float64 (AdamW, which divides small gradients by their size)
        assert distance_over_movement(got, single) <= (tolerance if dtype == "float64" else 30 * tolerance)
        for name, value in single.items():
            if name.startswith("after") and value.is_floating_point():
                error = float((got[name].double() - value.double()).norm()) / max(1.0, float(value.double().norm()))
                assert error <= 30 * tolerance, name  # three steps of momentum multiply it
        # torchvision's proposal network has its labels, and so the value of its loss (not the gradient), in float32
        near = 1e-7 if "rcnn" in method else min(tolerance, TOLERANCE["float32"])
        assert relative_error(got["loss"], single["loss"], float(single["loss"])) <= near


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("check", ["nt_xent", "image_text losses", "batch_norm"])
def test_two_processes_give_the_values_of_one(runs: dict, check: str, dtype: str) -> None:
    single = runs["single"][f"{check} {dtype}"]
    for rank in ("rank0", "rank1"):
        got = runs[rank][f"{check} {dtype}"]
        assert got.keys() == single.keys()
        for name, value in single.items():
            # the batch-norm input sits at 100 with spread 1: float32 keeps five digits of the spread
            tolerance = TOLERANCE[dtype] * (10 if check == "batch_norm" else 1)
            assert relative_error(got[name], value, float(value.abs().max())) <= tolerance, name


def test_mean_per_class__counts_are_added_up(runs: dict) -> None:
    for name in ("rank0", "rank1", "single"):
        torch.testing.assert_close(runs[name]["recalls float32"]["mean per class"], torch.tensor(11 / 18))


GLOBAL_LOSS = ["simclr_resnet", "simclr_vit", "simclr_densenet", "segmenter", "fcos", "mask_rcnn", "fcos one-sided"]
GLOBAL_LOSS += ["image_text", "captioner"]


@pytest.mark.parametrize("method", GLOBAL_LOSS)
def test_each_rank_reports_the_loss_of_the_joined_batch(runs: dict, method: str) -> None:
    values = [runs[rank][f"{method} float64"]["own loss"] for rank in ("rank0", "rank1", "single")]
    torch.testing.assert_close(values[0], values[2])
    torch.testing.assert_close(values[1], values[2])


def test_joined_mean__closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process' sums 1, 7, 0 over 4, 0, 0 things and another's 3, 5, 2 over 2, 0, 1."""
    other = torch.tensor([[3.0, 5.0, 2.0], [2.0, 0.0, 1.0]])
    total, count = torch.tensor([1.0, 7.0, 0.0], requires_grad=True), torch.tensor([4, 0, 0])
    torch.testing.assert_close(distributed.global_mean(total, count), torch.tensor([0.25, 7.0, 0.0]))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: x + other)
    joined = distributed.global_mean(total, count)
    torch.testing.assert_close(joined, torch.tensor([4 / 6, 12.0, 2.0]))
    joined.sum().backward()
    torch.testing.assert_close(total.grad, torch.tensor([1 / 6, 1.0, 1.0]))


def test_without_a_process_group_nothing_is_shared() -> None:
    z = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(z) is z
    assert distributed.all_reduce_sum(z) is z
    assert (distributed.world_size(), distributed.rank()) == (1, 0)


def test_convert_batch_norm__keeps_state_parameters_mode_and_activation() -> None:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Sequential(nn.BatchNorm2d(4, affine=False))).eval()
    x = torch.randn(5, 3, 8, 8)
    keys, parameters, before = list(model.state_dict()), list(model.parameters()), model(x)
    converted = distributed.convert_batch_norm(model)
    assert converted is model
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert not model[1].training
    assert sum(isinstance(m, distributed.AllReduceBatchNorm) for m in model.modules()) == 2
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(model.train()(x)[0].shape, before[0].shape)
    assert isinstance(distributed.convert_batch_norm(nn.BatchNorm1d(3)), distributed.AllReduceBatchNorm)
    with pytest.raises(ValueError, match="expected"):
        distributed.AllReduceBatchNorm(3)(torch.zeros(3))


def test_global_batch_norm__replaces_lightnings_flag() -> None:
    from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm

    def attached(sync: object, world: int = 2, *layers: nn.Module) -> nn.Module:
        module = nn.Sequential(*layers)
        module.trainer = SimpleNamespace(strategy=SimpleNamespace(_layer_sync=sync), world_size=world)
        return module

    plugin = distributed.global_batch_norm()
    with pytest.raises(UserError, match=r"trainer\.sync_batchnorm"):
        distributed.batch_norm_scope(attached(TorchSyncBatchNorm()))
    assert distributed.batch_norm_scope(attached(plugin, 2, nn.BatchNorm1d(2))) == "global"
    assert distributed.batch_norm_scope(attached(None, 2, nn.BatchNorm1d(2))) == "per process"
    assert distributed.batch_norm_scope(attached(None, 1, nn.BatchNorm1d(2))) == "global"
    assert distributed.batch_norm_scope(attached(None, 2, nn.LayerNorm(2))) == "none"
    model = plugin.apply(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert isinstance(model[1], distributed.AllReduceBatchNorm)
    assert plugin.revert(model) is model
