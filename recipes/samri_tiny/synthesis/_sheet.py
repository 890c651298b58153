"""A contact sheet: many drawn slices on one picture, with a target outlined on each. Look at it before training."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

_OUTLINE = (255, 160, 0)


def contact_sheet(
    pictures: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]], columns: int = 8, tile: int = 192
) -> npt.NDArray[np.uint8]:
    """One RGB picture, (rows * tile, columns * tile, 3) uint8, of (H, W) images with the outline of a mask on each."""
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * tile, columns * tile, 3), np.uint8)
    for number, (image, mask) in enumerate(pictures):
        scale = tile / max(image.shape)
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        shown = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), cv2.COLOR_GRAY2RGB)
        if mask is not None:
            large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(shown, outlines, -1, _OUTLINE, 1)
        top, left = number // columns * tile, number % columns * tile
        sheet[top : top + size[1], left : left + size[0]] = shown
    return sheet
