"""What a person does to a session, one edit at a time: plain values that JSON can hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, get_args

from samri.errors import InputError, PromptError, printable
from samri.geometry import Plane
from samri.prompts import BACKGROUND, FOREGROUND

CANDIDATES = (1, 2, 3)
"""Numbers of the model's candidate masks."""

_LONGEST_NAME = 200
_MOST_VERTICES = 10_000
_FARTHEST = 1e9  # Pixels: products of coordinates stay numbers.
_MOST_OBJECTS = 65_535  # What a label map can hold.

Vertices = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SlicePosition:
    """Which slice of a scan is meant. The only slice of a scan that has one is `SlicePosition()`.

    Attributes:
        slice: Index along the axis, or in RAS order along the plane's normal.
        axis: Array axis that the slice is cut across.
        plane: Anatomical plane, instead of an axis.

    Raises:
        InputError: No such axis or plane, both of them, or a slice without one.
    """

    slice: int | None = None
    axis: int | None = None
    plane: Plane | None = None

    def __post_init__(self) -> None:
        named = (self.axis is not None) + (self.plane is not None)
        if named != (self.slice is not None):
            raise InputError("a position is a slice and its axis or plane, or nothing for the only slice")
        if self.slice is not None:
            object.__setattr__(self, "slice", _whole(self.slice, "slice"))
        if self.axis is not None:
            object.__setattr__(self, "axis", _whole(self.axis, "axis"))
            if self.axis > 2:
                raise InputError(f"axis {self.axis} doesn't exist: choose 0, 1 or 2")
        if self.plane is not None and self.plane not in get_args(Plane):
            raise InputError(f"no plane {self.plane!r}: choose {', '.join(get_args(Plane))}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        if self.slice is None:
            return "the slice"
        return f"slice {self.slice} of {'axis ' + str(self.axis) if self.plane is None else 'plane ' + self.plane}"


@dataclass(frozen=True)
class Edit:
    """One edit; the subclasses are the kinds. Coordinates are (x, y) in pixels of the slice as shown.

    Where a kind has them, `object` is the name of the object, and `at` the slice.

    Raises:
        PromptError: Coordinates that are no finite numbers, or too few or too many.
        InputError: Another value that makes no sense.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _CHECKS[field.name](getattr(self, field.name)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: `edit`, the kind, and the attributes."""
        values: dict[str, Any] = {"edit": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = value.to_json() if isinstance(value, SlicePosition) else _plain(value)
        return values


@dataclass(frozen=True)
class Add(Edit):
    """A new object without prompts. Other edits add the objects that they name, in the next free color.

    Attributes:
        object: Its name.
        color: `#rrggbb`; None for the next color of the palette.
    """

    kind: ClassVar[str] = "add"
    object: str
    color: str | None = None


@dataclass(frozen=True)
class Box(Edit):
    """A box around an object on one slice, in place of an earlier one there.

    Attributes:
        box: XYXY.
    """

    kind: ClassVar[str] = "box"
    object: str
    at: SlicePosition
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Point(Edit):
    """A point inside or outside an object, beside the prompts that the slice has already.

    Attributes:
        point: (x, y).
        label: 1 for a point that belongs to the object, 0 for one that doesn't.
    """

    kind: ClassVar[str] = "point"
    object: str
    at: SlicePosition
    point: tuple[float, float]
    label: int = FOREGROUND


@dataclass(frozen=True)
class Lasso(Edit):
    """A closed outline, used as points inside it.

    Attributes:
        polygon: (N, 2) vertices, at least three; the last is joined to the first.
        label: 1 for a region that belongs to the object, 0 for one that doesn't.
    """

    kind: ClassVar[str] = "lasso"
    object: str
    at: SlicePosition
    polygon: Vertices
    label: int = FOREGROUND


@dataclass(frozen=True)
class Scribble(Edit):
    """A line drawn by hand, used as points along it.

    Attributes:
        line: (N, 2) vertices, at least one.
        label: 1 for a line inside the object, 0 for one outside.
    """

    kind: ClassVar[str] = "scribble"
    object: str
    at: SlicePosition
    line: Vertices
    label: int = FOREGROUND


@dataclass(frozen=True)
class Choose(Edit):
    """Choice among the model's candidate masks on one slice.

    Attributes:
        candidate: 1, 2 or 3; None for the model's single mask again.
    """

    kind: ClassVar[str] = "choose"
    object: str
    at: SlicePosition
    candidate: int | None


@dataclass(frozen=True)
class Propagate(Edit):
    """Objects followed from the slices that they were prompted on.

    Attributes:
        objects: Their names; those that are followed together share the encoder's work.
        slices: First and last slice that may change; None for the whole volume.
    """

    kind: ClassVar[str] = "propagate"
    objects: tuple[str, ...]
    slices: tuple[int, int] | None = None


@dataclass(frozen=True)
class Start(Edit):
    """Objects from a label map in the grid of the scan.

    Attributes:
        file: Name of the label map, without folders.
        sha256: Of its bytes, in hexadecimal digits.
        names: (label, name) of each object.
    """

    kind: ClassVar[str] = "start"
    file: str
    sha256: str
    names: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Remove(Edit):
    """An object taken away, with its prompts and masks.

    Attributes:
        object: Its name.
    """

    kind: ClassVar[str] = "remove"
    object: str


@dataclass(frozen=True)
class Clear(Edit):
    """An object's prompts and masks taken away; the object stays.

    Attributes:
        object: Its name.
        at: The slice; None for all of them.
    """

    kind: ClassVar[str] = "clear"
    object: str
    at: SlicePosition | None = None


KINDS: Mapping[str, type[Edit]] = {
    each.kind: each for each in (Add, Box, Point, Lasso, Scribble, Choose, Propagate, Start, Remove, Clear)
}


def edit_from_json(values: Any) -> Edit:
    """The edit that `Edit.to_json` described.

    Raises:
        SamriError: It is none, or one of a later version.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("edit"), str):
        raise InputError("an edit is an object with the key 'edit'")
    kind = KINDS.get(values["edit"])
    if kind is None:
        raise InputError(f"there is no edit {printable(values['edit'], 40)!r} in this version of SAMRI")
    given, known = {name: value for name, value in values.items() if name != "edit"}, {f.name for f in fields(kind)}
    if given.keys() != known:
        wrong = ", ".join(sorted(printable(name, 40) for name in given.keys() ^ known))
        raise InputError(f"an edit {kind.kind!r} has other keys ({wrong}) than this version of SAMRI knows")
    return kind(**given)


def check_name(name: Any) -> str:
    """The name of an object.

    Raises:
        InputError: It is empty, not printable, or very long.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise InputError(f"the name of an object is 1 to {_LONGEST_NAME} printable characters, not {_shown(name)}")
    return name


def _color(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or re.fullmatch("#[0-9a-fA-F]{6}", value) is None):
        raise InputError(f"a color is six digits such as #e69f00, not {_shown(value)}")
    return None if value is None else value.lower()


def _position(value: Any) -> SlicePosition:
    if isinstance(value, SlicePosition):
        return value
    if not isinstance(value, Mapping) or not value.keys() <= {"slice", "axis", "plane"}:
        raise InputError(f"a position is a slice and its axis or plane, not {_shown(value)}")
    return SlicePosition(**value)


def _numbers(value: Any, count: int, what: str) -> tuple[float, ...]:
    """Finite numbers; numpy's are accepted and become Python's."""
    try:
        numbers = [each if type(each) is int else float(each) for each in value]
        if any(isinstance(each, (bool, str)) for each in value):
            raise TypeError
        finite = all(math.isfinite(each) and abs(each) <= _FARTHEST for each in numbers)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{what} is {count} finite numbers up to 1e9, not {_shown(value)}") from error
    if len(numbers) != count or not finite:
        raise PromptError(f"{what} is {count} finite numbers up to 1e9, not {_shown(value)}")
    return tuple(float(each) for each in numbers)


def _vertices(least: int, what: str) -> Callable[[Any], Vertices]:
    def check(value: Any) -> Vertices:
        try:
            rows = list(value)
        except TypeError as error:
            raise PromptError(f"{what} is a list of x and y, not {_shown(value)}") from error
        if not least <= len(rows) <= _MOST_VERTICES:
            raise PromptError(f"{what} has {least} to {_MOST_VERTICES} vertices, not {len(rows)}")
        return tuple((x, y) for x, y in (_numbers(row, 2, f"a vertex of {what}") for row in rows))

    return check


def _whole(value: Any, what: str) -> int:
    try:
        if isinstance(value, (bool, str)) or int(value) != value or value < 0:
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} is a whole number from 0, not {_shown(value)}") from error


def _label(value: Any) -> int:
    if isinstance(value, (bool, str)) or value not in (FOREGROUND, BACKGROUND):
        raise PromptError(f"a label is 1 (belongs to the object) or 0 (doesn't), not {_shown(value)}")
    return int(value)


def _candidate(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, (bool, str)) or value not in CANDIDATES:
        raise InputError(f"the candidates are 1, 2 and 3, not {_shown(value)}")
    return int(value)


def _range(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(f"a range is the first and the last slice, not {_shown(value)}")
    return _whole(value[0], "the first slice"), _whole(value[1], "the last slice")


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InputError("name at least one object to follow")
    return tuple(dict.fromkeys(check_name(name) for name in value))


def _file(value: Any) -> str:
    if not isinstance(value, str) or value in ("", ".", "..") or set(value) & set("/\\\0") or not value.isprintable():
        raise InputError(f"the name of a label map holds no folders, unlike {_shown(value)}")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or re.fullmatch("[0-9a-f]{64}", value) is None:
        raise InputError(f"a SHA-256 is 64 hexadecimal digits, not {_shown(value)}")
    return value


def _named_labels(value: Any) -> tuple[tuple[int, str], ...]:
    try:
        pairs = [(_whole(label, "a label"), check_name(name)) for label, name in value]
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the names of a label map are pairs of label and name") from error
    if not all(1 <= label <= _MOST_OBJECTS for label, _ in pairs):
        raise InputError(f"labels go from 1 to {_MOST_OBJECTS}")
    for column in (0, 1):
        if len({pair[column] for pair in pairs}) < len(pairs):
            raise InputError("a label map has each label and each name once")
    return tuple(pairs)


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return printable(repr(value), 80)


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "object": check_name,
    "color": _color,
    "at": lambda value: None if value is None else _position(value),
    "box": lambda value: _numbers(value, 4, "a box"),
    "point": lambda value: _numbers(value, 2, "a point"),
    "label": _label,
    "polygon": _vertices(3, "a lasso"),
    "line": _vertices(1, "a scribble"),
    "candidate": _candidate,
    "objects": _names,
    "slices": _range,
    "file": _file,
    "sha256": _digest,
    "names": _named_labels,
}
