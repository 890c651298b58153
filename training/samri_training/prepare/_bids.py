"""Images and label maps of a BIDS dataset with its derivatives.

A label map carries the entities of the image that it was drawn on (`sub-`, `ses-`, `acq-`, ...) and some of its own,
but loses the image's suffix: https://bids-specification.readthedocs.io/en/stable/derivatives/imaging.html. Tools that
name a label map after the whole image (`sub-01_T2w_label-lesion_seg`) are understood too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from samri.errors import InputError
from samri_training.slices._layout import image_files, stem

_MASK = re.compile(r"dseg|mask|seg|.*(seg|lesion|mask)-.+")
_NEITHER = ("probseg", "xfm", "warp")
_OF_THE_MASK = {"desc", "label", "seg", "atlas", "res", "den"}
_NATIVE = {"orig", "individual"}


def match_bids(
    folder: Path, wanted_image: Callable[[Path], bool], wanted_mask: Callable[[Path], bool]
) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """(image, mask) by their entities, and masks without an image.

    Of several images that fit, the one beside the mask is taken, then one of the same derivative, then the raw one.

    Raises:
        InputError: A mask that fits several images, or an image with several masks: their names don't decide.
    """
    images: dict[str, list[Path]] = {}
    masks = []
    for file in image_files(folder):
        suffix = stem(file).split("_")[-1]
        if not file.name.startswith("sub-") or "sourcedata" in file.relative_to(folder).parts or suffix in _NEITHER:
            continue
        if _MASK.fullmatch(suffix):
            if wanted_mask(file):
                masks.append(file)
        elif wanted_image(file):
            images.setdefault(_subject(file), []).append(file)
    matched: dict[Path, Path] = {}
    alone = []
    for mask in masks:
        image = _image_of(mask, images.get(_subject(mask), []), folder)
        if image is None:
            alone.append(mask)
        elif image in matched:
            raise InputError(
                f"{image} has several masks, {matched[image]} and {mask}: choose with --masks, such as "
                f"--masks '*_{stem(mask).partition('_')[2]}*'"
            )
        else:
            matched[image] = mask
    return sorted(matched.items()), alone


def _image_of(mask: Path, images: list[Path], folder: Path) -> Path | None:
    named_after = [image for image in images if stem(mask).startswith(f"{stem(image)}_")]
    if named_after:
        longest = max(len(stem(image)) for image in named_after)
        candidates = [image for image in named_after if len(stem(image)) == longest]
    else:
        candidates = [image for image in images if _entities(image) == _entities(mask)]
    if not candidates:
        return None
    distances = [_distance(image, mask, folder) for image in candidates]
    nearest = [image for image, distance in zip(candidates, distances, strict=True) if distance == min(distances)]
    if len(nearest) > 1:
        raise InputError(
            f"{mask} fits several images, {nearest[0].name} and {nearest[1].name}: choose with --images, such as "
            f"--images '*_{nearest[0].name.split('_')[-1]}'"
        )
    return nearest[0]


def _subject(file: Path) -> str:
    return file.name.split("_")[0]


def _entities(file: Path) -> frozenset[tuple[str, str]]:
    """The entities that a mask shares with its image."""
    pairs = [part.partition("-") for part in stem(file).split("_")[:-1]]
    return frozenset(
        (key, value) for key, _, value in pairs if key not in _OF_THE_MASK and not (key == "space" and value in _NATIVE)
    )


def _distance(image: Path, mask: Path, folder: Path) -> int:
    """0 in the mask's folder, 1 in its derivative, 2 in the raw data, 3 in another derivative."""
    if image.parent == mask.parent:
        return 0
    roots = [_pipeline(file.relative_to(folder)) for file in (image, mask)]
    if roots[0] == roots[1]:
        return 1
    return 3 if "derivatives" in roots[0] else 2


def _pipeline(path: Path) -> tuple[str, ...]:
    """The folders above the subject's."""
    parts = path.parts[:-1]
    subject = next((index for index, part in enumerate(parts) if part.startswith("sub-")), len(parts))
    return parts[:subject]
