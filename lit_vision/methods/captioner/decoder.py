"""Transformer decoder of captions with the image's features as its first tokens, and its beam search.

B images, P prefix tokens of an image, S tokens of a caption, W width, V tokens of the vocabulary, K beams.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_vision.data.views.keyed_rng import derive_seed
from lit_vision.errors import UserError
from lit_vision.methods.keyed_noise import DROPOUT, keyed_noise

Cache = list[tuple[Tensor, Tensor]]  # of each block: keys and values of all positions so far, (B, heads, T, W / heads)


def keyed_dropout(x: Tensor, keys: Tensor, rate: float, seed: int) -> Tensor:
    """Return x with each value set to 0 with probability `rate` and the others divided by 1 - rate.

    A value's fate depends on (seed, key of its sample, its position and channel) alone, so that a resumed run drops the
    same ones. Source: Srivastava et al. 2014, JMLR 15.

    Args:
        x: (B, T, W).
        keys: (B, any) int64, the batch's `key`.
        rate: in [0, 1).
        seed: any integer; a network has another one for each place.
    """
    noise = keyed_noise(keys, x[0].numel(), seed, DROPOUT).view_as(x)  # a longer T leaves the first positions' noise
    return torch.where(noise < rate, 0, x / (1 - rate))


class CaptionBlock(nn.Module):
    """Attention and MLP, each after a layer norm and added to its input; can go on from cached keys and values.

    Args:
        width: W.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend(
        self, x: Tensor, seen: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the attention's output (B, T, W), and keys and values of all positions.

        Args:
            x: (B, T, W).
            seen: (T, T) bool, True where the row's position sees the column's; None: all see all.
            past: keys and values of earlier positions, which all of x see.
        """
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # (B, heads, T, W / heads)
        return self.proj(out.transpose(1, 2).flatten(2)), (k, v)


class CaptionDecoder(nn.Module):
    """Next token of a caption, from the image's prefix and the tokens before; input and output share their weights.

    The prefix tokens see each other, and every word sees the whole prefix and the words before it. Layer norms stand
    before each part of a block and at the end. Source: Vaswani et al. 2017, arXiv:1706.03762, with a prefix as Mokady
    et al. 2021 (ClipCap, arXiv:2111.09734) have it, but trained from scratch.

    Args:
        vocab_size: V.
        context_length: most tokens of a caption, start and end counted.
        width: W, a multiple of heads.
        depth: blocks.
        heads: of attention.
        dropout: share of the values that training sets to 0: of the embeddings, and of the output of each part.
        seed: of the dropout.

    Raises:
        UserError: a value that cannot work.
    """

    def __init__(
        self, vocab_size: int, context_length: int, width: int, depth: int, heads: int, dropout: float, seed: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"model.decoder_width: {width} is not a multiple of decoder_heads {heads}; change one")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout: {dropout} is not in [0, 1); 0.1 is usual")
        self.dropout, self.seed, self.context_length = dropout, seed, context_length
        self.embedding = nn.Embedding(vocab_size, width)
        self.pos_embed = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(CaptionBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.pos_embed, std=0.01)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, prefix: Tensor, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return logits (B, S, V): those at position s are of the token after `tokens[:, s]`.

        Args:
            prefix: (B, P, W) of the images.
            tokens: (B, S) int64, from the start token on.
            keys: (B, any) int64 of the samples, for dropout; None: nothing is dropped, nor is it in evaluation mode.
        """
        p, s = prefix.shape[1], tokens.shape[1]
        words = self.embedding(tokens) + self.pos_embed[:s]
        seen = torch.ones(p + s, p + s, dtype=torch.bool, device=tokens.device).tril()
        seen[:, :p] = True
        x = self._drop(torch.cat([prefix, words], dim=1), keys, 0)  # (B, P + S, W)
        for i, block in enumerate(self.blocks):
            x = x + self._drop(block.attend(x, seen)[0], keys, 2 * i + 1)
            x = x + self._drop(block.mlp(block.norm2(x)), keys, 2 * i + 2)
        return self._logits(x[:, p:])

    def _drop(self, x: Tensor, keys: Tensor | None, place: int) -> Tensor:
        if keys is None or not self.training or not self.dropout:
            return x
        return keyed_dropout(x, keys, self.dropout, derive_seed(self.seed, place))

    def _logits(self, x: Tensor) -> Tensor:
        logits = F.linear(self.norm(x), self.embedding.weight)
        return logits if logits.dtype == torch.float64 else logits.float()

    def read_prefix(self, prefix: Tensor) -> Cache:
        """Return the cache of prefixes (B, P, W), from which `step` goes on; without dropout."""
        return self._extend(prefix, [None] * len(self.blocks))[1]

    def step(self, tokens: Tensor, position: int, cache: Cache) -> tuple[Tensor, Cache]:
        """Return the logits (B, V) after one more token of each caption, and the longer cache; without dropout.

        Args:
            tokens: (B,) int64.
            position: their place in the captions; 0 is that of the start token.
            cache: of the prefix and of all tokens before.
        """
        x, longer = self._extend((self.embedding(tokens) + self.pos_embed[position])[:, None], cache)
        return self._logits(x[:, 0]), longer

    def _extend(self, x: Tensor, cache: Cache | list[None]) -> tuple[Tensor, Cache]:
        longer: Cache = []
        for block, past in zip(self.blocks, cache):
            attended, kept = block.attend(x, past=past)
            x = x + attended
            x = x + block.mlp(block.norm2(x))
            longer.append(kept)
        return x, longer


@torch.no_grad()
def beam_search(
    decoder: CaptionDecoder, prefix: Tensor, beams: int, start: int, end: int, pad: int
) -> tuple[Tensor, Tensor]:
    """Return the best caption that a beam search finds for each image; one beam is a greedy search.

    A caption's score is the mean log-probability of its tokens, the end counted, start and padding not. At each step
    the `beams` best of all unfinished captions with one more token, and of the finished ones, are kept. Of equal
    scores the earlier beam and the lower token come first. It ends when all kept captions are finished or have
    `context_length` tokens.

    Args:
        decoder: in evaluation mode.
        prefix: (B, P, W).
        beams: K, at least 1.
        start, end, pad: numbers of these tokens; start and padding are never chosen, nor is the end first.

    Returns:
        (B, S) int64, start, tokens and end, then padding; and (B,) the scores, in nats, at most 0.
    """
    b = len(prefix)
    tokens = torch.full((b, 1, 1), start, device=prefix.device)  # (B, K, S); K grows from 1
    total, length = prefix.new_zeros(b, 1, dtype=torch.float64), prefix.new_zeros(b, 1, dtype=torch.float64)
    done = torch.zeros(b, 1, dtype=torch.bool, device=prefix.device)
    cache, score = decoder.read_prefix(prefix), total
    for position in range(decoder.context_length - 1):
        logits, cache = decoder.step(tokens[:, :, -1].flatten(), position, cache)
        log_p = logits.double().log_softmax(-1).unflatten(0, (b, -1))  # (B, K, V)
        v = log_p.shape[2]
        log_p[..., [start, pad, *([end] if position == 0 else [])]] = -torch.inf  # a caption has words
        stays = torch.full((v,), -torch.inf, dtype=log_p.dtype, device=log_p.device)
        stays[pad] = 0  # a finished caption has one continuation, at no cost
        log_p = torch.where(done[..., None], stays, log_p)
        lengths = (length + ~done)[..., None].expand(-1, -1, v)
        totals = total[..., None] + log_p
        score, chosen = _best((totals / lengths).flatten(1), beams)  # (B, K)
        beam, token = chosen // v, chosen % v
        total, length = totals.flatten(1).gather(1, chosen), lengths.flatten(1).gather(1, chosen)
        tokens = torch.cat([tokens.take_along_dim(beam[..., None], 1), token[..., None]], dim=2)
        done = done.gather(1, beam) | (token == end)
        if done.all():
            break
        rows = (torch.arange(b, device=beam.device)[:, None] * log_p.shape[1] + beam).flatten()
        cache = [(k[rows], v_[rows]) for k, v_ in cache]
    return tokens[:, 0], score[:, 0]


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest scores (B, N) of each row, and their columns; of equal ones the first columns."""
    scores, found = scores.clone(), []
    for _ in range(min(count, scores.shape[1])):
        column = scores.argmax(1, keepdim=True)  # the first of equal ones, which topk does not promise
        found.append((scores.gather(1, column), column))
        scores.scatter_(1, column, -torch.inf)
    values, columns = zip(*found)
    return torch.cat(values, 1), torch.cat(columns, 1)
