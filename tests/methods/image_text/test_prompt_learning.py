"""Prompt learning: equal to zero-shot with a template's own vectors, what gradients reach, what it learns, its bits."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import toy_models
from torch import nn

from lit_vision.data.captions import train_tokenizer
from lit_vision.errors import UserError
from lit_vision.methods.image_text.network import ImageTextNetwork
from lit_vision.methods.image_text.prompt_learning import (
    LearnedPrompts,
    learn_contexts,
    paper_epochs,
    room_for_contexts,
)
from lit_vision.predict.open_clip_models import OpenClipTowers

CLASSES = ["red hat", "green", "gray bag"]  # different numbers of tokens
TEMPLATE = "a photo of a"


def our_network() -> ImageTextNetwork:
    tokenizer = train_tokenizer([f"a photo of a {name}." for name in CLASSES], 300, 24)
    hyper = {"backbone": "resnet18", "backbone_args": toy_models.CNN, **toy_models.TEXT, "context_length": 24}
    torch.manual_seed(0)
    return ImageTextNetwork({**hyper, "tokenizer_json": tokenizer.json}).eval().requires_grad_(False)


def hugging_face_network(kind: str) -> ImageTextNetwork:
    """A text model with random weights, locked, on our tokenizer: BERT, or CLIP's, which takes no vectors as input."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {"bert": transformers.BertConfig, "clip_text_model": transformers.CLIPTextConfig}[kind](
        vocab_size=300, max_position_embeddings=24, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes
    )
    network = our_network()
    more = {"text_model": kind, "lock_text": True, "text_config": config.to_json_string(use_diff=False)}
    torch.manual_seed(0)
    return ImageTextNetwork({**network.hparams, **more}).eval().requires_grad_(False)


def open_clip_network() -> OpenClipTowers:
    """CLIP's text tower of open_clip, tiny; our tokenizer with padding to a fixed length."""
    model = pytest.importorskip("open_clip.model")
    text = model.CLIPTextCfg(context_length=24, vocab_size=300, width=16, heads=2, layers=1, eos_id=2)
    text.pool_type = "eos"
    vision = model.CLIPVisionCfg(image_size=16, patch_size=8, width=16, head_width=8, layers=1)
    torch.manual_seed(0)
    towers = model.CLIP(8, vision, text).eval().requires_grad_(False)
    own = our_network().tokenizer

    def tokenizer(texts: list[str]) -> torch.Tensor:
        tokens, _ = own.encode(texts)
        return F.pad(tokens, (0, 24 - tokens.shape[1]), value=0)

    return OpenClipTowers(towers, tokenizer).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ours": our_network,
    "bert": lambda: hugging_face_network("bert"),
    "clip of transformers": lambda: hugging_face_network("clip_text_model"),
    "open_clip": open_clip_network,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_contexts_of_words_give_the_vectors_of_the_prompt(name: str) -> None:
    network = NETWORKS[name]()
    for words, template in (("", "{}."), (TEMPLATE, TEMPLATE + " {}.")):
        expected = network.encode_texts([template.replace("{}", name) for name in CLASSES])
        for per_class in (False, True):
            prompts = LearnedPrompts(network, CLASSES, words, per_class)
            assert prompts.contexts.dim() == (3 if per_class else 2)
            torch.testing.assert_close(prompts.class_vectors().detach(), expected, rtol=1e-5, atol=1e-6)
    other = LearnedPrompts(network, CLASSES, "of a photo").class_vectors()
    assert not torch.allclose(other, expected, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_the_contexts_only_and_each_class_its_own(name: str) -> None:
    network = NETWORKS[name]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    prompts = LearnedPrompts(network, CLASSES, 3, per_class=True)
    (grad,) = torch.autograd.grad(prompts.class_vectors()[1].sum(), [prompts.contexts])
    assert (grad[1].abs().sum(1) > 0).all()
    assert not grad[[0, 2]].any()
    prompts.class_vectors().sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    learn_contexts(prompts, F.normalize(torch.randn(6, 8), dim=1), torch.arange(6) % 3, epochs=2)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not network.token_embedding._forward_hooks


def images_of(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors near one axis a class, which know nothing of the classes' names, and the classes."""
    labels = torch.arange(count) % len(CLASSES)
    noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return F.normalize(torch.eye(8)[labels] + 0.05 * noise, dim=1), labels


def test_learns_where_zero_shot_is_wrong() -> None:
    network = our_network()
    test, truth = images_of(60, 1)

    def accuracy(vectors: torch.Tensor) -> float:
        return float(((test @ vectors.T).argmax(1) == truth).float().mean())

    assert accuracy(network.encode_texts([f"{TEMPLATE} {name}." for name in CLASSES])) < 0.5
    prompts = LearnedPrompts(network, CLASSES, per_class=True)
    assert accuracy(prompts.class_vectors()) < 0.7
    losses = learn_contexts(prompts, *images_of(12, 0), epochs=paper_epochs(1))
    assert losses[-1] < losses[0] / 2
    assert accuracy(prompts.class_vectors()) > 0.9


def test_the_same_seed_gives_the_same_bits() -> None:
    def learn(first: int, order: int) -> torch.Tensor:
        prompts = LearnedPrompts(our_network(), CLASSES, 2, seed=first)
        learn_contexts(prompts, *images_of(12, 0), epochs=2, batch_size=5, seed=order)
        return prompts.contexts

    torch.manual_seed(1)
    found = learn(2**63, 5)
    torch.manual_seed(2)  # the global generator plays no part
    assert torch.equal(found, learn(2**63, 5))
    assert not torch.equal(found, learn(2**63, 6))
    assert not torch.equal(found, learn(0, 5))


def test_one_step_is_the_papers_gradient_by_hand() -> None:
    """The first epoch has a rate of 1e-5; the second of a cosine, half of `lr` at epoch 1 of 2, with momentum."""
    network = our_network()
    prompts = LearnedPrompts(network, CLASSES, 2)
    images, labels = images_of(6, 0)
    contexts, speed, losses = prompts.contexts.detach().clone(), torch.tensor(0.0), []
    reference = LearnedPrompts(network, CLASSES, 2)
    for rate in (1e-5, 0.001):
        reference.contexts = contexts.clone().requires_grad_()
        vectors = reference.class_vectors()
        logits = torch.stack([network.similarity.scale * (image * vectors).sum(1) for image in images])
        loss = torch.stack([-row.log_softmax(0)[label] for row, label in zip(logits, labels)]).mean()
        (grad,) = torch.autograd.grad(loss, [reference.contexts])
        speed = 0.9 * speed + grad + 5e-4 * contexts
        contexts = contexts - rate * speed
        losses.append(float(loss.detach()))
    found = learn_contexts(prompts, images, labels, epochs=2, lr=0.002)
    assert found == pytest.approx(losses, abs=1e-5)
    torch.testing.assert_close(prompts.contexts.detach(), contexts, rtol=1e-5, atol=1e-7)
    assert [paper_epochs(k) for k in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]


class HuggingFaceOnly(nn.Module):
    """A model of open_clip whose text tower is one of transformers, as far as prompt learning looks."""

    text = nn.Identity()


def test_what_cannot_work_is_refused() -> None:
    network = our_network()
    room = room_for_contexts(network, CLASSES)
    LearnedPrompts(network, CLASSES, room)
    with pytest.raises(UserError, match=f"give {room} or fewer"):
        LearnedPrompts(network, CLASSES, room + 1)
    transformers_text = OpenClipTowers(HuggingFaceOnly(), None)  # of open_clip
    with pytest.raises(UserError, match="prompt learning"):
        LearnedPrompts(transformers_text, CLASSES)
