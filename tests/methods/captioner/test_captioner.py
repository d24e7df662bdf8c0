"""Captioner: teacher forcing equals decoding, beam search, keyed dropout, overfitting, resuming, the baseline."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from lit_vision.callbacks.captions import Captions
from lit_vision.data import PairsDataModule
from lit_vision.errors import UserError
from lit_vision.methods import lightning_module, network_class
from lit_vision.methods.captioner.captioner import Captioner
from lit_vision.methods.captioner.decoder import CaptionDecoder, beam_search, keyed_dropout
from lit_vision.predict.models import load_method

RESNET = {"channels": [16, 32, 32, 32], "stem_width": 16, "img_size": 32}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
SMALL = {"backbone": "vit_tiny_patch16_224", "backbone_args": VIT, "prefix_grid": 2}
SMALL |= {"vocab_size": 300, "context_length": 12}
SMALL |= {"decoder_width": 32, "decoder_heads": 2, "beams": 2, "lr": 1e-2, "warmup_epochs": 0}
COLORS, THINGS = ("red", "green", "blue", "gray"), ("hat", "shoe")
TEXTS = [f"a {color} {thing}" for color in COLORS for thing in THINGS]
PAD, START, END = 0, 1, 2


def toy_decoder(vocab_size: int = 5, context_length: int = 4) -> tuple[CaptionDecoder, torch.Tensor]:
    """A decoder whose distributions differ with prefix and tokens, and the prefixes of six images."""
    torch.manual_seed(0)
    decoder = CaptionDecoder(vocab_size, context_length, width=8, depth=2, heads=2, dropout=0.0, seed=0).double().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, 0.7)
    return decoder, 2 * torch.randn(6, 3, 8, dtype=torch.float64)


@torch.no_grad()
def test_step_by_step_decoding_gives_the_log_probabilities_of_teacher_forcing() -> None:
    decoder, prefix = toy_decoder(vocab_size=9, context_length=7)
    tokens = torch.randint(0, 9, (6, 7))
    logits, cache = decoder(prefix, tokens), decoder.read_prefix(prefix)
    for position in range(7):
        found, cache = decoder.step(tokens[:, position], position, cache)
        torch.testing.assert_close(found.log_softmax(-1), logits[:, position].log_softmax(-1))


@torch.no_grad()
def test_later_tokens_change_nothing_and_every_token_sees_the_whole_prefix() -> None:
    decoder, prefix = toy_decoder(vocab_size=9, context_length=7)
    tokens = torch.randint(0, 9, (6, 7))
    logits = decoder(prefix, tokens)
    changed = tokens.clone()
    changed[:, 4] = (tokens[:, 4] + 1) % 9
    other = decoder(prefix, changed)
    torch.testing.assert_close(other[:, :4], logits[:, :4], rtol=0, atol=0)
    assert not torch.isclose(other[:, 4:], logits[:, 4:]).all(-1).any()
    for cell in range(3):
        moved = prefix.clone()
        moved[:, cell] = prefix[:, cell].flip(-1)  # a constant would vanish in the layer norms
        assert not torch.isclose(decoder(moved, tokens), logits).all(-1).any()


@torch.no_grad()
def test_beam_search__full_width_is_exhaustive_and_one_beam_is_greedy() -> None:
    decoder, prefix = toy_decoder()
    captions = [[START, *words, END] for n in (1, 2) for words in itertools.product((3, 4), repeat=n)]
    captions += [[START, *words] for words in itertools.product((3, 4), repeat=3)]  # no room for the end
    best: list[tuple[float, list[int]]] = []
    for image in prefix:
        scores = []
        for caption in captions:
            log_p = decoder(image[None], torch.tensor([caption[:-1]])).log_softmax(-1)[0]
            scores.append(float(log_p.gather(1, torch.tensor(caption[1:])[:, None]).mean()))
        best.append((max(scores), captions[int(np.argmax(scores))]))
    tokens, score = beam_search(decoder, prefix, 200, START, END, PAD)
    assert score.tolist() == pytest.approx([value for value, _ in best])
    assert [[t for t in row if t != PAD] for row in tokens.tolist()] == [caption for _, caption in best]
    assert len({tuple(caption) for _, caption in best}) > 1

    greedy, score = beam_search(decoder, prefix, 1, START, END, PAD)
    lost = torch.tensor([value for value, _ in best], dtype=torch.float64) - score
    assert float(lost.min()) > -1e-12
    assert float(lost.max()) > 1e-6  # so that the width matters here
    for image, found in zip(prefix, greedy.tolist()):
        row = [START]
        while row[-1] != END and len(row) < 4:
            log_p = decoder(image[None], torch.tensor([row]))[0, -1]
            log_p[[PAD, START, *([END] if len(row) == 1 else [])]] = -torch.inf
            row.append(int(log_p.argmax()))
        assert [t for t in found if t != PAD] == row


@torch.no_grad()
def test_beam_search__of_equal_scores_the_first() -> None:
    decoder, prefix = toy_decoder()
    for parameter in decoder.parameters():
        parameter.zero_()
    for beams in (1, 2, 5):
        tokens, score = beam_search(decoder, prefix, beams, START, END, PAD)
        assert tokens[:, :3].tolist() == [[START, 3, END]] * 6
        torch.testing.assert_close(score, torch.full((6,), -np.log(5), dtype=torch.float64))


def test_keyed_dropout__is_a_function_of_key_position_and_seed() -> None:
    x, keys = torch.ones(64, 5, 32), torch.stack([torch.zeros(64), torch.arange(64), torch.zeros(64)], 1).long()
    found = keyed_dropout(x, keys, 0.25, 7)
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keyed_dropout(x, keys[order], 0.25, 7), found[order])
    assert torch.equal(keyed_dropout(torch.ones(64, 9, 32), keys, 0.25, 7)[:, :5], found)
    for other in (keyed_dropout(x, keys, 0.25, 8), keyed_dropout(x, keys + torch.tensor([1, 0, 0]), 0.25, 7)):
        assert float((other == found).float().mean()) < 0.7


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Eight training and four validation pictures; those of validation are brighter copies of the first four."""
    folder = tmp_path_factory.mktemp("pairs")
    pixels = np.random.default_rng(0).integers(0, 30, (8, 16, 16, 3), dtype=np.uint8)
    pixels += 200 * (np.arange(8)[:, None] >> np.arange(3) & 1).astype(np.uint8)[:, None, None]  # a color each
    lines = ["path,caption,split"]
    for i, text in enumerate(TEXTS):
        Image.fromarray(pixels[i]).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{text},train")
    for i in range(4):
        Image.fromarray(pixels[i] + 1).save(folder / f"v{i}.png")
        lines += [f"v{i}.png,{TEXTS[i]},val", f"v{i}.png,one {TEXTS[i][2:]},val"]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def pairs(root: Path) -> PairsDataModule:
    options = {"img_size": 16, "batch_size": 4, "vocab_size": 300, "context_length": 12, "num_workers": 0}
    return PairsDataModule(str(root), **options, crop_scale=[1.0, 1.0])


def trainer(folder: Path, **settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "log_every_n_steps": 1}
    quiet |= {"enable_model_summary": False, "use_distributed_sampler": False, "default_root_dir": folder}
    return Trainer(accelerator="cpu", **{**quiet, **settings})


def test_overfits_one_batch_and_scores_captions_as_teacher_forcing_does(root: Path) -> None:
    torch.manual_seed(0)
    data = pairs(root)
    data.setup("fit")
    method = Captioner(**SMALL, dropout=0.0, tokenizer_json=data.tokenizer.json)
    batch = method.on_after_batch_transfer(next(iter(data.eval_loader("train"))), 0)
    images, tokens, mask = batch["images"][:, 0], batch["tokens"], batch["token_mask"]
    optimizer = torch.optim.AdamW(method.parameters(), 5e-3)
    for _ in range(60):
        loss = -method.caption_log_probabilities(batch).sum() / mask[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.1
    network = network_class("Captioner")(dict(method.hparams)).eval()  # without Lightning
    network.load_state_dict(method.state_dict())
    with torch.no_grad():
        tokens, score = network.caption(images)
        assert network.tokenizer.decode(tokens) == TEXTS[: len(images)]
        mask = tokens != network.tokenizer.pad
        log_p = network.token_log_probabilities(network(images), tokens, mask).sum(1) / mask[:, 1:].sum(1)
    torch.testing.assert_close(score.float(), log_p)
    again = lightning_module(network)
    assert again.tokenizer.decode(again.caption(images)[0]) == TEXTS[: len(images)]


def test_validation_measures_the_baseline_and_checkpoints_hold_both(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method, data = Captioner(**SMALL), pairs(root)
    run = trainer(tmp_path, max_epochs=2, check_val_every_n_epoch=2, callbacks=[Captions(2, images=3)])
    run.fit(method, datamodule=data)
    values = {name: float(value) for name, value in run.callback_metrics.items()}
    scores = ("bleu4", "rouge_l", "cider")
    assert {name for name in values if name.startswith("val/")} == {
        "val/loss",
        *(f"val/{who}{name}" for who in ("", "neighbor_") for name in scores),
    }
    assert values["val/neighbor_rouge_l"] == 1  # the nearest training picture is the same one
    run.save_checkpoint(tmp_path / "last.ckpt")
    network, metadata = load_method(tmp_path / "last.ckpt")
    assert (metadata.task, metadata.size, metadata.class_names) == ("captioning", 16, [])
    stored = metadata.options["caption_scores"]
    assert stored["images"] == 4
    for who, start in (("decoder", "val/"), ("neighbor", "val/neighbor_")):
        assert stored[who] == pytest.approx({name: values[start + name] for name in scores}, rel=1e-6)
    batch = method.on_after_batch_transfer(next(iter(data.eval_loader("val"))), 0)
    log_p = method.eval().caption_log_probabilities(batch)
    assert values["val/loss"] == pytest.approx(float(-log_p.sum() / batch["token_mask"][:, 1:].sum()), rel=1e-4)
    torch.testing.assert_close(network.caption(batch["images"][:, 0])[1], method.caption(batch["images"][:, 0])[1])
    assert Image.open(tmp_path / "samples/captions-e0002.png").size == (4 * 194 + 2, 280 + 4)
    table = (tmp_path / "samples/captions-e0002.csv").read_text().splitlines()
    assert table[0] == "path,reference,caption,log_probability"
    assert table[1].startswith(f"v0.png,{TEXTS[0]},")


def test_a_resumed_run_has_the_same_bits_with_dropout(root: Path, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"whole": [], "resumed": []}
    kept = {}
    for name, checkpoint in (("whole", None), ("resumed", tmp_path / "0.ckpt")):
        torch.manual_seed(len(name))
        method = Captioner(**SMALL, dropout=0.5)
        seen = losses[name]
        method.on_train_batch_end = lambda outputs, batch, batch_idx, seen=seen: seen.append(float(outputs["loss"]))
        run = trainer(tmp_path, max_epochs=2, limit_val_batches=0, num_sanity_val_steps=0)
        if checkpoint is None:
            method.on_train_epoch_end = lambda run=run: run.save_checkpoint(tmp_path / f"{run.current_epoch}.ckpt")
        run.fit(method, datamodule=pairs(root), ckpt_path=checkpoint)
        kept[name] = method.state_dict()
    assert losses["resumed"] == losses["whole"][2:]
    assert all(torch.equal(value, kept["whole"][key]) for key, value in kept["resumed"].items())


def test_a_locked_backbone_gets_no_gradient_and_what_trains_gets_one(root: Path) -> None:
    data = pairs(root)
    data.setup("fit")
    batch = next(iter(data.eval_loader("train")))
    resnet = {"backbone": "resnet10t", "backbone_args": RESNET}
    for locked, grid, body in ((True, 2, resnet), (False, 2, resnet), (False, 2, {}), (False, 0, {})):
        method = Captioner(**{**SMALL, "prefix_grid": grid, **body}, lock_image=locked).train()
        found = method.caption_log_probabilities(method.on_after_batch_transfer(dict(batch), 0), dropout=True)
        (-found.sum()).backward()
        assert all((p.grad is not None) == p.requires_grad for p in method.parameters())
        assert method.backbone.training is not locked
        assert any(p.requires_grad for p in method.backbone.parameters()) is not locked
        assert (found[~batch["token_mask"][:, 1:]] == 0).all()


def test_errors(root: Path, tmp_path: Path) -> None:
    for options, says in (
        ({"decoder_width": 31}, r"model\.decoder_width"),
        ({"dropout": 1.0}, r"model\.dropout"),
        ({"beams": 0}, r"model\.beams"),
        ({"prefix_grid": -1}, r"model\.prefix_grid"),
    ):
        with pytest.raises(UserError, match=says):
            network_class("Captioner")({**SMALL, **options})
    for options, says in (
        ({"context_length": 10}, r"model\.context_length: 10, the data has 12"),
        ({"vocab_size": 270}, r"model\.vocab_size: 270"),
    ):
        with pytest.raises(UserError, match=says):
            trainer(tmp_path, max_epochs=1).fit(Captioner(**{**SMALL, **options}), datamodule=pairs(root))
    with pytest.raises(UserError, match="no tokenizer"):
        network_class("Captioner")(SMALL).caption(torch.zeros(1, 3, 16, 16))
