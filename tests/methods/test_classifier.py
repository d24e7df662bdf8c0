"""Classifier: trainable and frozen parts, targets and losses in closed form, exact metrics, overfitting."""

import itertools
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.methods.classifier.classifier import Classifier
from lit_vision.methods.classifier.network import classification_loss, soft_targets
from lit_vision.methods.tuning_modes import set_trainable
from lit_vision.weights.load import PartialMatchError, save_backbone

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
# without timm's zero start of residual branches, which would leave some biases without a gradient
RESNET = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "zero_init_last": False}
VIT_NAME = "vit_tiny_patch16_224"


class Images(LightningDataModule):
    """Random images of fixed labels; training repeats one batch, validation has batches of unequal size."""

    def __init__(self, classes: int = 5, size: int = 16, batch: int = 10, steps: int = 2, views: int = 1) -> None:
        super().__init__()
        self.num_classes, self.batches_per_epoch, self.global_batch_size = classes, steps, batch
        generator = torch.Generator().manual_seed(0)
        self.batch = {
            "images": torch.randint(0, 256, (batch, views, size, size, 3), generator=generator, dtype=torch.uint8),
            "label": torch.arange(batch) % classes,
            "key": torch.stack((torch.zeros(batch), torch.arange(batch), torch.zeros(batch)), dim=1).long(),
        }

    def train_dataloader(self):
        return torch.utils.data.DataLoader([self.batch] * self.batches_per_epoch, batch_size=None)

    def val_dataloader(self):
        cut = (0, 1, 4, len(self.batch["label"]))
        parts = [{k: v[a:b] for k, v in self.batch.items()} for a, b in itertools.pairwise(cut)]
        return torch.utils.data.DataLoader(parts, batch_size=None)

    test_dataloader = val_dataloader


def trainer(**settings) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **{**quiet, "max_epochs": 1, "num_sanity_val_steps": 0, **settings})


def plain(method: Classifier, data: Images) -> torch.Tensor:
    return method.on_after_batch_transfer(data.batch, 0)["images"][:, 0]


# targets and losses


def test_soft_targets__values() -> None:
    got = soft_targets(torch.tensor([1, 0]), 4, 0.1)
    torch.testing.assert_close(got, torch.tensor([[0.025, 0.925, 0.025, 0.025], [0.925, 0.025, 0.025, 0.025]]))
    torch.testing.assert_close(soft_targets(torch.tensor([2]), 3), torch.tensor([[0.0, 0.0, 1.0]]))


@pytest.mark.parametrize(("classes", "value"), [(10, 2.302585), (100, 4.605170), (1000, 6.907755)])
def test_loss__of_a_fresh_head_is_log_k(classes: int, value: float) -> None:
    torch.manual_seed(0)
    method = Classifier(VIT_NAME, classes, VIT)
    labels = torch.randint(0, classes, (6,))
    logits = method(torch.randn(6, 3, 16, 16))
    for smoothing in (0.0, 0.1):
        loss = classification_loss(logits, soft_targets(labels, classes, smoothing))
        assert loss.item() == pytest.approx(value, abs=2e-4)
    assert classification_loss(logits, soft_targets(labels, classes), "bce").item() == pytest.approx(
        math.log(2), abs=2e-4
    )


@pytest.mark.parametrize(("classes", "value"), [(10, 0.500288), (100, 0.777797), (1000, 1.014848)])
def test_loss__least_value_with_smoothing(classes: int, value: float) -> None:
    targets = soft_targets(torch.arange(4), classes, 0.1)
    assert classification_loss(targets.log(), targets).item() == pytest.approx(value, abs=2e-6)


def test_loss__equals_a_slow_loop_and_torchs_smoothing() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    targets = soft_targets(labels, 3, 0.2)
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist()):
        log_sum = math.log(sum(math.exp(x) for x in row))
        total -= sum(t * (x - log_sum) for x, t in zip(row, target))
    assert classification_loss(logits, targets).item() == pytest.approx(total / 5, abs=1e-6)
    torch.testing.assert_close(
        classification_loss(logits.float(), targets),
        nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.2),
    )
    assert classification_loss(logits.bfloat16(), targets).dtype == torch.float32


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_class_weights__multiply_the_loss_of_each_class(loss: str) -> None:
    logits, labels, weights = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0.5, 1.0, 4.0])
    targets = soft_targets(labels, 3)
    if loss == "ce":
        expected = (-logits.log_softmax(1)[range(6), labels] * weights[labels]).sum() / 6
    else:
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        expected = (each * weights).sum() / 18
    torch.testing.assert_close(classification_loss(logits, targets, loss, weights), expected)
    with pytest.raises(UserError, match="class_weights"):
        Classifier("resnet10t", 3, class_weights=[1.0, 2.0])


# mixup and cutmix


def test_mix__depends_on_the_keys_and_changes_neither_generators_nor_batch() -> None:
    torch.manual_seed(0)
    data = Images()
    method = Classifier(VIT_NAME, 5, VIT, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    images, labels, keys = plain(method, data), data.batch["label"], data.batch["key"]
    before = images.clone(), np.random.get_state()[1].copy(), torch.get_rng_state()
    mixed, targets = method.training_targets(images, labels, keys)
    np.random.rand(3)
    again, targets_again = method.training_targets(images, labels, keys)
    torch.testing.assert_close(mixed, again, rtol=0, atol=0)
    torch.testing.assert_close(targets, targets_again, rtol=0, atol=0)
    assert torch.equal(images, before[0])
    assert torch.equal(torch.get_rng_state(), before[2])
    other, _ = method.training_targets(images, labels, keys + 1)
    assert not torch.equal(other, mixed)
    assert not torch.equal(mixed, images)


@pytest.mark.parametrize("alphas", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_mix__targets_are_smoothed_once(alphas: dict[str, float]) -> None:
    data = Images()
    method = Classifier(VIT_NAME, 5, VIT, label_smoothing=0.1, **alphas)
    _, targets = method.training_targets(plain(method, data), data.batch["label"], data.batch["key"])
    torch.testing.assert_close(targets.sum(1), torch.ones(10))
    # images 0 and 9 hold classes 0 and 4: the other three get e/K once
    torch.testing.assert_close(targets[0, 1:4], torch.full((3,), 0.02))
    assert 0.02 < targets[0, 0].item() < 0.92
    torch.testing.assert_close(targets[0] + targets[9], soft_targets(torch.tensor([0, 4]), 5, 0.1).sum(0))


def test_mix__refuses_an_odd_batch() -> None:
    method = Classifier(VIT_NAME, 5, VIT, mixup=1.0)
    with pytest.raises(UserError, match=r"data\.batch_size: .* 3 "):
        method.training_targets(torch.zeros(3, 3, 16, 16), torch.zeros(3).long(), torch.zeros(3, 3).long())


# what trains


def trainable(method: nn.Module) -> set[str]:
    return {name for name, p in method.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("name", "args"), [(VIT_NAME, {**VIT, "drop_path_rate": 0.5}), ("resnet18", RESNET)])
@pytest.mark.parametrize("tune", ["full", "linear", "head+norm", "bias", "last-1"])
def test_tune__frozen_parameters_have_no_gradient_and_do_not_change(name: str, args: dict, tune: str) -> None:
    torch.manual_seed(0)
    data = Images()
    method = Classifier(
        name, 5, args, tune=tune, head_init_std=0.1, lr=0.1, warmup_epochs=0, optimizer="sgd", weight_decay=0.0
    )
    before = {key: value.clone() for key, value in method.state_dict().items()}
    trainer().fit(method, datamodule=data)
    assert {name for name, p in method.named_parameters() if p.grad is not None} <= trainable(method)
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    names = {name for name, _ in method.named_parameters()}
    assert changed & names == trainable(method)
    statistics = {key for key in changed if "running" in key}
    if tune in ("linear", "bias"):
        assert not statistics
    if tune == "linear":
        assert trainable(method) == {"head.weight", "head.bias"}
    if tune == "last-1" and name == "resnet18":
        assert statistics
        assert all(key.startswith("backbone.model.layer4") for key in statistics)
    if tune == "last-1" and name == VIT_NAME:
        stems = {name.split(".")[2] for name in trainable(method) if name.startswith("backbone")}
        assert stems == {"blocks", "norm"}
        assert not any(name.startswith("backbone.model.blocks.0") for name in trainable(method))
    if tune == "head+norm":
        assert all(
            "norm" in n or ".bn" in n or "downsample.1" in n for n in trainable(method) if n.startswith("backbone")
        )
        assert bool(statistics) == (name == "resnet18")
    if tune == "bias":
        assert all(n.endswith(".bias") for n in trainable(method) if n.startswith("backbone"))


def test_train__drop_path_is_off_where_frozen_and_on_where_trained() -> None:
    method = Classifier(VIT_NAME, 5, {**VIT, "drop_path_rate": 0.5}, tune="linear").train()
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(method(x), method(x))
    assert not method(x).isnan().any()
    assert method.training
    last = Classifier(VIT_NAME, 5, {**VIT, "drop_path_rate": 0.5}, tune="last-1").train()
    blocks = last.backbone.model.blocks
    assert [block.training for block in blocks] == [False, True]
    assert blocks[1].drop_path1.training
    assert not any(m.training for m in last.eval().modules())


@pytest.mark.parametrize("tune", ["full", "head+norm"])
def test_freeze_batch_norm__keeps_the_statistics_while_gains_train(tune: str) -> None:
    for frozen in (True, False):
        method = Classifier("resnet18", 2, RESNET, tune=tune, lr=0.1, base_lr=None, freeze_batch_norm=frozen)
        norm = method.train().backbone.model.bn1
        before, gain = norm.running_mean.clone(), norm.weight.detach().clone()
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        method.loss(torch.rand(4, 3, 32, 32), torch.eye(2).repeat(2, 1)).backward()
        optimizer.step()
        assert torch.equal(norm.running_mean, before) == frozen
        assert not torch.equal(norm.weight, gain)


def test_tune__errors() -> None:
    for tune in ("prompt", "last-0", "everything"):
        with pytest.raises(UserError, match=r"tune: .*full, linear, head\+norm, bias, last-<k>"):
            Classifier(VIT_NAME, 5, VIT, tune=tune)
    with pytest.raises(UserError, match=r"tune: last-3 .*3 blocks.* 2"):
        Classifier(VIT_NAME, 5, VIT, tune="last-3")
    vgg = Backbone("vgg11", stem="small")
    with pytest.raises(UserError, match=r"tune: head\+norm"):
        set_trainable(vgg, "head+norm")


def test_layer_decay__reaches_the_optimizer_and_refuses_to_do_nothing(capsys: pytest.CaptureFixture) -> None:
    method = Classifier(VIT_NAME, 5, VIT, layer_decay=0.5, lr=1.0, warmup_epochs=0)
    run = trainer()
    run.fit(method, datamodule=Images())
    optimizer = run.optimizers[0]
    scale = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    lr = {name: scale[id(p)] for name, p in method.named_parameters()}
    assert lr["backbone.model.patch_embed.proj.weight"] == lr["backbone.model.pos_embed"] == pytest.approx(0.125)
    assert lr["backbone.model.blocks.0.attn.qkv.weight"] == pytest.approx(0.25)
    assert lr["backbone.model.blocks.1.mlp.fc1.bias"] == pytest.approx(0.5)
    assert lr["backbone.model.norm.weight"] == lr["head.weight"] == 1.0
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    exempt = {name for name, p in method.named_parameters() if decay[id(p)] == 0}
    assert {"backbone.model.cls_token", "backbone.model.pos_embed", "head.bias"} <= exempt
    assert "head.weight" not in exempt
    assert "layer_00/no_decay" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"layer_decay: 0\.5"):
        trainer().fit(Classifier(VIT_NAME, 5, VIT, layer_decay=0.5, tune="linear"), datamodule=Images())


# runs


FAMILIES = {
    "vit_tiny_patch16_224": (VIT, 16),
    "resnet18": (RESNET, 16),
    "vgg11": ({"stem": "small"}, 32),
    "inception_v3": ({}, 80),
    "densenet121": ({"stem": "small", "growth_rate": 8, "block_config": [1, 1]}, 16),
    "mobilenetv3_small_050": ({"stem": "small"}, 32),
    "convnext_atto": ({"stem": "small", "depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]}, 16),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_two_steps(name: str) -> None:
    torch.manual_seed(0)
    args, size = FAMILIES[name]
    data = Images(size=size, batch=4)
    method = Classifier(name, 5, args, head_init_std=0.1, lr=1e-3, warmup_epochs=0, layer_decay=0.9)
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    run = trainer()
    run.fit(method, datamodule=data)
    assert run.global_step == 2
    unchanged = [key for key, p in method.named_parameters() if torch.equal(p, before[key])]
    assert not unchanged
    assert run.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "bce", "label_smoothing": 0.1, "head_init_std": 0.02},
        {"tune": "linear", "head_norm": True, "lr": 0.1},
    ],
)
def test_classifier__overfits_one_batch(settings: dict) -> None:
    torch.manual_seed(0)
    method = Classifier(VIT_NAME, 5, VIT, **{"lr": 3e-3, "warmup_epochs": 1, "weight_decay": 0.0, **settings})
    run = trainer(max_epochs=20, check_val_every_n_epoch=20)
    run.fit(method, datamodule=Images(steps=4))
    assert run.callback_metrics["val/top1"].item() == 1.0
    assert set(run.callback_metrics) == {"train/loss", "val/loss", "val/top1", "val/top5"}


def test_evaluation__is_exact_under_unequal_batches() -> None:
    torch.manual_seed(0)
    data = Images(classes=7)
    method = Classifier(VIT_NAME, 7, VIT, head_init_std=1.0, label_smoothing=0.1).eval()
    logits, labels = method(plain(method, data)), data.batch["label"]
    top5 = (logits.argsort(dim=1, descending=True)[:, :5] == labels[:, None]).any(1).float().mean()
    results = trainer().test(method, datamodule=data, verbose=False)[0]
    assert results["test/loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, labels).item(), abs=1e-5
    )  # unsmoothed
    assert results["test/top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    recalls = [(logits.argmax(1)[labels == k] == k).float().mean().item() for k in labels.unique()]
    assert results["test/mean_per_class"] == pytest.approx(np.mean(recalls))
    assert results["test/top5"] == pytest.approx(top5.item())
    few = trainer().validate(Classifier(VIT_NAME, 3, VIT), datamodule=Images(classes=3), verbose=False)[0]
    assert set(few) == {"val/loss", "val/top1"}


def test_head__initialisation_and_norm() -> None:
    torch.manual_seed(0)
    fine, probe = Classifier(VIT_NAME, 200, VIT), Classifier(VIT_NAME, 200, VIT, tune="linear", head_norm=True)
    assert fine.head.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert probe.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not list(probe.head_norm.parameters())
    assert not fine.head.bias.any()


def test_data_errors__one_line_before_any_step() -> None:
    for classes, text in (
        (4, r"model\.num_classes: .* 5 .* 4"),
        (0, r"data\.root"),
    ):
        data = Images()
        data.num_classes = classes
        with pytest.raises(UserError, match=text):
            trainer().fit(Classifier(VIT_NAME, 5, VIT), datamodule=data)
    unlabeled = Images()
    unlabeled.batch["label"][3] = -1
    with pytest.raises(UserError, match=r"data: .* -1 to "):
        trainer().fit(Classifier(VIT_NAME, 5, VIT), datamodule=unlabeled)
    with pytest.raises(UserError, match=r"data\.train_view: .* 2"):
        trainer().fit(Classifier(VIT_NAME, 5, VIT), datamodule=Images(views=2))
    for wrong in ({"num_classes": 1}, {"loss": "mse"}, {"label_smoothing": 1.0}, {"mixup": -1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Classifier(VIT_NAME, **{"num_classes": 5, "backbone_args": VIT, **wrong})


# weights in, checkpoint out


def test_backbone_checkpoint__weights_pixels_and_report(tmp_path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    source = Backbone(VIT_NAME, **VIT)
    path = str(save_backbone(tmp_path / "backbone.safetensors", source, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    method = Classifier(VIT_NAME, 5, VIT, backbone_checkpoint=path)
    torch.testing.assert_close(method.backbone.state_dict(), source.state_dict())
    torch.testing.assert_close(method.mean, torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(method.std, torch.tensor([0.4, 0.5, 0.6]))
    assert "matched" in capsys.readouterr().out
    given = Classifier(VIT_NAME, 5, VIT, backbone_checkpoint=path, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    assert not given.mean.any()
    torch.testing.assert_close(Classifier(VIT_NAME, 5, VIT).mean, torch.tensor(source.data_config["mean"]))
    with pytest.raises(PartialMatchError):
        Classifier(VIT_NAME, 5, {**VIT, "depth": 3}, backbone_checkpoint=path)


def test_checkpoint__is_complete_in_itself_and_resumes_to_the_same_loss(tmp_path) -> None:
    torch.manual_seed(0)
    start = save_backbone(tmp_path / "backbone.safetensors", Backbone(VIT_NAME, **VIT), [0.5] * 3, [0.5] * 3)
    data = Images(steps=2)

    def fresh(**more) -> Classifier:
        torch.manual_seed(1)
        return Classifier(VIT_NAME, 5, VIT, warmup_epochs=0, lr=1e-3, mixup=0.5, **more)

    full = fresh(backbone_checkpoint=str(start))
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    first = trainer(max_epochs=2, limit_val_batches=0, enable_checkpointing=True, callbacks=[keep])
    first.fit(full, datamodule=data)
    start.unlink()
    half = tmp_path / "epoch=0.ckpt"
    resumed = fresh()
    second = trainer(max_epochs=2, limit_val_batches=0)
    second.fit(resumed, datamodule=data, ckpt_path=half, weights_only=True)
    assert second.global_step == 4
    torch.testing.assert_close(resumed.state_dict(), full.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(
        second.callback_metrics["train/loss"], first.callback_metrics["train/loss"], rtol=0, atol=0
    )
    loaded = Classifier.load_from_checkpoint(tmp_path / "epoch=1.ckpt", weights_only=True)  # the first weights are gone
    torch.testing.assert_close(loaded.state_dict(), full.state_dict(), rtol=0, atol=0)
    assert loaded.hparams.backbone_checkpoint is None
    assert torch.load(half, weights_only=True)["started_from"] == str(start)


# few parameters


@pytest.mark.parametrize("tune", ["lora", "prompt-shallow", "prompt-deep"])
def test_adapters__only_they_train_and_checkpoints_restore_them(tune: str, tmp_path, capsys) -> None:
    torch.manual_seed(0)
    data = Images()
    data.class_names, data.img_size = list("abcde"), 16
    plain_method = Classifier(VIT_NAME, 5, {**VIT, "drop_path_rate": 0.5}, tune="linear")
    extra = {"lora_rank": 2, "lora_dropout": 0.5} if tune == "lora" else {"prompt_length": 3}
    method = Classifier(
        VIT_NAME, 5, {**VIT, "drop_path_rate": 0.5}, tune=tune, lr=0.01, warmup_epochs=0, optimizer="adamw", **extra
    )
    method.backbone.load_state_dict(
        {k.replace("attn.qkv.", "attn.qkv.base_layer.") if tune == "lora" else k: v
         for k, v in plain_method.backbone.state_dict().items()},
        strict=False,
    )  # fmt: skip
    if tune == "lora":  # step 0 is the base model
        x = plain(method, data)
        torch.testing.assert_close(method.eval().backbone(x), plain_method.eval().backbone(x), rtol=0, atol=0)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.train()
    assert not method.backbone.model.blocks[0].drop_path1.training
    assert any(m.training for n, m in method.named_modules() if "lora_dropout" in n) == (tune == "lora")
    keep = ModelCheckpoint(tmp_path, "a", save_on_train_epoch_end=True)
    trainer(enable_checkpointing=True, callbacks=[keep], limit_val_batches=0).fit(method, datamodule=data)
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == trainable(method)
    mark = "lora_" if tune == "lora" else "backbone.prompts."
    assert {name for name in changed if not name.startswith("head.")} == {n for n in before if mark in n}
    assert "parameters: " in capsys.readouterr().out
    loaded = Classifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    x = plain(method, data)
    torch.testing.assert_close(loaded(x), method.eval()(x), rtol=0, atol=0)
    assert loaded.metadata == {"task": "classification", "class_names": list("abcde"), "size": 16, "crop_pct": 1.0}
