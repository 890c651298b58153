"""Which optimiser moves which weights of the small SAM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from samri_tiny._muon import Muon


def optimizers(
    parameters: Mapping[str, Parameter], *, lr: float, matrix_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW and Muon: Muon for the matrices of linear layers, AdamW for all else.

    Args:
        parameters: The model's parameters, by name.
        lr: AdamW's.
        matrix_lr: Muon's.
        weight_decay: Weight decay of both optimizers; norms, biases, positions and tokens have none.
    """
    matrices = {name: weight for name, weight in parameters.items() if weight.ndim == 2 and not _is_place(name)}
    others = {name: weight for name, weight in parameters.items() if name not in matrices}
    stacks: dict[Tensor, int] = {weight: 3 if ".qkv." in name else 1 for name, weight in matrices.items()}
    return [
        torch.optim.AdamW(_groups(others, weight_decay), lr=lr, betas=(0.9, 0.99)),
        Muon(stacks, lr=matrix_lr, weight_decay=weight_decay),
    ]


def _groups(parameters: Mapping[str, Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Convolutions decay; biases, norms, positions and tokens don't."""
    decaying = {name for name, weight in parameters.items() if weight.ndim > 1 and not _is_place(name)}
    return [
        {"params": [parameters[name] for name in parameters if name in decaying], "weight_decay": weight_decay},
        {"params": [parameters[name] for name in parameters if name not in decaying], "weight_decay": 0.0},
    ]


def _is_place(name: str) -> bool:
    """Rows that are looked up rather than multiplied: positions, tokens, the kinds of points."""
    return any(part in name for part in ("pos", "iou_token", "mask_tokens", "point_embed", "mask_embed"))
