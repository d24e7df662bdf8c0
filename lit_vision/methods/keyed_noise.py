"""Random numbers for the device (masks, regions, noise images), a pure function of a sample's key."""

import math

import torch
from torch import Tensor

TRAIN, VALIDATION, PICTURES, ANCHORS, PROPOSALS = range(5)  # streams with different noise
LATENTS, TIMES, AUGMENTATION = range(5, 8)  # of methods/generation
DROPOUT = 8  # of methods/captioner


def _signed(x: int) -> int:
    return (x + 2**63) % 2**64 - 2**63


_GOLDEN, _M1, _M2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, n: int) -> Tensor:
    return (x >> n) & ((1 << (64 - n)) - 1)  # int64 shifts copy the sign bit; uint64 has no kernels on all devices


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def keyed_noise(keys: Tensor, length: int, seed: int, stream: int = TRAIN) -> Tensor:
    """Return uniform noise for each sample, which depends on (seed, stream, key) alone: not on rank, worker or batch.

    A SplitMix64 sequence per sample, started from a hash of its key (Steele et al. 2014, doi:10.1145/2660193.2660195),
    for a batch at once: 0.7 ms for 256 samples of 64 patches on one core, where a torch.Generator per sample takes 2.7
    ms and must be on the CPU.

    Args:
        keys: (B, any) int64, the batch's `key`.
        length: L, numbers per sample.
        seed: any integer.
        stream: a constant of this file.

    Returns:
        (B, L) float32 in [0, 1), multiples of 2^-24, on the device of the keys.
    """
    state = keys.new_zeros(len(keys))
    for part in (torch.full_like(state, _signed(seed)), torch.full_like(state, stream), *keys.unbind(1)):
        state = _mix((state ^ part) + _GOLDEN)
    steps = torch.arange(1, length + 1, device=keys.device) * _GOLDEN
    return _shift(_mix(state[:, None] + steps), 40).float() * 2**-24


def keyed_normal(keys: Tensor, length: int, seed: int, stream: int) -> Tensor:
    """Return standard normal noise for each sample, which depends on (seed, stream, key) alone, as `keyed_noise`.

    Box and Muller's transform of the uniform noise, computed in float64, so that the last bit of a logarithm, which
    depends on where in memory a number lies, does not reach the result.

    Args:
        keys, seed, stream: as `keyed_noise`.
        length: L, numbers per sample.

    Returns:
        (B, L) float32, at most 5.8 in size, on the device of the keys.
    """
    uniform = keyed_noise(keys, length + length % 2, seed, stream).double()
    radius = (-2 * torch.log1p(-uniform[:, 0::2])).sqrt()
    angle = 2 * math.pi * uniform[:, 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=2)  # (B, L / 2, 2)
    return pairs.flatten(1)[:, :length].float()
