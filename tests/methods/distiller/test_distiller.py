"""Distiller: losses in closed form and by loops, the whole loss of a batch by hand, files of a Classifier, resume."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from toy_models import CNN, make_classifier, write_run

import lit_vision
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.methods import Classifier, Distiller
from lit_vision.methods.distiller import teacher as teachers
from lit_vision.methods.distiller.distiller import feature_loss, logit_loss
from lit_vision.methods.distiller.teacher import open_teacher
from lit_vision.predict.models import load_method
from lit_vision.weights.load import save_backbone

NAMES = ["green", "blue", "red"]  # the teacher's classes (toy_models.NAMES) in another order
STUDENT = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
}


class Images(LightningDataModule):
    """Two batches of random images; some labels are -1."""

    def __init__(self, labels: list[int], names: list[str] = NAMES) -> None:
        super().__init__()
        self.class_names, self.num_classes = names, len(names)
        self.batches_per_epoch, self.global_batch_size, self.img_size = 2, len(labels), 16
        generator = torch.Generator().manual_seed(0)
        shape = (2, len(labels), 1, 16, 16, 3)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        keys = torch.stack((torch.zeros(len(labels)), torch.arange(len(labels)), torch.zeros(len(labels))), 1).long()
        self.batches = [{"images": images, "label": torch.tensor(labels), "key": keys} for images in pixels]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)


def student(teacher: object, **more) -> Distiller:
    torch.manual_seed(1)
    settings = {"backbone_args": STUDENT, "lr": 1e-2, "warmup_epochs": 0, "head_init_std": 0.5}
    return Distiller("resnet18", 3, str(teacher), **{**settings, **more})


def train(method: Distiller, data: Images, epochs: int = 1, **more) -> Trainer:
    trainer = Trainer(**{**QUIET, "enable_checkpointing": "callbacks" in more, "max_epochs": epochs, **more})
    trainer.fit(method, datamodule=data)
    return trainer


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A teacher as a run and, with a license, as a safetensors; and a backbone alone."""
    folder = tmp_path_factory.mktemp("teacher")
    write_run(folder / "run", make_classifier("cnn"))
    checkpoint = folder / "run/checkpoints/last.ckpt"
    lit_vision.export_model(checkpoint, "safetensors", out=folder / "nc.safetensors", license="CC-BY-NC-4.0")
    save_backbone(folder / "backbone.safetensors", Backbone("resnet18", **CNN), [0.5] * 3, [0.2] * 3)
    return folder


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_logit_loss__is_the_loop_over_classes(temperature: float) -> None:
    torch.manual_seed(0)
    ours, theirs = 3 * torch.randn(2, 4, 5)
    total = 0.0
    for z, v in zip(ours.tolist(), theirs.tolist()):
        p, q = ([math.exp(x / temperature) for x in logits] for logits in (v, z))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q))
    found = logit_loss(ours, theirs, temperature)
    torch.testing.assert_close(found, torch.tensor(temperature**2 * total / 4))
    torch.testing.assert_close(logit_loss(theirs + torch.arange(4.0)[:, None], theirs, temperature), torch.tensor(0.0))


def test_logit_loss__its_gradient_tends_to_that_of_the_squared_difference() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 3, 7, dtype=torch.float64)
    ours.requires_grad_(True)
    logit_loss(ours, theirs, 1e4).backward()
    difference = (ours - ours.mean(1, keepdim=True) - theirs + theirs.mean(1, keepdim=True)).detach()
    torch.testing.assert_close(ours.grad, difference / (7 * 3), rtol=1e-3, atol=1e-6)


def test_feature_loss__closed_forms() -> None:
    ours, theirs = torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([[0.0, 3.0], [-1.0, -1.0]])
    torch.testing.assert_close(feature_loss(ours, theirs, "cosine"), torch.tensor((1.0 + 2.0) / 2))
    torch.testing.assert_close(feature_loss(ours, theirs, "mse"), torch.tensor((1 + 9 + 9 + 9) / 4))
    assert feature_loss(ours.bfloat16(), theirs.bfloat16(), "mse").dtype == torch.float32


def test_the_loss_of_a_batch_by_hand(place) -> None:
    """Two of four images have a label; the teacher sees its own normalization and answers in the student's order."""
    data = Images([2, -1, 0, -1])
    weights = {"logit_weight": 0.7, "temperature": 3.0}
    method = student(place / "run/checkpoints/last.ckpt", feature_weight=0.5, label_smoothing=0.1, **weights)
    seen = {}
    method.log = lambda name, value, **_: seen.setdefault(name, value)
    before = None

    def keep(trainer, module, *_):
        nonlocal before
        before = {key: value.clone() for key, value in module.state_dict().items()}

    train(
        method, data, limit_train_batches=1, callbacks=[LambdaCallback(on_train_start=keep)], enable_checkpointing=False
    )
    copy = student(place / "run/checkpoints/last.ckpt", label_smoothing=0.1)
    copy.load_state_dict({key: value for key, value in before.items() if not key.startswith("feature_projection")})
    copy.train()
    pixels = data.batches[0]["images"][:, 0].permute(0, 3, 1, 2).float() / 255
    network, _ = load_method(place / "run/checkpoints/last.ckpt")
    normalized = [(pixels - m.mean[:, None, None]) / m.std[:, None, None] for m in (copy, network)]
    features = copy.backbone(normalized[0])
    logits = copy.head(features)
    with torch.no_grad():
        theirs = network.backbone(normalized[1])
        answers = network.head(theirs)[:, [1, 0, 2]]  # green, blue, red
    picked = logits.log_softmax(1)[[0, 2]]
    labels = -(0.9 * picked[[0, 1], [2, 0]] + 0.1 * picked.mean(1)).mean()
    mapped = features @ before["feature_projection.weight"].T + before["feature_projection.bias"]
    expected = {
        "train/label_loss": labels,
        "train/logit_loss": logit_loss(logits, answers, 3.0),
        "train/feature_loss": feature_loss(mapped, theirs, "cosine"),
    }
    expected["train/loss"] = 0.3 * labels + 0.7 * expected["train/logit_loss"] + 0.5 * expected["train/feature_loss"]
    assert set(seen) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(seen[name].detach(), value.detach(), msg=name)
    after = method.state_dict()
    assert not torch.equal(after["feature_projection.weight"], before["feature_projection.weight"])
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in method.teacher.network.parameters()
    )


def test_its_files_are_a_classifiers(place, tmp_path) -> None:
    """Predict and export open the checkpoint without the teacher, whose license the metadata name."""
    method = student(place / "nc.safetensors", feature_weight=1.0)
    keep = ModelCheckpoint(tmp_path / "run/checkpoints", "last", save_top_k=-1, save_on_train_epoch_end=True)
    train(method, Images([0, 1, 2, 1]), callbacks=[keep])
    path = tmp_path / "run/checkpoints/last.ckpt"
    stored = torch.load(path, weights_only=True)
    plain = Classifier("resnet18", 3, STUDENT)
    assert set(stored["state_dict"]) == set(plain.state_dict())
    assert set(stored["hyper_parameters"]) <= {*plain.hparams, "watermark"}
    network, metadata = load_method(path)
    assert metadata.class_names == NAMES
    assert metadata.license == "CC-BY-NC-4.0"
    assert metadata.options["teacher"]["non_commercial"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, method.state_dict()[name])
    exported = lit_vision.export_model(path, "safetensors", out=tmp_path / "e.safetensors")
    assert "CC-BY-NC-4.0" in str(exported.notes)
    assert open_teacher(path).class_names == NAMES  # and it can teach


def test_a_resumed_training_has_the_same_bits(place, tmp_path) -> None:
    data = Images([0, -1, 2, 1])
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    options = {"feature_weight": 1.0, "feature_loss": "mse"}
    full = student(place / "nc.safetensors", **options)
    train(full, data, 2, callbacks=[keep])
    resumed = student(place / "nc.safetensors", **options)
    trainer = Trainer(**QUIET, enable_checkpointing=False, max_epochs=2)
    trainer.fit(resumed, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert trainer.global_step == 4
    torch.testing.assert_close(resumed.state_dict(), full.state_dict(), rtol=0, atol=0)
    without = student(place / "nc.safetensors")
    with pytest.raises(UserError, match="feature_weight"):
        trainer.fit(without, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)


def test_a_folder_without_labels(place, tmp_path) -> None:
    """The student overfits the teacher's answers and gets its class names; without logits the head would not learn."""
    data = Images([-1] * 6, [])
    method = student(place / "nc.safetensors", logit_weight=1.0, temperature=1.0)
    train(method, data, 10)
    assert method.metadata["class_names"] == ["blue", "green", "red"]
    images = data.batches[0]["images"][:, 0].permute(0, 3, 1, 2).float() / 255
    normalized = (images - method.mean[:, None, None]) / method.std[:, None, None]
    answers, _ = method.teacher(normalized, method.mean, method.std)
    with torch.no_grad():
        before, after = (
            float(logit_loss(network.train()(normalized), answers, 1.0))
            for network in (student(place / "nc.safetensors"), method)
        )
    assert after < 0.3 * before
    with pytest.raises(UserError, match="logit_weight"):
        train(student(place / "nc.safetensors", logit_weight=0.0, feature_weight=1.0), data)
    other = Distiller("resnet18", 5, str(place / "nc.safetensors"), backbone_args=STUDENT)
    with pytest.raises(UserError, match="num_classes"):
        train(other, data)


def test_teachers_without_a_classifier_and_of_timm(place, monkeypatch) -> None:
    import timm

    features_alone = {"logit_weight": 0.0, "feature_weight": 1.0}
    train(student(place / "backbone.safetensors", **features_alone), Images([0, 1, 2]))
    with pytest.raises(UserError, match="no classifier"):
        train(student(place / "backbone.safetensors"), Images([0, 1, 2]))
    model = timm.create_model("test_resnet", num_classes=3)
    monkeypatch.setattr(teachers, "create_pretrained_classifier", lambda name: (model, {"license": "MIT"}))
    found = open_teacher("timm:test_resnet")
    images = torch.randn(2, 3, 32, 32)
    mean, std = (torch.tensor(values) for values in (found.mean, found.std))
    logits, features = found(images, mean, std)
    torch.testing.assert_close(logits, model.eval()(images), rtol=1e-4, atol=1e-5)
    assert (features.shape, found.width, found.license) == ((2, found.width), found.width, "MIT")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"logit_weight": 1.5}, "logit_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"feature_weight": math.nan}, "feature_weight"),  # was taken for 0
        ({"feature_weight": -1.0}, "feature_weight"),
        ({"logit_weight": 0.0}, "feature_weight"),
        ({"feature_loss": "l3"}, "feature_loss"),
    ],
)
def test_wrong_values(settings: dict, word: str) -> None:
    with pytest.raises(UserError, match=f"model.{word}"):
        student("t.ckpt", **settings)


def test_wrong_teachers_and_data(place, tmp_path) -> None:
    good = place / "run/checkpoints/last.ckpt"
    with pytest.raises(UserError, match=r"no\.ckpt"):
        train(student(tmp_path / "no.ckpt"), Images([0, 1, 2]))
    torch.save({"state_dict": torch.load(good, weights_only=True)["state_dict"]}, tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match="teacher"):
        train(student(tmp_path / "bare.ckpt"), Images([0, 1, 2]))
    with pytest.raises(UserError, match="purple"):
        train(student(good), Images([0, 1, 2], ["blue", "green", "purple"]))
    with pytest.raises(UserError, match="mixup"):
        train(student(good, mixup=0.5), Images([0, -1]))
    with pytest.raises(UserError, match="labels 0 to 7"):
        train(student(good), Images([0, 7]))
    with pytest.raises(UserError, match="channels"):
        train(student(good, backbone_args={**STUDENT, "in_chans": 1}), Images([0, 1]))
