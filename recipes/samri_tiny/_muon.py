"""Muon: momentum whose matrices are made orthogonal before they become a step (Jordan et al., 2024).

A gradient's few large singular values drown the many small ones; with all of them equal a transformer learns in about
half the steps that AdamW takes. PyTorch's own class (`torch.optim.Muon`) computes in bfloat16 always, which takes ten
times as long on processors without such arithmetic; this one computes in the weights' own type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Coefficients of the quintic Newton-Schulz iteration, as published: quick, and good to about 0.3 of a singular value.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_RMS = 0.2  # Of an update's entries, as AdamW's usually are, so that both take learning rates of one kind.


class Muon(torch.optim.Optimizer):
    """For weight matrices of hidden layers; embeddings, norms and biases belong to AdamW.

    Args:
        stacks: Each (rows, columns) matrix, and of how many matrices of rows / n rows it is the stack: three for a
            projection to query, key and value in one.
        lr: Learning rate; an update's entries have a root mean square of `0.2 * lr`.
        weight_decay: Taken from a weight in each step, times `lr`.
        momentum: Nesterov momentum.
    """

    def __init__(self, stacks: Mapping[Tensor, int], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        groups = [{"params": [weight], "stack": count} for weight, count in stacks.items()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient; matrices of a shape together, which takes a GPU fewer launches."""
        assert closure is None
        alike: dict[tuple[int, int], list[_Move]] = defaultdict(list)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    matrices = self._direction(weight, weight.grad, group)
                    alike[matrices.shape[1], matrices.shape[2]].append(_Move(weight, matrices, group))
        for shape, moves in alike.items():
            updates = orthogonal(torch.cat([move.matrices for move in moves])) * (_RMS * max(shape) ** 0.5)
            for move, update in zip(moves, updates.split([len(move.matrices) for move in moves]), strict=True):
                move.weight.mul_(1 - move.group["lr"] * move.group["weight_decay"])
                move.weight.add_(update.view_as(move.weight), alpha=-move.group["lr"])

    def _direction(self, weight: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> Tensor:
        """(stack, m, n): the gradient with its momentum, as separate matrices."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean = state["momentum"]
        mean.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(mean, group["momentum"]).view(group["stack"], -1, weight.shape[1])


class _Move(NamedTuple):
    weight: Tensor
    matrices: Tensor
    group: Mapping[str, Any]


def orthogonal(matrices: Tensor) -> Tensor:
    """(..., m, n) -> the same with all singular values near 1 (0.7 to 1.2, but for those that are nearly 0)."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = matrices if wide else matrices.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x if wide else x.mT
