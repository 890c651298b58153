"""Which image belongs to which label map, by their names: the layouts that datasets come in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samri.errors import InputError
from samri_training.prepare._bids import match_bids
from samri_training.slices import Split, match_slices, split_of
from samri_training.slices._layout import image_files, stem

Layout = Literal["img-seg", "nnunet", "bids", "pattern"]

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NO_MASK = "no mask belongs to it"
_CHANNEL = re.compile(r"(.+)_\d{4}")


@dataclass(frozen=True)
class SourcePair:
    """An image and its label map, before they are read.

    Attributes:
        case: Name of the volume in the dataset to be made; part of file names.
        patient: Whom it shows.
        image: 2-D, 3-D or 4-D.
        mask: In the same grid.
        tail: Name of the slice within its case, for a ready 2-D pair.
        split: Where the source has put it already.
        intensity_range: Of the volume that a ready 2-D pair was cut from, if that was recorded.
    """

    case: str
    patient: str
    image: Path
    mask: Path
    tail: str = ""
    split: Split | None = None
    intensity_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class LeftOut:
    """What of the source isn't in the dataset, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Sources:
    """What a folder holds.

    Attributes:
        layout: How its names were understood.
        pairs: Sorted by case.
        left_out: Images without a mask, and the like.
        without_image: Masks whose image is missing: a mistake.
    """

    layout: Layout
    pairs: list[SourcePair]
    left_out: list[LeftOut]
    without_image: list[Path]


def find_sources(
    folder: Path,
    *,
    pattern: tuple[str, str] | None = None,
    images: str | None = None,
    masks: str | None = None,
    patient: str | None = None,
) -> Sources:
    """Match images and masks below a folder.

    Args:
        folder: Of one dataset.
        pattern: Paths of image and mask below `folder` with placeholders such as `{case}`; None recognizes the layout.
        images: Consider only images whose path matches this glob, such as `*_T1w.nii.gz`.
        masks: The same for masks.
        patient: Regular expression whose first group, found in a case's name, is the patient.

    Raises:
        InputError: No pairs, or names that don't say which belong together.
    """
    wanted_image, wanted_mask = _globbed(images), _globbed(masks)
    layout: Layout = "pattern" if pattern is not None else _recognize(folder)
    if layout == "pattern":
        assert pattern is not None
        found = _match_pattern(folder, pattern, wanted_image, wanted_mask)
    elif layout == "nnunet":
        found = _match_nnunet(folder, wanted_image, wanted_mask)
    elif layout == "bids":
        matched, alone = match_bids(folder, wanted_image, wanted_mask)
        pairs = [SourcePair(stem(image), _bids_patient(image), image, mask) for image, mask in matched]
        found = Sources("bids", pairs, [], alone)
    else:
        found = _match_img_seg(folder, wanted_image, wanted_mask)
    if not found.pairs and not found.without_image:
        raise InputError(
            f"{folder} holds no pairs of image and mask whose names say so ({layout} layout): "
            "name them with --pattern 'images/{case}.nii.gz' 'masks/{case}.nii.gz'"
        )
    named = [_with_patient(pair, patient) for pair in found.pairs] if patient is not None else found.pairs
    _refuse_equal_names(named)
    named.sort(key=lambda pair: (pair.case, pair.tail))
    return Sources(found.layout, named, found.left_out, found.without_image)


def _recognize(folder: Path) -> Layout:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: check the path")
    if (folder / "imagesTr").is_dir() and (folder / "labelsTr").is_dir():
        return "nnunet"
    if (folder / "dataset_description.json").is_file() or any(path.is_dir() for path in folder.glob("sub-*")):
        return "bids"
    return "img-seg"


def _globbed(glob: str | None) -> Callable[[Path], bool]:
    return lambda path: glob is None or path.match(glob)


def _match_img_seg(folder: Path, wanted_image: Callable[[Path], bool], wanted_mask: Callable[[Path], bool]) -> Sources:
    pairs, without_mask, without_image = match_slices(folder)
    return Sources(
        "img-seg",
        [
            SourcePair(
                pair.case.replace("/", "_"),
                pair.patient,
                pair.image,
                pair.mask,
                pair.tail,
                pair.split,
                pair.intensity_range,
            )
            for pair in pairs
            if wanted_image(pair.image) and wanted_mask(pair.mask)
        ],
        [LeftOut(str(image), _NO_MASK) for image in filter(wanted_image, without_mask)],
        list(filter(wanted_mask, without_image)),
    )


def _match_nnunet(folder: Path, wanted_image: Callable[[Path], bool], wanted_mask: Callable[[Path], bool]) -> Sources:
    """`imagesTr/<case>_0000.nii.gz` with `labelsTr/<case>.nii.gz`; the Decathlon's, without a channel, too.

    Where there are labels of the test images, `imagesTs` and `labelsTs` become the testing split.
    """
    pairs: list[SourcePair] = []
    left_out: list[LeftOut] = []
    without_image: list[Path] = []
    for part, split in (("Tr", None), ("Ts", "testing")):
        if not (folder / f"images{part}").is_dir():
            continue
        if not (folder / f"labels{part}").is_dir():
            left_out.append(LeftOut(str(folder / f"images{part}"), f"there is no labels{part}"))
            continue
        masks = _by_name(filter(wanted_mask, image_files(folder / f"labels{part}")), stem)
        channels: dict[str, list[Path]] = {}
        for image in filter(wanted_image, image_files(folder / f"images{part}")):
            channel = _CHANNEL.fullmatch(stem(image))
            case = channel[1] if channel is not None and stem(image) not in masks else stem(image)
            channels.setdefault(case, []).append(image)
        for case, found in channels.items():
            if case not in masks:
                left_out += [LeftOut(str(image), _NO_MASK) for image in found]
                continue
            # One image a case: the channel that comes first. The others are there for whoever asks by --images.
            image, *others = found
            left_out += [LeftOut(str(other), "another channel: ask for it by --images") for other in others]
            pairs.append(SourcePair(case, case, image, masks[case], split="testing" if split else None))
        without_image += [mask for case, mask in masks.items() if case not in channels]
    return Sources("nnunet", pairs, left_out, without_image)


def _match_pattern(
    folder: Path,
    pattern: tuple[str, str],
    wanted_image: Callable[[Path], bool],
    wanted_mask: Callable[[Path], bool],
) -> Sources:
    names = [list(dict.fromkeys(_PLACEHOLDER.findall(template))) for template in pattern]
    expressions = [_compiled(template) for template in pattern]
    images: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    for file in image_files(folder):
        for expression, files, wanted in zip(expressions, (images, masks), (wanted_image, wanted_mask), strict=True):
            match = expression.fullmatch(file.relative_to(folder).as_posix())
            if match is not None and wanted(file):
                files[tuple(match[name] for name in names[0])] = file
    pairs = []
    for key in images.keys() & masks.keys():
        values = dict(zip(names[0], key, strict=True))
        case = "_".join(key)
        if images[key] == masks[key]:
            raise InputError(f"{images[key]} is both image and mask by --pattern: make the two patterns differ")
        split = split_of(images[key].relative_to(folder).as_posix())
        pairs.append(SourcePair(case, values.get("patient", case), images[key], masks[key], split=split))
    # `{case}.nii.gz` also fits the masks `{case}_seg.nii.gz` beside it.
    paired = {file for pair in pairs for file in (pair.image, pair.mask)}
    alone = [sorted({file for file in files.values() if file not in paired}) for files in (images, masks)]
    return Sources("pattern", pairs, [LeftOut(str(image), _NO_MASK) for image in alone[0]], alone[1])


def check_pattern(pattern: tuple[str, str]) -> str | None:
    """What is wrong with a `--pattern`, if anything is."""
    image, mask = ({*_PLACEHOLDER.findall(template)} for template in pattern)
    if not all(name.isidentifier() for name in image | mask):
        return "a placeholder is a word that begins with a letter, such as {case}"
    if not image:
        return "a pattern needs a placeholder such as {case}, where the names of two cases differ"
    if image != mask:
        return f"both patterns need the same placeholders: {sorted(image)} and {sorted(mask)} differ"
    return None


def _compiled(template: str) -> re.Pattern[str]:
    """`{name}` stands for any characters but a slash; named twice, for the same ones."""
    parts, seen = [], set()
    for index, part in enumerate(_PLACEHOLDER.split(template)):
        if index % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>[^/]+?)")
            seen.add(part)
    return re.compile("".join(parts))


def _by_name(files: Iterable[Path], name: Callable[[Path], str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for file in files:
        if name(file) in named:
            raise InputError(f"{named[name(file)]} and {file} have the same name: remove one of them")
        named[name(file)] = file
    return named


def _bids_patient(image: Path) -> str:
    return image.name.split("_")[0]


def _with_patient(pair: SourcePair, expression: str) -> SourcePair:
    match = re.search(expression, pair.case)
    if match is None or not match[1]:
        raise InputError(f"--patient {expression!r} finds no patient in the name {pair.case} of {pair.image}")
    return SourcePair(pair.case, match[1], pair.image, pair.mask, pair.tail, pair.split, pair.intensity_range)


def _refuse_equal_names(pairs: list[SourcePair]) -> None:
    counts = Counter(_written_name(pair) for pair in pairs)
    for name, count in counts.items():
        if count > 1:
            same = [pair.image for pair in pairs if _written_name(pair) == name]
            raise InputError(f"{same[0]} and {same[1]} would both be written as {name}: rename one of them")


def _written_name(pair: SourcePair) -> str:
    return f"{pair.case}_{pair.tail}" if pair.tail else pair.case
