"""Solvers of dx/dt = v(x, t) from t = 0 (noise) to t = 1 (images), with equal steps."""

from collections.abc import Callable

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]  # x (B, ...) and t to dx/dt (B, ...)


def euler(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Return x at t = 1; the error is of first order in 1 / steps, and each step asks for one velocity."""
    for i in range(steps):
        x = x + velocity(x, i / steps) / steps
    return x


def heun(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Return x at t = 1; the error is of second order in 1 / steps, and each step asks for two velocities."""
    for i in range(steps):
        first = velocity(x, i / steps)
        second = velocity(x + first / steps, (i + 1) / steps)
        x = x + (first + second) / (2 * steps)
    return x


SAMPLERS: dict[str, Callable[[Velocity, Tensor, int], Tensor]] = {"euler": euler, "heun": heun}
