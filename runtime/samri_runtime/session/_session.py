"""A scan, a model and a list of edits, which can be undone, saved, continued and replayed."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, PromptError
from samri.geometry import Plane, single_axis
from samri.io import Scan, read_scan
from samri.prompts import BACKGROUND, FOREGROUND
from samri_runtime import models
from samri_runtime._predictor import Predictor
from samri_runtime._provenance import describe_model, describe_scan, describe_versions
from samri_runtime.cache import EmbeddingCache
from samri_runtime.segment import DEFAULT_AXIS, choose_view
from samri_runtime.session import _edits as edits
from samri_runtime.session._document import (
    Document,
    check_new,
    check_replaceable,
    check_scan,
    differences,
    read_document,
    read_session_scan,
)
from samri_runtime.session._edits import Edit, SlicePosition
from samri_runtime.session._history import History
from samri_runtime.session._label_maps import find_label_map, read_label_map
from samri_runtime.session._replay import Labels, Replay
from samri_runtime.session._state import SessionObject

Position = int | SlicePosition | None  # A number in the session's direction, any slice, or the only one.


class Session:
    """Named objects on a scan, made and corrected by edits: boxes, points, propagation, undo.

    Each method that edits adds one edit to the list, and computes only what the edit changes. Undo and redo move along
    the list; a new edit drops those that were undone. An edit that makes no sense raises and changes nothing. The
    first edit that names an object adds it. Slices are numbered along one direction unless an edit names another.

    Args:
        scan: From `samri.read_scan`, or the path of a file that it reads.
        model: From `samri.load_model`; or a bundle's folder or a model's name, which is then opened with the user's
            embedding cache.
        plane: Anatomical plane of the slices; shown as radiologists do.
        axis: Array axis of the slices, instead of a plane; the last one by default.
        frame: Frame of a 4-D file, when `scan` is a path.
        autosave: A new file, written after every edit; a process that is killed loses at most the last edit.

    Attributes:
        scan: The scan.
        predictor: The model.
        loaded_sha256: Of the file that the session was loaded from, or None.

    Raises:
        InputError: The scan can't be read or cut so.
        OutputError: `autosave` is there already. Edits raise it where it can't be written; they are in effect then.
        SamriError: As `samri.load_model`.

    Example:
        >>> import samri
        >>> with samri.Session("scan.nii.gz", "samri-tiny", plane="axial") as session:
        ...     session.box("brain", 10, [12, 8, 40, 30])
        ...     session.negative_point("brain", 10, [14, 9])
        ...     session.undo()
        ...     labels = session.label_map()
        ...     session.save("work.json")
        True
        >>> labels.shape == session.scan.grid, [each.name for each in session.objects], len(session.edits)
        (True, ['brain'], 1)
    """

    def __init__(
        self,
        scan: Scan | str | os.PathLike[str],
        model: Predictor | str | Path = models.DEFAULT,
        *,
        plane: Plane | None = None,
        axis: int | None = None,
        frame: int | None = None,
        autosave: str | os.PathLike[str] | None = None,
    ) -> None:
        path = None if autosave is None else check_new(Path(autosave))
        if not isinstance(scan, Scan):
            scan = read_scan(scan, frame)
        elif frame is not None:
            raise InputError("frame chooses what is read from a file: leave it out with a scan that is read already")
        self._open(scan, model, _direction(scan, plane, axis), path)

    def _open(self, scan: Scan, model: Predictor | str | Path, direction: SlicePosition, autosave: Path | None) -> None:
        self._own = not isinstance(model, Predictor)
        self.scan = scan
        self.predictor = model if isinstance(model, Predictor) else Predictor(model, cache=EmbeddingCache())
        self._direction, self._autosave = direction, autosave
        self._label_maps: dict[str, Labels] = {}
        self._replay = Replay(scan, self.predictor, direction, self._label_maps)
        self._history = History(self._replay.apply)
        self._created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._load_notes: tuple[str, ...] = ()
        self.loaded_sha256: str | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        scan: Scan | str | os.PathLike[str] | None = None,
        model: Predictor | str | Path | None = None,
        *,
        autosave: bool = False,
        on_edit: Callable[[int, int], object] | None = None,
    ) -> Session:
        """Replay a saved session, to continue it. On the same provider the masks are the same, bit for bit.

        Args:
            path: The file.
            scan: The scan, or its path; None for the file of the recorded name beside `path`.
            model: As for the class; None for the recorded model, if it comes with SAMRI.
            autosave: Write `path` after every further edit.
            on_edit: Called before each edit is replayed, with its number from 1 and how many there are.

        Raises:
            InputError: The file is no session, is damaged or of a newer version, is of another scan, or a label map
                that it starts from isn't beside it or the scan.
            SamriError: As the class, and as the edits.
        """
        path = Path(path)
        document = read_document(path)
        if not isinstance(scan, Scan):
            place = path.parent / Path(document.scan["name"]).name if scan is None else Path(scan)
            scan = read_session_scan(path, place)
        check_scan(document, scan, path)
        session = cls.__new__(cls)
        if model is None and document.model["name"] != models.DEFAULT:
            raise InputError(f"{path} was made with the model {document.model['name']!r}: give its bundle as model")
        session._open(scan, model or models.DEFAULT, document.direction, path if autosave else None)
        try:
            session._resume(document, path, on_edit)
        except BaseException:
            session.close()
            raise
        return session

    def _resume(self, document: Document, path: Path, on_edit: Callable[[int, int], object] | None) -> None:
        for edit in document.edits:
            if isinstance(edit, edits.Start) and edit.sha256 not in self._label_maps:
                self._label_maps[edit.sha256] = find_label_map(edit, [path.parent, self.scan.path.parent], self.scan)
        number = 0
        try:
            for number in self._history.replay(document.edits, document.applied):
                if on_edit is not None:
                    on_edit(number, document.applied)
        except (InputError, PromptError) as error:
            raise InputError(f"{path}, edit {number}: {error}") from error
        self._created, self.loaded_sha256 = document.created, document.sha256
        self._load_notes = tuple(differences(document, self._document()))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the model, if this session opened it."""
        if self._own:
            self.predictor.close()

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits that are in effect, in order."""
        return tuple(self._history.edits[: self._history.applied])

    @property
    def objects(self) -> tuple[SessionObject, ...]:
        """The objects, in the order in which they were added."""
        return tuple(self._history.state.objects.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user: on the scan, the model, and what differs from when the session was saved."""
        every = (*self.scan.notes, *self.predictor.notes, *self._load_notes, *self._replay.notes)
        return tuple(dict.fromkeys(every))

    @property
    def encoded(self) -> int:
        """How often the encoder ran, rather than the cache or memory giving the embedding."""
        return self._replay.encoded

    def label_map(self) -> npt.NDArray[Any]:
        """uint8 or uint16 in the scan's grid: each object's label, 0 elsewhere.

        Where objects overlap, a voxel belongs to the one with the highest logit; a label map that the session started
        from yields to what the model found.
        """
        return self._history.state.label_map(self.scan.grid)

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """One object, also where others cover it: bool in the scan's grid.

        Raises:
            InputError: There is no such object.
        """
        return self._history.state.get(name).logits(self.scan.grid) > 0

    def add(self, name: str, color: str | None = None) -> None:
        """Add an object without prompts, to choose its color (`#rrggbb`).

        Raises:
            InputError: There is one of that name, or the color is none.
        """
        self.edit(edits.Add(name, color))

    def box(self, name: str, slice: Position, box: npt.ArrayLike) -> None:
        """Prompt an object with a box, in place of an earlier one on that slice.

        Args:
            name: The object.
            slice: Its number; None where there is one only; a `SlicePosition` for one in another direction.
            box: XYXY in pixels of the slice as shown.

        Raises:
            PromptError: The box is reversed, without area, or outside the slice.
            InputError: There is no such slice.
        """
        self.edit(edits.Box(name, self._at(slice), box))  # type: ignore[arg-type]

    def point(self, name: str, slice: Position, point: npt.ArrayLike) -> None:
        """Add a point that belongs to an object.

        On a slice that has a mask but no prompt, from propagation or a label map, it corrects that mask.

        Args:
            name: The object.
            slice: As for `box`.
            point: (x, y) in pixels of the slice as shown.

        Raises:
            PromptError: The point is outside the slice.
            InputError: There is no such slice.
        """
        self.edit(edits.Point(name, self._at(slice), point, FOREGROUND))  # type: ignore[arg-type]

    def negative_point(self, name: str, slice: Position, point: npt.ArrayLike) -> None:
        """Add a point that doesn't belong to an object; otherwise as `point`."""
        self.edit(edits.Point(name, self._at(slice), point, BACKGROUND))  # type: ignore[arg-type]

    def lasso(self, name: str, slice: Position, polygon: npt.ArrayLike, *, inside: bool = True) -> None:
        """Add a closed outline of vertices (N, 2), used as up to five points inside it; otherwise as `point`.

        Where it is the first prompt on a slice without a mask, its bounding box is used too. With `inside` false, its
        points don't belong to the object.
        """
        label = FOREGROUND if inside else BACKGROUND
        self.edit(edits.Lasso(name, self._at(slice), polygon, label))  # type: ignore[arg-type]

    def scribble(self, name: str, slice: Position, line: npt.ArrayLike, *, inside: bool = True) -> None:
        """Add a line of vertices (N, 2), used as up to eight points along it; otherwise as `lasso`."""
        label = FOREGROUND if inside else BACKGROUND
        self.edit(edits.Scribble(name, self._at(slice), line, label))  # type: ignore[arg-type]

    def choose(self, name: str, slice: Position, candidate: int | None) -> None:
        """Choose one of the model's three candidates on a slice: 1, 2 or 3, or None for its single mask.

        Raises:
            PromptError: The object has no prompt there.
            InputError: There is no such object, slice or candidate.
        """
        self.edit(edits.Choose(name, self._at(slice), candidate))

    def propagate(
        self,
        names: str | Sequence[str],
        slices: tuple[int, int] | None = None,
        *,
        on_slice: Callable[[int], object] | None = None,
    ) -> None:
        """Follow objects from the slices that they were prompted on, through the volume or a range of slices.

        What is found replaces the objects on all slices of the range.

        Args:
            names: One object or several.
            slices: First and last slice that may change; None for the whole volume.
            on_slice: Called with the number of each slice that is done.

        Raises:
            PromptError: An object has no prompt, its prompts are on different planes, or the range misses one.
            InputError: There is no such object, or the scan is one slice.
        """
        self.edit(edits.Propagate((names,) if isinstance(names, str) else tuple(names), slices), on_slice)

    def start(self, path: str | os.PathLike[str], names: Mapping[int, str] | None = None) -> None:
        """Add the objects of a label map, such as an earlier result; they keep their labels where these are free.

        The session holds the file's name and SHA-256, so keep the file beside the session or the scan.

        Args:
            path: NIfTI in the grid of the scan.
            names: Label to name, of the objects to take; None for all of them, called `label 1` and so on.

        Raises:
            InputError: It isn't such a label map, a label isn't in it, or an object has the name already.
        """
        labels, sha256 = read_label_map(Path(path), self.scan)
        present = np.unique(labels[labels > 0]).tolist()
        chosen = {label: f"label {label}" for label in present} if names is None else dict(names)
        for label in chosen:
            if label not in present:
                raise InputError(f"{path} has no label {label}; it has {', '.join(map(str, present[:20])) or 'none'}")
        self._label_maps[sha256] = labels
        self.edit(edits.Start(Path(path).name, sha256, tuple(chosen.items())))

    def remove(self, name: str) -> None:
        """Take an object away. Others keep their labels.

        Raises:
            InputError: There is no such object.
        """
        self.edit(edits.Remove(name))

    def clear(self, name: str, slice: Position = None) -> None:
        """Take away an object's prompts and masks, on one slice or, without one, on all.

        Raises:
            InputError: There is no such object or slice.
        """
        self.edit(edits.Clear(name, None if slice is None else self._at(slice)))

    def edit(self, edit: Edit, on_slice: Callable[[int], object] | None = None) -> None:
        """Apply one edit; those that were undone are dropped.

        Raises:
            SamriError: As the method of its kind; then nothing has changed.
        """
        self._history.add(edit, functools.partial(self._replay.apply, on_slice=on_slice))
        self._save_changes()

    def undo(self) -> bool:
        """Take the last edit back; False if there is none."""
        return self._history.undo() and self._save_changes()

    def redo(self) -> bool:
        """Apply the edit that was undone last; False if there is none."""
        return self._history.redo() and self._save_changes()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session; an earlier session there is replaced.

        Raises:
            OutputError: The file can't be written, or another file is there.
        """
        check_replaceable(Path(path))
        self._document().write(Path(path))

    def _save_changes(self) -> bool:
        if self._autosave is not None:
            self._document().write(self._autosave)
        return True

    def _at(self, slice: Position) -> SlicePosition:
        if isinstance(slice, SlicePosition):
            return slice
        if self._direction.slice is None:
            if slice not in (None, 0):
                raise InputError(f"slice {slice} doesn't exist: {self.scan.path} is one slice")
            return self._direction
        if slice is None:
            raise InputError(f"{self.scan.path} is a volume: give the number of a slice")
        return replace(self._direction, slice=slice)

    def _document(self) -> Document:
        return Document(
            scan={name: value for name, value in describe_scan(self.scan).items() if name not in ("affine", "dtype")},
            model=describe_model(self.predictor),
            provider={"requested": self.predictor.requested_provider, "ran": self.predictor.providers},
            versions=describe_versions(),
            direction=self._direction,
            edits=tuple(self._history.edits),
            applied=self._history.applied,
            created=self._created,
        )


def _direction(scan: Scan, plane: Plane | None, axis: int | None) -> SlicePosition:
    if plane is None and axis is None:
        if scan.kind == "raster" or len(scan.grid) == 2 or single_axis(scan.grid) is not None:
            return SlicePosition()
        axis = DEFAULT_AXIS
    choose_view(scan, 0, axis, plane)
    return SlicePosition(0, axis, plane)
