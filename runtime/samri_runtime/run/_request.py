"""The options of `samri-run` as prompts, a device and a cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

from samri.errors import BundleError, InputError, ProviderError
from samri.prompts import BACKGROUND, FOREGROUND, Prompt
from samri_runtime import providers
from samri_runtime.cache import DEFAULT_MAX_BYTES, EmbeddingCache, StoredPrecision
from samri_runtime.providers import Provider
from samri_runtime.segment import check_names

XY = tuple[float, float]
XYXY = tuple[float, float, float, float]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MAX_DIGITS = 18  # Of --cache-size.
_BACKBONES = {"vit_b": "vit_b", "vit_l": "vit_l", "vit_h": "vit_h", "samri": "vit_b"}

MODEL_TYPES = tuple(_BACKBONES)


def build_prompts(
    boxes: Sequence[XYXY], points: Sequence[XY], negative_points: Sequence[XY], *, keyframed: bool = False
) -> list[Prompt]:
    """One prompt per box; or one prompt of all points, with the box if there is one; none where `keyframed` suffices.

    Raises:
        click.UsageError: There is no prompt, or there are points that could belong to any of several boxes.
        PromptError: A number isn't finite.
    """
    if not (boxes or points or negative_points):
        if keyframed:
            return []
        raise click.UsageError("nothing to segment: give at least one --box X1 Y1 X2 Y2 or --point X Y.")
    if not (points or negative_points):
        return [Prompt.of(box=box) for box in boxes]
    if len(boxes) > 1:
        raise click.UsageError("points can't be combined with several boxes: run once per box with points.")
    labels = [FOREGROUND] * len(points) + [BACKGROUND] * len(negative_points)
    return [Prompt.of([*points, *negative_points], labels, boxes[0] if boxes else None)]


def build_keyframes(
    prompts: Sequence[Prompt], index: int | None, keyframes: Sequence[tuple[int, float, float, float, float]]
) -> list[dict[int, Prompt]]:
    """Slice number to prompt for each object: the prompts are on slice `index`, each `--keyframe` names its own slice.

    Raises:
        click.UsageError: There is no prompt, no slice for it, several objects with keyframes, or a slice twice.
        PromptError: A number isn't finite.
    """
    if prompts and index is None:
        raise click.UsageError("name the slice of --box and --point with --slice K.")
    if keyframes and len(prompts) > 1:
        raise click.UsageError("--keyframe is for one object: run once for each, with --label.")
    if not keyframes:
        return [{index: prompt} for prompt in prompts if index is not None]
    boxes: dict[int, Prompt] = dict(zip([index] if index is not None else [], prompts, strict=False))
    for number, *box in keyframes:
        if number in boxes:
            raise click.UsageError(f"slice {number} has two prompts: give one --keyframe or --box per slice.")
        boxes[number] = Prompt.of(box=box)
    return [boxes]


def require_names(names: Sequence[str], objects: int) -> None:
    """One name for each object, or none at all.

    Raises:
        click.UsageError: As `check_names`.
    """
    try:
        check_names(names, objects)
    except InputError as error:
        raise click.UsageError(f"{error}.") from error


def choose_provider(
    provider: Provider | None, device: str | None, options: dict[str, str]
) -> tuple[Provider, dict[str, str]]:
    """Provider and its options; a PyTorch device `cuda:1` is provider `cuda` with `device_id` 1.

    Raises:
        click.UsageError: There is no such device, or both are given.
    """
    if device is None:
        return provider or "auto", options
    if provider is not None:
        raise click.UsageError("give --provider or --device, not both.")
    try:
        named, device_options = providers.provider_of_device(device)
    except ProviderError as error:
        raise click.UsageError(f"--device: {error}.") from error
    return named, {**device_options, **options}


def check_model_type(model_type: str, backbone: str, model: str) -> None:
    """Check that the backbone named on the command line is the bundle's.

    Raises:
        BundleError: It is another one.
    """
    if _BACKBONES[model_type] != backbone:
        raise BundleError(
            f"{model} holds a {backbone}, not --model-type {model_type}: leave the option out, or name another bundle"
        )


def byte_size_of(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Callback of `--cache-size`: a number of bytes from `500MB`, `4GB` or a plain number."""
    if text is None:
        return None
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?B?)", text.strip(), re.IGNORECASE | re.ASCII)
    if matched is None or len(matched[1]) > _MAX_DIGITS:
        raise click.BadParameter(f"{text!r} is not a size such as 500MB or 4GB.")
    unit = matched[2].upper()
    return int(float(matched[1]) * _UNITS[unit if unit in _UNITS else f"{unit}B"])


def choose_cache(
    folder: Path | None, no_cache: bool, max_bytes: int | None, precision: StoredPrecision | None
) -> EmbeddingCache | None:
    """The embedding cache, or None with `--no-cache`.

    Raises:
        click.UsageError: `--no-cache` together with an option of the cache.
    """
    if no_cache:
        if (folder, max_bytes, precision) != (None, None, None):
            raise click.UsageError("--no-cache can't be combined with --cache-dir, --cache-size or --cache-dtype.")
        return None
    size = DEFAULT_MAX_BYTES if max_bytes is None else max_bytes
    return EmbeddingCache(folder, precision=precision or "fp32", max_bytes=size)
