"""An exponential moving average of the trained weights, for who wants a steadier checkpoint than the last step's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class MovingAverage:
    """Follows `parameters` with `decay`; quicker in the first steps, so that the start is forgotten."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.updates = 0
        self.weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for name, weight in self.weights.items():
            weight.lerp_(self._parameters[name], 1 - decay)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Go on where another run's average stood."""
        self.updates = updates
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts, the model has the averaged weights."""
        with torch.no_grad():
            own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
            self._swap(self.weights)
        try:
            yield
        finally:
            with torch.no_grad():
                self._swap(own)

    def _swap(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
