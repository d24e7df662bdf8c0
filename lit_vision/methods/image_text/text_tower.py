"""Text towers: a small transformer of our own, and a text model of Hugging Face. Both turn tokens into one vector.

B captions, S tokens, D width.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lit_vision.errors import UserError

POOLS = ("end", "mean", "first")


def pool_tokens(x: Tensor, mask: Tensor, pool: str) -> Tensor:
    """Return one vector a caption: (B, D).

    Args:
        x: (B, S, D) vectors of the tokens.
        mask: (B, S) bool, True for the tokens of the caption, which come first; each caption has one or more.
        pool: "end": the last token's (CLIP); "mean": the mean over the tokens; "first": the first token's (BERT's cls).
    """
    if pool == "first":
        return x[:, 0]
    if pool == "end":
        return x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
    weights = mask[..., None].to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1)


class TextTransformer(nn.Module):
    """Transformer over tokens with learned positions, layer norm before each part of a block and at the end.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.4: causal attention, and the end token's vector. Unlike it:
    all matrices begin as a truncated normal of deviation 0.02, and GELU is exact.

    Args:
        vocab_size: number of tokens.
        context_length: most tokens of a caption.
        width: D, a multiple of heads.
        depth: blocks.
        heads: of attention.
        causal: a token sees those before it only; False lets it see all (SigLIP, BERT).
        pool: see `pool_tokens`.

    Attributes:
        width: D.

    Raises:
        UserError: the width is not a multiple of the heads.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        width: int = 512,
        depth: int = 12,
        heads: int = 8,
        causal: bool = True,
        pool: str = "end",
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"model.text_width: {width} is not a multiple of text_heads {heads}; change one of them")
        self.width, self.causal, self.pool = width, causal, pool
        self.embedding = nn.Embedding(vocab_size, width)
        self.pos_embed = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.pos_embed, std=0.01)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def token_embedding(self) -> nn.Module:
        """The module that turns tokens into vectors, without positions."""
        return self.embedding

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (B, D) of tokens (B, S) int64 and mask (B, S) bool, False for padding at the end of a row.

        What stands at the padding, and how much there is of it, changes nothing.
        """
        s = tokens.shape[1]
        x = self.embedding(tokens) + self.pos_embed[:s]  # (B, S, D)
        seen = mask[:, None, None, :]  # by every token: (B, 1, 1, S)
        if self.causal:
            seen = seen & torch.ones(s, s, dtype=torch.bool, device=tokens.device).tril()  # (B, 1, S, S)
        seen = seen.expand(-1, -1, s, -1)
        for block in self.blocks:
            x = block(x, attn_mask=seen)
        pooled: Tensor = pool_tokens(self.norm(x), mask, self.pool)
        return pooled


class HuggingFaceText(nn.Module):
    """Text model of transformers, its tokens' last vectors pooled; its dropout is off, so that runs can be repeated.

    Args:
        name: folder of a model, or its name on the Hub; its weights are read if there is no `config`.
        config: JSON of the model's configuration (a checkpoint's), from which it is built without weights; or None.
        context_length: most tokens of a caption.
        pool: see `pool_tokens`.

    Attributes:
        width: D.
        config: JSON of the model's configuration.

    Raises:
        UserError: transformers is not installed, no such model (or no network), an unknown kind of model, or fewer
            positions than `context_length`.
    """

    def __init__(self, name: str, config: str | None, context_length: int, pool: str = "mean") -> None:
        super().__init__()
        self.pool = pool
        model = _load(name) if config is None else _build(config)
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its weights would get no gradient, which DDP refuses
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        positions = getattr(model.config, "max_position_embeddings", context_length)
        if positions < context_length:
            raise UserError(f"model.context_length: {context_length}, {name} has {positions} positions; lower it")
        self.model = model
        self.width: int = model.config.hidden_size
        self.config: str = model.config.to_json_string(use_diff=False)

    @property
    def token_embedding(self) -> nn.Module:
        """The module that turns tokens into vectors, without positions."""
        embedding: nn.Module = self.model.get_input_embeddings()
        return embedding

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (B, D) of tokens (B, S) int64 and mask (B, S) bool, False for padding at the end of a row."""
        x = self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state  # (B, S, D)
        return pool_tokens(x, mask, self.pool)


def _transformers() -> Any:
    """Import transformers; UserError if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "model.text_model: needs the package transformers; pip install 'lit-vision[words]', or leave it out for a "
            "text tower of our own"
        ) from None
    return transformers


def _load(name: str) -> nn.Module:
    """Return a text model with its weights, which must be safetensors: nothing in its files is executed."""
    transformers = _transformers()
    transformers.utils.logging.disable_progress_bar()
    try:
        model: nn.Module = transformers.AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        what = "the folder holds no text model" if os.path.isdir(name) else "no such folder, and not on this machine"
        raise UserError(
            f"model.text_model: {name}: {what} ({_first_line(error)}); name a folder with config.json, "
            "model.safetensors and tokenizer.json, or a model of the Hugging Face Hub"
        ) from error
    return model.float()


def _build(config: str) -> nn.Module:
    """Return a text model of a configuration with random weights, for those of a checkpoint."""
    transformers = _transformers()
    values = json.loads(config)
    try:
        kind = values.pop("model_type")
        model: nn.Module = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **values))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"text_config: transformers cannot build this text model ({_first_line(error)}); install the version that "
            f"the checkpoint was made with ({values.get('transformers_version', 'unknown')})"
        ) from error
    return model.float()


def tokenizer_file(name: str) -> str:
    """Return the path of a text model's tokenizer.json: in its folder, or fetched from the Hub.

    Raises:
        UserError: there is none, or transformers is not installed.
    """
    _transformers()
    from transformers.utils import cached_file

    try:
        return str(cached_file(name, "tokenizer.json"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.text_model: {name}: has no tokenizer.json ({_first_line(error)}); save its fast tokenizer there"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
