"""ImageText: what padding changes, what is locked, what a checkpoint holds, overfitting, retrieval over the split."""

import json
import math

import pytest
import torch
import toy_models
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from lit_vision.data.captions import train_tokenizer
from lit_vision.errors import UserError
from lit_vision.methods import lightning_module, network_class
from lit_vision.methods.image_text.image_text import ImageText
from lit_vision.methods.image_text.network import Similarity
from lit_vision.methods.image_text.text_tower import HuggingFaceText, TextTransformer, pool_tokens
from lit_vision.predict.models import load_method

NAME, VIT = "vit_tiny_patch16_224", {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
RESNET = {"stem": "small", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
COLORS, THINGS = ("red", "green", "blue", "gray"), ("hat", "shoe")
CAPTIONS = [[f"a {color} {thing}", f"the {thing} is {color}"] for color in COLORS for thing in THINGS]


def image_text(**more) -> ImageText:
    options = {"backbone": NAME, "backbone_args": VIT, "lr": 1e-2, "warmup_epochs": 0, "weight_decay": 0.0}
    return ImageText(**{**options, **toy_models.TEXT, **more})


class Pairs(LightningDataModule):
    """Eight random images with two captions each; a step has all of them, with captions that alternate."""

    num_classes, batches_per_epoch, global_batch_size, batch_size, context_length = 0, 10, 8, 8, 12

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = train_tokenizer((text for texts in CAPTIONS for text in texts), 300, 12)
        self.pixels = torch.randint(0, 256, (8, 1, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()

    def batch(self, rows: list[int], way: int) -> dict[str, torch.Tensor]:
        tokens, mask = self.tokenizer.encode([CAPTIONS[row][way] for row in rows])
        key = torch.tensor([[0, row, 0] for row in rows])
        more = {"label": torch.full((len(rows),), -1), "key": key, "tokens": tokens, "token_mask": mask}
        return {"images": self.pixels[rows], **more}

    def captions(self, role: str) -> list[list[str]]:
        return CAPTIONS

    def use_tokenizer(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def train_dataloader(self):
        steps = [self.batch(list(range(8)), step % 2) for step in range(self.batches_per_epoch)]
        return DataLoader(steps, batch_size=None)

    def val_dataloader(self):
        return DataLoader([self.batch([0, 1, 2, 3, 4], 0), self.batch([5, 6, 7], 0)], batch_size=None)


def trainer(**settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "log_every_n_steps": 1}
    return Trainer(accelerator="cpu", **{**quiet, "enable_model_summary": False, "max_epochs": 1, **settings})


def test_overfits_one_batch_and_finds_every_pair(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    method, data = image_text(backbone="resnet18", backbone_args=RESNET), Pairs()
    run = trainer(max_epochs=8, check_val_every_n_epoch=8)
    run.fit(method, datamodule=data)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert "8 pairs a step" in capsys.readouterr().out
    assert found["train/recall1"] == 1
    assert found["train/loss"] < 0.3 < math.log(8)
    assert {name for name in found if name.startswith("val/")} == {
        "val/loss",
        "val/recall1",
        *(f"val/{way}_recall{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
        *(f"val/{way}_median_rank" for way in ("image_to_text", "text_to_image")),
    }
    assert found["val/recall1"] == found["val/text_to_image_recall10"] == found["val/text_to_image_median_rank"] == 1
    assert found["val/loss"] < 0.3
    run.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert stored["tokenizer_json"] == data.tokenizer.json
    network = network_class("ImageText")(stored)  # without Lightning, and without the data
    network.load_state_dict(method.state_dict())
    texts = [text for several in CAPTIONS for text in several]
    vectors = network.eval().encode_texts(texts, batch_size=3)
    normalized = method.on_after_batch_transfer(data.batch(list(range(8)), 0), 0)["images"][:, 0]
    nearest = (vectors @ network(normalized).T).argmax(1)
    assert nearest.tolist() == [i // 2 for i in range(16)]
    torch.testing.assert_close(lightning_module(network).encode_texts(texts), vectors)
    assert load_method(tmp_path / "last.ckpt")[1].task == "features"  # the image tower alone, for embed


def test_text_tower__padding_changes_nothing_and_a_causal_token_sees_no_later_one() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(3, 50, (2, 6))
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    for causal, pool in ((True, "end"), (True, "mean"), (False, "end"), (False, "first")):
        tower = TextTransformer(50, 8, width=16, depth=2, heads=2, causal=causal, pool=pool).double()
        out = tower(tokens, mask)
        other = torch.where(mask, tokens, 7)
        torch.testing.assert_close(tower(other, mask), out)
        torch.testing.assert_close(tower(tokens[:1, :4], mask[:1, :4]), out[:1])  # no padding at all
        changed = tokens.clone()
        changed[0, 3] += 1  # the end token of the first caption
        assert not torch.isclose(tower(changed, mask)[0], out[0]).all() or (causal and pool == "first")
    causal_tower = TextTransformer(50, 8, width=16, depth=2, heads=2, pool="first").double()
    torch.testing.assert_close(causal_tower(changed, mask), causal_tower(tokens, mask))


def test_pool_tokens__by_hand() -> None:
    x, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])
    assert [pool_tokens(x, mask, pool).item() for pool in ("first", "end", "mean")] == [1.0, 3.0, 2.0]


def test_locked_towers_get_no_gradient_and_stay_in_evaluation_mode(tmp_path) -> None:
    folder = write_bert(tmp_path)
    method = image_text(text_model=str(folder), lock_image=True, lock_text=True).train()
    assert not any(part.training for tower in (method.backbone, method.text) for part in tower.modules())
    batch = Pairs().batch([0, 1, 2], 0)
    images, texts = method.encode_pairs(method.on_after_batch_transfer(batch, 0))
    method.similarity(images, texts).backward()
    with_gradient = {name for name, p in method.named_parameters() if p.grad is not None}
    assert with_gradient == {"image_projection.weight", "text_projection.weight", "similarity.log_scale"}
    free = image_text(text_model=str(folder)).train()
    images, texts = free.encode_pairs(free.on_after_batch_transfer(batch, 0))
    free.similarity(images, texts).backward()
    assert all(p.grad is not None for p in free.parameters())  # DDP refuses parameters without
    with pytest.raises(UserError, match=r"model\.lock_text"):
        image_text(lock_text=True)


def test_scale__starts_as_published_and_is_put_back_to_100() -> None:
    assert Similarity("softmax").scale.item() == pytest.approx(1 / 0.07, rel=1e-3)
    sigmoid = Similarity("sigmoid")
    assert (sigmoid.scale.item(), sigmoid.bias.item()) == (pytest.approx(10), -10)
    softmax, x = Similarity("softmax"), torch.eye(4)
    with torch.no_grad():
        softmax.log_scale.fill_(5.0)
    assert softmax.eval().scale.item() == pytest.approx(100)
    assert softmax.log_scale.item() == 5.0
    softmax.train()(x, x.roll(1, 0)).backward()  # wrong pairs: a smaller scale would be better
    assert softmax.log_scale.item() == pytest.approx(math.log(100))
    assert softmax.log_scale.grad.item() > 0  # a clamp in the graph would have stopped it


def write_bert(folder):
    """A text model of Hugging Face's form with random weights: 12 positions, width 16, 300 tokens."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=300, max_position_embeddings=12, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(Pairs().tokenizer.json, encoding="utf-8")
    return folder


def test_text_model__its_vectors_its_tokenizer_and_a_checkpoint_without_its_folder(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_bert(tmp_path / "bert")
    tower, data = HuggingFaceText(str(folder), None, 12), Pairs()
    tokens, mask = data.tokenizer.encode(["a red hat", "gray"])
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    expected = theirs(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(tower(tokens, mask)[1], expected[1, : int(mask[1].sum())].mean(0))
    torch.testing.assert_close(tower.train()(tokens, mask), tower.eval()(tokens, mask))  # no dropout

    method = image_text(text_model=str(folder))
    data.tokenizer = train_tokenizer(["other words"], 300, 12)
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(method, datamodule=data)
    assert data.tokenizer.json == (folder / "tokenizer.json").read_text()
    run.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    for file in folder.iterdir():
        file.unlink()
    network = network_class("ImageText")(stored)
    network.load_state_dict(method.state_dict())
    torch.testing.assert_close(network.eval().encode_texts(["a hat"]), method.eval().encode_texts(["a hat"]))
    assert json.loads(stored["text_config"])["hidden_size"] == 16
    with pytest.raises(UserError, match=r"model\.text_model: .*model\.safetensors"):
        image_text(text_model=str(folder))


def test_a_resumed_run_has_the_same_loss_and_the_checkpoints_tokenizer(tmp_path) -> None:
    data = Pairs()
    data.batches_per_epoch = 3
    torch.manual_seed(0)
    first = image_text()
    seen: list[float] = []
    first.on_train_batch_end = lambda outputs, batch, batch_idx: seen.append(float(outputs["loss"]))
    run = trainer(max_epochs=2, limit_val_batches=0, num_sanity_val_steps=0)
    first.on_train_epoch_end = lambda: run.save_checkpoint(tmp_path / f"{run.current_epoch}.ckpt")
    run.fit(first, datamodule=data)
    tokenizer = data.tokenizer.json
    torch.manual_seed(9)
    again, resumed = image_text(), []
    again.on_train_batch_end = lambda outputs, batch, batch_idx: resumed.append(float(outputs["loss"]))
    data.tokenizer = train_tokenizer(["other words"], 300, 12)
    trainer(max_epochs=2, limit_val_batches=0).fit(again, datamodule=data, ckpt_path=tmp_path / "0.ckpt")
    assert resumed == seen[3:]
    assert data.tokenizer.json == tokenizer


def test_errors() -> None:
    for options, says in (
        ({"loss": "triplet"}, r"model\.loss"),
        ({"text_pool": "max"}, r"model\.text_pool"),
        ({"text_width": 15}, r"model\.text_width"),
        ({"text_model": "/no/such/folder"}, r"model\.text_model"),
    ):
        with pytest.raises(UserError, match=says):
            image_text(**options)
    for options, says in (
        ({"context_length": 10}, r"model\.context_length: 10, the data has 12"),
        ({"vocab_size": 280}, r"model\.vocab_size: 280"),
    ):
        with pytest.raises(UserError, match=says):
            trainer().fit(image_text(**options), datamodule=Pairs())
    method, batch = image_text(), Pairs().batch([0, 1], 0)
    floats = method.on_after_batch_transfer(batch, 0)
    with pytest.raises(UserError, match=r"data\.train_view"):
        method.encode_pairs({**floats, "images": floats["images"].repeat(1, 2, 1, 1, 1)})
    with pytest.raises(UserError, match="data: the images have no captions"):
        method.encode_pairs({"images": floats["images"]})
    with pytest.raises(UserError, match="no tokenizer"):
        method.encode_texts(["a hat"])
