"""Follow objects from the slices they were prompted on through the volume."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import PromptError
from samri.preprocessing import percentile_range
from samri.prompts import Prompt
from samri_runtime._embedding import Embedding
from samri_runtime._predictor import Predictor
from samri_runtime.volume._ahead import EmbeddingsAhead
from samri_runtime.volume._rule import RULE, Answer, Question, Rule, Source
from samri_runtime.volume._shapes import bounding_box, overlap, touching
from samri_runtime.volume._stack import SliceStack


@dataclass(frozen=True, eq=False)
class Target:
    """One object, and the slices on which somebody prompted it.

    Attributes:
        name: What it is called.
        keyframes: Slice number to prompt, in pixels of that slice as shown.

    Raises:
        PromptError: No keyframe.
    """

    name: str
    keyframes: Mapping[int, Prompt]

    def __post_init__(self) -> None:
        if not self.keyframes:
            raise PromptError(f"object {self.name!r} has no prompt: give it a box or a point on some slice")


@dataclass(frozen=True)
class SliceFinding:
    """What was found of one object on one slice.

    Attributes:
        number: The slice.
        source: Prompted by a person, by interpolation between two keyframes, or by the neighboring slice.
        score: The model's own estimate of the IoU.
        agreement: Dice with the neighbor it was prompted from; None on a keyframe.
        pixels: Size of the mask.
        weak: Score or agreement is low: look at this slice.
    """

    number: int
    source: Source
    score: float
    agreement: float | None
    pixels: int
    weak: bool


@dataclass
class FollowedObject:
    """One object through the volume.

    Attributes:
        name: What it is called.
        slices: By slice number.
        ends: Why it stopped below and above: (reason at the low end, reason at the high end).
    """

    name: str
    slices: dict[int, SliceFinding] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Propagation:
    """Objects 1 to N in a volume.

    Attributes:
        labels: In the scan's grid, 0 for background; uint8, or uint16 for more than 255 objects.
        objects: One for each target, in order.
        intensity_range: What was mapped to black and white, where the profile takes that from the volume.
        encoded: How many slices the encoder ran on; the others' embeddings came from the cache.
        embedding: Of the first keyframe: what the provenance says of embeddings.
        notes: What was clipped, and what the cache had to say.
    """

    labels: npt.NDArray[Any]
    objects: tuple[FollowedObject, ...]
    intensity_range: tuple[float, float] | None
    encoded: int
    embedding: Embedding
    notes: tuple[str, ...] = ()


def propagate(
    predictor: Predictor,
    stack: SliceStack,
    targets: Sequence[Target],
    *,
    slices: tuple[int, int] | None = None,
    rule: Rule = RULE,
    on_slice: Callable[[int], object] | None = None,
    on_answer: Callable[[int, int, Answer], object] | None = None,
) -> Propagation:
    """Segment each target on its keyframes, between them, and beyond them until it ends.

    Objects that wait for the same slice are decoded in one batch; where two overlap, the higher logit wins. The two
    directions take turns, so that slices are done from the prompted one outward.

    Args:
        predictor: The model. With a cache, slices that were encoded before are not encoded again.
        stack: The slices.
        targets: The objects.
        slices: First and last slice that may be segmented; None for the whole volume.
        rule: How a slice is prompted from its neighbor, and where an object ends.
        on_slice: Called with the number of each slice that is done.
        on_answer: Called with the place of the target from 1, the slice, and what is kept there, instead of drawing it.

    Raises:
        PromptError: No target, two of one name, a keyframe outside `slices`, or a prompt that does not fit its slice.
        SamriError: As `Predictor.encode` and `Predictor.predict`.
    """
    bounds = _bounds(stack, targets, slices)
    labels = _LabelVolume(stack, len(targets))
    followers = [
        _Follower(target, stack, bounds, rule, functools.partial(on_answer or labels.draw, index))
        for index, target in enumerate(targets, start=1)
    ]
    with _Decoder(predictor, stack) as decoder:
        keyframes = sorted({number for target in targets for number in target.keyframes})
        for place, number in enumerate(keyframes):
            here = [follower for follower in followers if number in follower.target.keyframes]
            asked = [Question(number, "prompt", follower.target.keyframes[number]) for follower in here]
            answers = decoder.ask(asked, keyframes[place + 1 : place + 2])
            for follower, question, answer in zip(here, asked, answers, strict=True):
                follower.keep(question, answer)
            if on_slice is not None:
                on_slice(number)
        sweeps = [_Sweep(1, followers), _Sweep(-1, followers)]
        while any(sweep.asking for sweep in sweeps):
            for sweep, other in (sweeps, sweeps[::-1]):
                if sweep.asking:
                    number = sweep.advance(decoder, [other.next] if other.asking else [])
                    if on_slice is not None:
                        on_slice(number)
    return Propagation(
        labels.volume,
        tuple(follower.found for follower in followers),
        decoder.window,
        decoder.encoded,
        decoder.first_embedding,
        tuple(dict.fromkeys(decoder.notes)),
    )


class _Decoder:
    """Questions on one slice, answered in one or two batches; the next slices are encoded meanwhile."""

    def __init__(self, predictor: Predictor, stack: SliceStack) -> None:
        profile = predictor.manifest.profile
        self._predictor, self._stack = predictor, stack
        self.window = percentile_range(stack.scan.voxels, profile) if profile.intensity == "percentile" else None
        self.encoded = 0
        self.notes: list[str] = []
        self._first: Embedding | None = None
        self._ahead = EmbeddingsAhead(self._encode)

    def __enter__(self) -> _Decoder:
        self._ahead.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ahead.__exit__(*error)

    @property
    def first_embedding(self) -> Embedding:
        """Of the slice that was asked about first, without its features, which only take memory."""
        assert self._first is not None
        return self._first

    def ask(self, questions: Sequence[Question], following: Iterable[int]) -> list[Answer]:
        """Answers in the order of the questions, all about one slice.

        Args:
            questions: One for each object that waits for this slice.
            following: Slices that will be asked about for certain; they are encoded while this one is decoded.
        """
        number = questions[0].number
        embedding = self._ahead.get(number, following)
        self._first = self._first or replace(embedding, features=embedding.features[:, :0])
        self.notes += embedding.notes
        answers: dict[int, Answer] = {}
        for with_logits in (False, True):
            places = [i for i, question in enumerate(questions) if (question.logits is not None) is with_logits]
            if not places:
                continue
            logits = [questions[place].logits for place in places]
            prediction = self._predictor.predict(
                embedding,
                prompts=[questions[place].prompt for place in places],
                mask_input=np.stack(logits) if with_logits else None,  # type: ignore[arg-type]
            )
            self.notes += [note for note in prediction.notes if questions[places[0]].source == "prompt"]
            for row, (place, full) in enumerate(zip(places, prediction.each_logits(), strict=True)):
                low_res, score = prediction.low_res_logits[row], float(prediction.scores[row])
                answers[place] = Answer(full > 0, full, low_res, score)
        return [answers[place] for place in range(len(questions))]

    def _encode(self, number: int) -> Embedding:
        embedding = self._predictor.encode(self._stack.pixels(number), intensity_range=self.window)
        self.encoded += not embedding.cached
        return embedding


class _Follower:
    """One object's way through the volume: what to ask next, and what to make of the answer."""

    def __init__(
        self,
        target: Target,
        stack: SliceStack,
        bounds: tuple[int, int],
        rule: Rule,
        draw: Callable[[int, Answer], object],
    ) -> None:
        self.target = target
        self.found = FollowedObject(target.name)
        self._stack, self._rule, self._draw = stack, rule, draw
        self._low, self._high = bounds
        self._answers: dict[int, Answer] = {}  # On the keyframes.

    def keep(self, question: Question, answer: Answer, agreement: float | None = None) -> None:
        """Draw an answer and note what it is like."""
        if question.source == "prompt":
            self._answers[question.number] = answer
        prompted = self._answers[min(self._answers, key=lambda frame: abs(frame - question.number))]
        weak = self._rule.is_weak(prompted, answer, agreement)
        pixels = int(np.count_nonzero(answer.mask))
        self.found.slices[question.number] = SliceFinding(
            question.number, question.source, answer.score, agreement, pixels, weak
        )
        self._draw(question.number, answer)

    def walk(self, direction: int) -> Generator[Question, Answer, None]:
        """Questions in one direction; each is sent its answer. Slices between keyframes are asked on the way up."""
        frames = sorted(self.target.keyframes)
        if direction > 0:
            for first, last in pairwise(frames):
                yield from self._between(first, last)
        start, stop = (frames[-1], self._high) if direction > 0 else (frames[0], self._low)
        prompted = neighbor = self._answers[start]
        for number in range(start + direction, stop + direction, direction):
            if not neighbor.mask.any():
                self._end(direction, f"nothing was found on slice {number - direction}")
                return
            question = self._rule.next_question(number, neighbor, self._stack)
            answer = yield question
            answer = replace(answer, mask=touching(answer.mask, neighbor.mask))
            reason = self._rule.end_of(prompted, neighbor, answer)
            if reason is not None:
                self._end(direction, f"{reason} on slice {number}")
                return
            self.keep(question, answer, overlap(answer.mask, neighbor.mask))
            neighbor = answer
        whole = stop == (len(self._stack) - 1 if direction > 0 else 0)
        self._end(direction, "the volume ends here" if whole else "the range ends here")

    def _between(self, first: int, last: int) -> Generator[Question, Answer, None]:
        boxes = [self._box_of(number) for number in (first, last)]
        previous = self._answers[first]
        for number in range(first + 1, last):
            if boxes[0] is None or boxes[1] is None:
                return
            share = (number - first) / (last - first)
            question = self._rule.between(number, (1 - share) * boxes[0] + share * boxes[1])
            answer = yield question
            self.keep(question, answer, overlap(answer.mask, previous.mask))
            previous = answer

    def _box_of(self, number: int) -> npt.NDArray[np.float64] | None:
        box, mask = self.target.keyframes[number].box, self._answers[number].mask
        return box if box is not None else bounding_box(mask) if mask.any() else None

    def _end(self, direction: int, reason: str) -> None:
        self.found.ends[direction] = reason


class _Sweep:
    """All objects' questions in one direction, slice after slice."""

    def __init__(self, direction: int, followers: Iterable[_Follower]) -> None:
        self._direction = direction
        self.asking: list[tuple[Generator[Question, Answer, None], Question]] = []
        for walk in (follower.walk(direction) for follower in followers):
            self._resume(walk, None)

    @property
    def next(self) -> int:
        """The next slice in this direction that somebody asks about."""
        return min((question.number for _, question in self.asking), key=lambda number: number * self._direction)

    def advance(self, decoder: _Decoder, following: Iterable[int]) -> int:
        """Answer all questions about the next slice, and return its number."""
        number = self.next
        here = [entry for entry in self.asking if entry[1].number == number]
        self.asking = [entry for entry in self.asking if entry[1].number != number]
        answers = decoder.ask([question for _, question in here], following)
        for (walk, _), answer in zip(here, answers, strict=True):
            self._resume(walk, answer)
        return number

    def _resume(self, walk: Generator[Question, Answer, None], answer: Answer | None) -> None:
        with contextlib.suppress(StopIteration):
            self.asking.append((walk, next(walk) if answer is None else walk.send(answer)))


class _LabelVolume:
    """Objects in one map; where they overlap, the higher logit wins."""

    def __init__(self, stack: SliceStack, objects: int) -> None:
        self.volume: npt.NDArray[Any] = np.zeros(
            stack.scan.grid, np.uint8 if objects <= np.iinfo(np.uint8).max else np.uint16, order="F"
        )
        self._stack = stack
        self._surest: dict[int, npt.NDArray[np.float16]] | None = {} if objects > 1 else None

    def draw(self, label: int, number: int, answer: Answer) -> None:
        """Draw object `label` (from 1) on one slice."""
        inside = answer.mask
        if self._surest is not None:
            surest = self._surest.setdefault(number, np.zeros(self._stack.shape, np.float16))
            inside = inside & (answer.logits > surest)
            np.copyto(surest, answer.logits.clip(max=np.finfo(np.float16).max), where=inside, casting="same_kind")
        shown = self._stack.at(number).extract(self.volume)  # A view: what is written here is written there.
        shown[inside] = label


def _bounds(stack: SliceStack, targets: Sequence[Target], slices: tuple[int, int] | None) -> tuple[int, int]:
    if not targets:
        raise PromptError("no object to follow: give a prompt")
    names = [target.name for target in targets]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise PromptError(f"two objects are called {double!r}: give each its own name")
    low, high = (0, len(stack) - 1) if slices is None else slices
    if not 0 <= low <= high < len(stack):
        raise PromptError(f"no range of slices: {low} to {high}; the volume has slices 0 to {len(stack) - 1}")
    for target in targets:
        for number in target.keyframes:
            if not low <= number <= high:
                raise PromptError(
                    f"the range {low} to {high} misses slice {number}, on which {target.name} is prompted: widen it"
                )
    return low, high
