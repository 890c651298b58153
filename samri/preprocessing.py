"""From a slice to the model's input, exactly as the checkpoint was trained.

Three profiles exist, since weights alone don't say which one they need:

- `samri`: min-max of the slice to uint8 always, longest side to S (Pillow's bilinear), mean and std, zero padding.
- `sam`: the same, but a uint8 image passes as it is (what `SamPredictor` does).
- `medsam`: percentiles of the volume to uint8, S x S ignoring the aspect (cubic spline), min-max to [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from samri.errors import BundleError, InputError
from samri.geometry import resized_shape
from samri.resampling import pillow_bilinear, spline_matrix

ProfileName = Literal["sam", "samri", "medsam"]
PROFILE_NAMES: tuple[ProfileName, ...] = get_args(ProfileName)

Intensity = Literal["minmax", "minmax-unless-uint8", "percentile"]
Resize = Literal["longest-side-bilinear", "square-spline"]
Normalize = Literal["mean-std", "minmax"]
Upscale = Literal["logits-via-padded-square", "probabilities-direct"]


@dataclass(frozen=True)
class Profile:
    """The numbers of one preprocessing profile, as they stand in a bundle's manifest.

    Attributes:
        name: `sam`, `samri` or `medsam`.
        intensity: How voxels become uint8.
        percentiles: Lower and upper percentile of the non-zero voxels, for `intensity="percentile"`.
        resize: How the uint8 image becomes S wide or high.
        normalize: How uint8 becomes the float input.
        mean: Subtracted from red, green and blue, for `normalize="mean-std"`.
        std: Divided by, likewise.
        upscale: How low-resolution logits come back to the image's size.
    """

    name: ProfileName
    intensity: Intensity
    percentiles: tuple[float, float]
    resize: Resize
    normalize: Normalize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    upscale: Upscale

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> Profile:
        """The profile named in `values`, if its numbers are the ones this version computes with.

        Raises:
            BundleError: An unknown profile, or numbers that differ; `source` names the file.
        """
        name = values.get("name")
        if not isinstance(name, str) or name not in _PROFILES:
            raise BundleError(
                f"{source}: unknown preprocessing profile {name!r}; this samri knows {', '.join(PROFILE_NAMES)}"
            )
        known = _PROFILES[name]
        differing = [key for key, value in known.to_json().items() if values.get(key) != value]
        if differing:
            raise BundleError(
                f"{source}: profile {name!r} differs from this version's in {', '.join(differing)}: "
                "use the samri that wrote it, or export again"
            )
        return known


PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""SAM's, of red, green and blue from 0 to 255: those of ImageNet."""

_PROFILES: dict[ProfileName, Profile] = {
    "samri": Profile(
        "samri",
        "minmax",
        (0.0, 100.0),
        "longest-side-bilinear",
        "mean-std",
        PIXEL_MEAN,
        PIXEL_STD,
        "logits-via-padded-square",
    ),
    "sam": Profile(
        "sam",
        "minmax-unless-uint8",
        (0.0, 100.0),
        "longest-side-bilinear",
        "mean-std",
        PIXEL_MEAN,
        PIXEL_STD,
        "logits-via-padded-square",
    ),
    "medsam": Profile(
        "medsam",
        "percentile",
        (0.5, 99.5),
        "square-spline",
        "minmax",
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        "probabilities-direct",
    ),
}


def profile(name: ProfileName) -> Profile:
    """The profile of that name."""
    return _PROFILES[name]


def unclear_profile(checkpoint: str | Path, *names: str | Path | None, option: str = "--profile ") -> str | None:
    """Why the profile of a checkpoint must be named, in one line; None where `samri` may be assumed.

    Weights don't tell which preprocessing they were trained with. A name with "medsam" in it is the only hint.

    Args:
        checkpoint: The file, as the line names it.
        names: Further paths and names that may hold the hint, such as the base of a decoder-only checkpoint.
        option: What stands before the profile's name in the way out.
    """
    if not any("medsam" in Path(name).name.lower() for name in (checkpoint, *names) if name is not None):
        return None
    return (
        f"{checkpoint} looks like MedSAM, whose preprocessing differs from SAM's, and the weights don't tell: "
        f"pass {option}medsam (or samri or sam, if it was trained that way)"
    )


def input_shape(shape: tuple[int, int], profile: Profile, image_size: int) -> tuple[int, int]:
    """(height, width) that an image of `shape` fills of the S x S model input; the rest is padding."""
    if profile.resize == "square-spline":
        return image_size, image_size
    return resized_shape(*shape, image_size)


def preprocess(
    image: npt.ArrayLike,
    profile: Profile,
    image_size: int,
    intensity_range: tuple[float, float] | None = None,
) -> npt.NDArray[np.float32]:
    """The model's input for one slice.

    Args:
        image: (H, W) gray or (H, W, 3) RGB, any real or boolean dtype.
        profile: The bundle's profile.
        image_size: S, the side of the model input in pixels.
        intensity_range: Lowest and highest intensity, mapped to 0 and 255 with values beyond them clipped. None
            takes what the profile says: the slice's own minimum and maximum, or its percentiles. For `medsam` pass
            `percentile_range(volume)`, since it was trained on percentiles of whole volumes. With (0, 255) a uint8
            image passes unchanged.

    Returns:
        (1, 3, S, S) float32.

    Raises:
        InputError: Not an image of that shape, no pixels, or NaN, infinite or complex values.
    """
    gray_or_rgb = to_uint8(image, profile, intensity_range)
    rgb = gray_or_rgb if gray_or_rgb.ndim == 3 else gray_or_rgb[:, :, None]  # One gray channel is computed once.
    height, width = input_shape(rgb.shape[:2], profile, image_size)
    if profile.resize == "square-spline":
        resized = _spline_resize(rgb, height, width)
    else:
        resized = pillow_bilinear(rgb, height, width)
    padded = np.zeros((1, 3, image_size, image_size), dtype=np.float32)
    filled = padded[0, :, :height, :width]
    if profile.normalize == "minmax":
        low, high = int(resized.min()), int(resized.max())
        filled[:] = np.moveaxis((resized.astype(np.float64) - low) / max(high - low, 1e-8), 2, 0)
    else:
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (profile.mean, profile.std))
        np.subtract(np.moveaxis(resized, 2, 0), mean, out=filled)
        filled /= std
    return padded


def to_uint8(
    image: npt.ArrayLike, profile: Profile, intensity_range: tuple[float, float] | None = None
) -> npt.NDArray[np.uint8]:
    """The slice in 256 gray levels, as the profile maps intensities; the shape stays. See `preprocess`."""
    pixels = checked_pixels(image)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.int8)
    if intensity_range is not None:
        intensity_range = _checked_range(intensity_range)
    unchanged = intensity_range == (0, 255) or (intensity_range is None and profile.intensity == "minmax-unless-uint8")
    if unchanged and pixels.dtype == np.uint8:
        return pixels
    if profile.intensity == "percentile":
        low, high = percentile_range(pixels, profile) if intensity_range is None else intensity_range
        # MedSAM truncates where SAM's tools round, and keeps the background at zero.
        scaled = _stretched(pixels, low, high)
        scaled[pixels == 0] = 0
        truncated: npt.NDArray[np.uint8] = scaled.astype(np.uint8)
        return truncated
    low, high = (pixels.min(), pixels.max()) if intensity_range is None else intensity_range
    rounded: npt.NDArray[np.uint8] = np.rint(_stretched(pixels, float(low), float(high))).astype(np.uint8)
    return rounded


def percentile_range(volume: npt.ArrayLike, profile: Profile = _PROFILES["medsam"]) -> tuple[float, float]:
    """The profile's lower and upper percentile of the non-zero voxels of a volume (any shape): `medsam`'s range.

    Raises:
        InputError: NaN or infinite voxels.
    """
    voxels = np.asarray(volume).ravel(order="K")
    voxels = voxels[voxels != 0].astype(np.float64)
    if voxels.size == 0:
        return 0.0, 0.0
    if not np.isfinite(voxels).all():
        raise InputError("the volume holds NaN or infinite voxels: replace them first (numpy.nan_to_num)")
    scale = _safe_scale(float(voxels.min()), float(voxels.max()))
    voxels *= scale
    low, high = (float(value) / scale for value in np.percentile(voxels, profile.percentiles))
    return low, high


def _checked_range(intensity_range: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in intensity_range)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("intensity_range is two numbers, the intensities mapped to black and white") from error
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("intensity_range is two finite numbers, without NaN or infinities")
    return low, high


def checked_pixels(image: npt.ArrayLike) -> npt.NDArray[Any]:
    """The image as an array, once it is known to be one.

    Raises:
        InputError: Not (H, W) or (H, W, 3), no pixels, or values that are not real and finite.
    """
    try:
        pixels = np.asarray(image)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError("an image is a regular array, (H, W) or (H, W, 3): pass one slice") from error
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InputError(
            f"an image is (H, W) or (H, W, 3), not {pixels.shape}: pass one slice, without an alpha channel"
        )
    if pixels.size == 0:
        raise InputError(f"an image of shape {pixels.shape} has no pixels")
    if pixels.dtype.kind not in "buif":
        raise InputError(f"an image of dtype {pixels.dtype} isn't real-valued: pass its magnitude")
    bad = int(pixels.size - np.isfinite(pixels).sum())
    if bad:
        raise InputError(f"the image holds {bad} NaN or infinite pixels: replace them first (numpy.nan_to_num)")
    return pixels


def _stretched(pixels: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.float64]:
    """`low`..`high` to 0..255 in float64, clipped; zeros where the range is empty (a constant image)."""
    values = pixels.astype(np.float64)
    if not high > low:
        return np.zeros_like(values)
    scale = _safe_scale(low, high)
    values, low, high = np.clip(values, low, high) * scale, low * scale, high * scale
    stretched: npt.NDArray[np.float64] = (values - low) / (high - low) * 255.0
    return stretched


def _safe_scale(low: float, high: float) -> float:
    """A factor that keeps `high - low` finite: 1, or a power of two, which rounds nothing, for enormous values."""
    return 1.0 if np.isfinite(float(high) - float(low)) else 0.25


def _spline_resize(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """(H, W, C) uint8 by cubic spline, clipped to the image's own range, truncated to uint8."""
    rows, columns = spline_matrix(image.shape[0], height), spline_matrix(image.shape[1], width)
    planes = [rows @ image[:, :, channel].astype(np.float64) @ columns.T for channel in range(image.shape[2])]
    values = np.clip(np.stack(planes, axis=2), image.min(), image.max())
    # A flat patch must not fall to the next lower gray level for a rounding error in its fifteenth digit.
    return (values + 1e-9).astype(np.uint8)
