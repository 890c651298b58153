from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou

from samri.metrics import dice, iou


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_overlap_is_monais(share: float) -> None:
    rng = np.random.default_rng(7)
    first, second = rng.random((2, 40, 50)) < share
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (first, second)]
    assert dice(first, second) == pytest.approx(float(compute_dice(*pair)))
    assert iou(first, second) == pytest.approx(float(compute_iou(*pair)))


def test_empty_masks_agree_with_each_other_and_with_nothing_else() -> None:
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert dice(empty, empty) == iou(empty, empty) == 1
    assert dice(empty, full) == iou(full, empty) == 0


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        dice(np.zeros((1, 4), bool), np.zeros((3, 4), bool))
