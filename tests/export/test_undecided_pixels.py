"""Pixels so near to 0 that either side is right don't decide over an export; all others do."""

from __future__ import annotations

import numpy as np

from samri_export._reference import DecoderOutput
from samri_export._report import TOLERANCES, VerificationReport, compare, informative_dice

TOLERANCE = TOLERANCES["fp32"].logits


def small_mask(largest: float = 10.0) -> np.ndarray:
    """(1, 1, 200, 200) logits with a mask of 361 pixels, as fine-tuning leaves them: just enough for a Dice."""
    logits = np.full((1, 1, 200, 200), -largest, dtype=np.float32)
    logits[0, 0, 50:69, 40:59] = largest
    return logits


def answer(at_size: np.ndarray) -> DecoderOutput:
    return DecoderOutput(at_size[:, :, ::4, ::4], np.zeros(at_size.shape[:2], np.float32), at_size)


def failures(expected: np.ndarray, given: np.ndarray) -> list[str]:
    case = compare(answer(expected), answer(given), picture="p", case="c", graph="decoder", precision="fp32")
    return VerificationReport("full", (), (case,)).failures()


def test_a_pixel_within_rounding_of_zero_does_not_fail_an_export() -> None:
    expected, given = small_mask(), small_mask()
    expected[0, 0, 69, 50], given[0, 0, 69, 50] = 1e-6, -1e-6
    assert informative_dice(answer(expected), answer(given)) < 0.999
    assert failures(expected, given) == []


def test_a_pixel_beyond_the_tolerance_does() -> None:
    expected, given = small_mask(), small_mask()
    expected[0, 0, 69, 50], given[0, 0, 69, 50] = 0.5, -0.5
    assert any("Dice of the masks is 0.998" in line for line in failures(expected, given))


def test_the_tolerance_is_a_fraction_of_each_masks_own_range() -> None:
    # Beside a mask with logits of thousands, all of a mask with logits around 1 would be within their joint tolerance.
    loud, quiet = small_mask(4000), small_mask(1)
    flipped = quiet.copy()
    flipped[0, 0, 69, 50] *= -1
    expected, given = np.concatenate([loud, quiet], axis=1), np.concatenate([loud, flipped], axis=1)
    assert any("Dice of the masks" in line for line in failures(expected, given))
