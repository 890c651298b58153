"""From one state of a session to the next: what each edit does. The same edits give the same masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, PromptError
from samri.geometry import SliceView
from samri.io import Scan
from samri.preprocessing import percentile_range
from samri.prompts import FOREGROUND, Prompt
from samri_runtime._embedding import Embedding
from samri_runtime._predictor import Predictor
from samri_runtime.segment import choose_view
from samri_runtime.session._edits import (
    Add,
    Box,
    Choose,
    Clear,
    Edit,
    Lasso,
    Point,
    Propagate,
    Remove,
    Scribble,
    SlicePosition,
    Start,
)
from samri_runtime.session._state import SessionObject, SliceKey, SliceMask, SlicePrompts, State
from samri_runtime.session._strokes import points_in_lasso, points_on_scribble
from samri_runtime.volume import SliceStack, Target, propagate
from samri_runtime.volume._shapes import bounding_box

_LEAST = np.finfo(np.float32).tiny
"""Logit of what a label map says: whatever the model finds wins over it."""

Labels = npt.NDArray[Any]


class Replay:
    """Applies edits to states of one scan. The embedding of the current slice stays in memory.

    Args:
        scan: The scan.
        predictor: The model.
        direction: Any position in the direction along which a label map is cut.
        label_maps: SHA-256 to the label map, in the scan's grid.
    """

    def __init__(
        self, scan: Scan, predictor: Predictor, direction: SlicePosition, label_maps: Mapping[str, Labels]
    ) -> None:
        self.scan, self.predictor = scan, predictor
        self.notes: dict[str, None] = {}
        self.encoded = 0
        self._direction, self._label_maps = direction, label_maps
        self._embedding: tuple[SliceKey, Embedding] | None = None

    def apply(self, state: State, edit: Edit, on_slice: Callable[[int], object] | None = None) -> State:
        """The state after an edit.

        Raises:
            SamriError: The edit makes no sense in this state, or the model failed.
        """
        match edit:
            case Add():
                return state.with_object(state.new(edit.object, edit.color))
            case Box() | Point() | Lasso() | Scribble() | Choose():
                return self._prompted(state, edit)
            case Propagate():
                return self._propagated(state, edit, on_slice)
            case Start():
                return self._started(state, edit)
            case Remove():
                return state.without(state.get(edit.object).name)
            case Clear():
                return state.with_object(self._cleared(state.get(edit.object), edit.at))
        raise InputError(f"there is no edit {edit.kind!r}")

    def view(self, at: SlicePosition) -> SliceView:
        """The slice at a position.

        Raises:
            InputError: There is no such slice.
        """
        return choose_view(self.scan, at.slice, at.axis, at.plane)

    @functools.cached_property
    def _window(self) -> tuple[float, float] | None:
        profile = self.predictor.manifest.profile
        return percentile_range(self.scan.voxels, profile) if profile.intensity == "percentile" else None

    def _prompted(self, state: State, edit: Box | Point | Lasso | Scribble | Choose) -> State:
        view = self.view(edit.at)
        if isinstance(edit, Choose):
            known = state.get(edit.object)
            if edit.at not in known.prompts:
                raise PromptError(
                    f"{edit.object!r} has no prompt on {edit.at}, so there are no candidates to choose from"
                )
        else:
            known = state.objects.get(edit.object) or state.new(edit.object)
        prompts = known.prompts.get(edit.at) or self._of_mask(known, view)
        prompts = _added(prompts, edit, view.shape)
        return state.with_object(self._decoded(known, edit.at, view, prompts))

    def _of_mask(self, known: SessionObject, view: SliceView) -> SlicePrompts:
        """What the first prompt on a slice goes with: the box of the mask that is there, if there is one."""
        mask = known.slice_mask(view)
        return SlicePrompts(box=tuple(bounding_box(mask).tolist())) if mask.any() else SlicePrompts()

    def _decoded(
        self, known: SessionObject, at: SlicePosition, view: SliceView, prompts: SlicePrompts
    ) -> SessionObject:
        prompt, notes = prompts.prompt(view.shape).validate(view.shape)  # Before the encoder, which may take a minute.
        prediction = self.predictor.predict(
            self._encoded(view), prompts=[prompt], multimask=prompts.candidate is not None
        )
        self.notes |= dict.fromkeys(notes)
        logits, score = next(prediction.each_logits()), prediction.scores[0]
        if prompts.candidate is not None:
            logits, score = logits[prompts.candidate - 1], score[prompts.candidate - 1]
        return known.with_masks(
            [SliceMask.of(view, logits > 0, logits)],
            prompts={**known.prompts, at: prompts},
            scores={**known.scores, at: float(score)},
            weak=tuple(place for place in known.weak if place != at),
        )

    def _encoded(self, view: SliceView) -> Embedding:
        key = view.axis, view.index
        if self._embedding is None or self._embedding[0] != key:
            self._embedding = None  # Its memory first.
            embedding = self.predictor.encode(view.extract(self.scan.voxels), intensity_range=self._window)
            self.encoded += not embedding.cached
            self.notes |= dict.fromkeys(embedding.notes)
            self._embedding = key, embedding
        return self._embedding[1]

    def _propagated(self, state: State, edit: Propagate, on_slice: Callable[[int], object] | None) -> State:
        known = [state.get(name) for name in edit.objects]
        direction = _direction_of(known)
        stack = SliceStack(self.scan, self.view(direction))
        targets = [Target(each.name, _keyframes(each, stack)) for each in known]
        low, high = edit.slices or (0, len(stack) - 1)
        found: list[dict[int, SliceMask]] = [{} for _ in known]

        def keep(target: int, number: int, answer: Any) -> None:
            found[target - 1][number] = SliceMask.of(stack.at(number), answer.mask, answer.logits)

        result = propagate(self.predictor, stack, targets, slices=edit.slices, on_slice=on_slice, on_answer=keep)
        self.encoded += result.encoded
        for each, masks, followed in zip(known, found, result.objects, strict=True):
            for at, prompts in each.prompts.items():
                if at.slice is not None and low <= at.slice <= high and prompts.candidate is not None:
                    view = self.view(at)  # The candidate that a person chose there.
                    masks[at.slice] = each.masks[view.axis, view.index]
            everywhere = [masks.get(number) or SliceMask.empty(stack.at(number)) for number in range(low, high + 1)]
            outside = {
                at: score for at, score in each.scores.items() if at.slice is None or not low <= at.slice <= high
            }
            inside = {replace(direction, slice=number): each.score for number, each in followed.slices.items()}
            weak = tuple(replace(direction, slice=number) for number, each in followed.slices.items() if each.weak)
            changed = each.with_masks(
                everywhere,
                scores={**outside, **inside},
                weak=tuple(sorted(weak, key=_number)),
                ends=dict(followed.ends),
            )
            state = state.with_object(changed)
        return state

    def _started(self, state: State, edit: Start) -> State:
        labels = self._label_maps.get(edit.sha256)
        if labels is None:
            raise InputError(
                f"the session starts from {edit.file} (SHA-256 {edit.sha256[:12]}...), which was not found: put it "
                "beside the session or the scan"
            )
        for label, name in edit.names:
            state = state.with_object(self._from_label(state.new(name, label=label), labels == label))
        return state

    def _from_label(self, new: SessionObject, mask: npt.NDArray[np.bool_]) -> SessionObject:
        if self._direction.slice is None:
            positions = [self._direction]
        else:
            across = self.view(self._direction).axis
            positions = [replace(self._direction, slice=number) for number in range(self.scan.grid[across or 0])]
        views = [(view, view.extract(mask)) for view in map(self.view, positions)]
        return new.with_masks(SliceMask.of(view, inside, inside * _LEAST) for view, inside in views if inside.any())

    def _cleared(self, known: SessionObject, at: SlicePosition | None) -> SessionObject:
        if at is None:
            return SessionObject(known.name, known.label, known.color)
        view = self.view(at)
        return known.with_masks(
            [SliceMask.empty(view)],
            prompts={place: each for place, each in known.prompts.items() if place != at},
            scores={place: each for place, each in known.scores.items() if place != at},
            weak=tuple(place for place in known.weak if place != at),
        )


def _added(
    prompts: SlicePrompts, edit: Box | Point | Lasso | Scribble | Choose, shape: tuple[int, int]
) -> SlicePrompts:
    match edit:
        case Box():
            return replace(prompts, box=edit.box, drawn=True)
        case Choose():
            return replace(prompts, candidate=edit.candidate)
        case Point():
            points = np.array([edit.point])
        case Lasso():
            points = points_in_lasso(edit.polygon, shape)
            if edit.label == FOREGROUND and not prompts:
                # An outline tells how far the object reaches, which points alone don't.
                vertices = np.array(edit.polygon)
                prompts = replace(prompts, box=(*vertices.min(axis=0).tolist(), *vertices.max(axis=0).tolist()))
        case Scribble():
            points = points_on_scribble(edit.line)
    return replace(prompts, points=(*prompts.points, *((float(x), float(y), edit.label) for x, y in points)))


def _direction_of(objects: list[SessionObject]) -> SlicePosition:
    """A position in the one direction in which all objects were prompted."""
    for each in objects:
        if not each.prompts:
            raise PromptError(f"object {each.name!r} has no prompt: give it a box or a point on some slice")
    positions = [at for each in objects for at in each.prompts]
    if len({(at.axis, at.plane) for at in positions}) > 1:
        raise PromptError(
            f"{', '.join(each.name for each in objects)}: prompts on slices of different planes or axes can't be "
            "propagated together: clear those of one plane"
        )
    return positions[0]


def _keyframes(known: SessionObject, stack: SliceStack) -> dict[int, Prompt]:
    return {at.slice or 0: prompts.prompt(stack.shape) for at, prompts in known.prompts.items()}


def _number(at: SlicePosition) -> int:
    return at.slice or 0
