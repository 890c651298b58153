"""Pairs of image and label map in a folder, by the dataset layouts that are known, or by a pattern."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samri.errors import InputError
from samri_training.prepare._bids import match_bids
from samri_training.prepare._labels import Labels, bids_table_of, read_bids_table, read_dataset_json
from samri_training.prepare._structures import holds_structures, labels_of, match_structures
from samri_training.slices import Split, match_slices, split_of
from samri_training.slices._layout import image_files, stem, unread, unread_below
from samri_training.slices._splits import split_of_folders

Layout = Literal["img-seg", "nnunet", "bids", "structures", "pattern"]

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
        intensity_range: Percentiles of the volume that a ready 2-D pair was cut from, if recorded.
        labels: What the dataset says that its labels mean.
        structures: (label, file) of each structure, where each has a file of its own; `mask` is then their folder.
    """

    case: str
    patient: str
    image: Path
    mask: Path
    tail: str = ""
    split: Split | None = None
    intensity_range: tuple[float, float] | None = None
    labels: Labels | None = None
    structures: tuple[tuple[int, Path], ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """What of the source isn't in the dataset, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Sources:
    """Pairs of image and mask in a folder, and files left out.

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
        folder: Folder of one dataset.
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
        sources = _match_pattern(folder, pattern, wanted_image, wanted_mask)
    elif layout == "nnunet":
        sources = _match_nnunet(folder, wanted_image, wanted_mask)
    elif layout == "bids":
        sources = _match_bids(folder, wanted_image, wanted_mask)
    elif layout == "structures":
        sources = _match_structures(folder, wanted_image, wanted_mask)
    else:
        sources = _match_img_seg(folder, wanted_image, wanted_mask)
    if not sources.pairs and not sources.without_image:
        if (unread := unread_below(folder)) is not None:
            raise InputError(f"{folder} holds no pairs of image and mask: {unread}")
        raise InputError(
            f"{folder} holds no pairs of image and mask with matching names ({layout} layout): "
            "name them with --pattern 'images/{case}.nii.gz' 'masks/{case}.nii.gz'"
        )
    named = [_with_patient(pair, patient) for pair in sources.pairs] if patient is not None else sources.pairs
    _refuse_equal_names(named)
    named.sort(key=lambda pair: (pair.case, pair.tail))
    return Sources(sources.layout, named, sources.left_out, sources.without_image)


def _recognize(folder: Path) -> Layout:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: check the path")
    if (folder / "imagesTr").is_dir() and (folder / "labelsTr").is_dir():
        return "nnunet"
    if (folder / "dataset_description.json").is_file() or any(path.is_dir() for path in folder.glob("sub-*")):
        return "bids"
    return "structures" if holds_structures(folder) else "img-seg"


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
    description = folder / "dataset.json"
    labels = read_dataset_json(description) if description.exists() else None
    if labels is not None and labels.file_ending is not None and (wrong := unread(labels.file_ending)) is not None:
        raise InputError(f"{description} says that the images are {wrong}")
    names = dict(labels.channels) if labels is not None else {}
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
        for case, files_of_case in channels.items():
            if case not in masks:
                left_out += [LeftOut(str(image), _NO_MASK) for image in files_of_case]
                continue
            # One image per case: the first channel. --images chooses another.
            image, *others = files_of_case
            for other in others:
                name = names.get(stem(other)[-4:])
                which = f"another channel{f' ({name})' if name else ''}"
                left_out.append(LeftOut(str(other), f"{which}: ask for it by --images"))
            pairs.append(SourcePair(case, case, image, masks[case], split="testing" if split else None, labels=labels))
        without_image += [mask for case, mask in masks.items() if case not in channels]
    return Sources("nnunet", pairs, left_out, without_image)


def _match_bids(folder: Path, wanted_image: Callable[[Path], bool], wanted_mask: Callable[[Path], bool]) -> Sources:
    matched, alone = match_bids(folder, wanted_image, wanted_mask)
    tables = {mask: bids_table_of(mask, folder) for _, mask in matched}
    labels = {table: read_bids_table(table) for table in set(tables.values()) if table is not None}
    pairs = []
    for image, mask in matched:
        table, patient = tables[mask], image.name.split("_")[0]
        pairs.append(SourcePair(stem(image), patient, image, mask, labels=None if table is None else labels[table]))
    return Sources("bids", pairs, [], alone)


def _match_structures(
    folder: Path, wanted_image: Callable[[Path], bool], wanted_mask: Callable[[Path], bool]
) -> Sources:
    matched, without_mask, without_image = match_structures(folder, wanted_image, wanted_mask)
    numbers = labels_of([files for _, files in matched])
    labels = Labels(folder, tuple((number, name) for name, number in numbers.items()))
    pairs = []
    for image, files in matched:
        below = image.parent.relative_to(folder)
        case = "_".join(below.parts) or stem(image)
        structures = tuple((numbers[stem(file)], file) for file in files)
        split = split_of_folders(below.parts)
        pairs.append(SourcePair(case, case, image, files[0].parent, split=split, labels=labels, structures=structures))
    return Sources("structures", pairs, [LeftOut(str(image), _NO_MASK) for image in without_mask], without_image)


def _match_pattern(
    folder: Path,
    pattern: tuple[str, str],
    wanted_image: Callable[[Path], bool],
    wanted_mask: Callable[[Path], bool],
) -> Sources:
    names = [placeholders(template) for template in pattern]
    expressions = [compiled(template) for template in pattern]
    images: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    for file in image_files(folder):
        for expression, files, accepts in zip(expressions, (images, masks), (wanted_image, wanted_mask), strict=True):
            match = expression.fullmatch(file.relative_to(folder).as_posix())
            if match is not None and accepts(file):
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


def _by_name(files: Iterable[Path], name: Callable[[Path], str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for file in files:
        if name(file) in named:
            raise InputError(f"{named[name(file)]} and {file} have the same name: remove one of them")
        named[name(file)] = file
    return named


def _with_patient(pair: SourcePair, expression: str) -> SourcePair:
    match = re.search(expression, pair.case)
    if match is None or not match[1]:
        raise InputError(f"--patient {expression!r} finds no patient in the name {pair.case} of {pair.image}")
    return dataclasses.replace(pair, patient=match[1])


def _refuse_equal_names(pairs: list[SourcePair]) -> None:
    counts = Counter(_written_name(pair) for pair in pairs)
    for name, count in counts.items():
        if count > 1:
            same = [pair.image for pair in pairs if _written_name(pair) == name]
            raise InputError(f"{same[0]} and {same[1]} would both be written as {name}: rename one of them")


def _written_name(pair: SourcePair) -> str:
    return f"{pair.case}_{pair.tail}" if pair.tail else pair.case


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def placeholders(template: str) -> list[str]:
    """The names in it, each once, in their order."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(template)))


def check_pattern(pattern: tuple[str, str]) -> str | None:
    """The error in a `--pattern`, if there is one."""
    image, mask = ({*_PLACEHOLDER.findall(template)} for template in pattern)
    if not all(name.isidentifier() for name in image | mask):
        return "a placeholder is a word that begins with a letter, such as {case}"
    if not image:
        return "a pattern needs a placeholder such as {case}, where the names of two cases differ"
    if image != mask:
        return f"both patterns need the same placeholders: {sorted(image)} and {sorted(mask)} differ"
    return None


def compiled(template: str) -> re.Pattern[str]:
    """`{name}` stands for any characters but a slash; named twice, for the same ones."""
    parts, seen = [], set()
    for index, part in enumerate(_PLACEHOLDER.split(template)):
        if index % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>[^/]+?)")
            seen.add(part)
    return re.compile("".join(parts))
