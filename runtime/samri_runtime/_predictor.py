"""Encode a slice once, then answer boxes and points on it: the two calls that everything else is made of."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri import __version__
from samri.bundle import Bundle
from samri.errors import InputError, PromptError, ProviderError
from samri.manifest import Graph, Manifest, Precision
from samri.preprocessing import checked_pixels, preprocess
from samri.prompts import Prompt, finite_numbers, gather, pack, to_model_frame
from samri_runtime import models
from samri_runtime._decoders import ALL, CANDIDATES, SINGLE
from samri_runtime._embedding import Embedding
from samri_runtime._open_model import OpenModel, Where
from samri_runtime._prediction import Prediction
from samri_runtime._tuned import recall
from samri_runtime.cache import EmbeddingCache, arithmetic_of, embedding_key
from samri_runtime.providers import Provider, load_onnxruntime

_LOG = logging.getLogger("samri")


class Predictor:
    """A bundle, opened on one provider. `encode` and `predict` may be called from several threads.

    As a context manager, or by `close`, it gives back the memory of its sessions.

    Args:
        model: A bundle's folder, or the name of a model that comes with the package (`samri_runtime.models`).
        provider: Where to run. A name is a promise: it runs there or raises. `auto` takes the fastest that works; with
            no precision, options or threads asked for either, what `samri-bench --tune` found best here.
        precision: Of the graphs; `auto` takes what suits the provider, among the precisions that proved to give the
            masks of fp32 when the bundle was made. Where the decoder isn't held in it, fp32 goes with it.
        provider_options: Passed to the provider as they are, over SAMRI's defaults.
        threads: CPU threads an operator may use; None for one a core.
        expect_sha256: The SHA-256 that the bundle's `manifest.json` must have.
        cache: Where embeddings are kept on disk: an `EmbeddingCache`, or a folder. None keeps none. With a cached
            embedding the encoder's graph isn't opened.
        static_shapes: Pad prompts to a few sizes, with tensors bound on the device; None for providers that gain by it.
        prompts_per_image: How many prompts will be asked of each embedding, if you know: one or two don't pay on the
            CPU for what makes the next ones faster. Any number may be asked all the same.

    Raises:
        BundleError: No bundle there, or it is damaged or unsafe.
        ProviderError: The provider can't be used, and why.
        MissingDependencyError: ONNX Runtime isn't installed.
    """

    def __init__(
        self,
        model: str | Path,
        provider: Provider = "auto",
        *,
        precision: Precision | Literal["auto"] = "auto",
        provider_options: Mapping[str, str] | None = None,
        threads: int | None = None,
        expect_sha256: str | None = None,
        cache: EmbeddingCache | str | Path | None = None,
        static_shapes: bool | None = None,
        prompts_per_image: int | None = None,
    ) -> None:
        self.bundle = Bundle.open(models.locate(model), expect_sha256=expect_sha256)
        _LOG.info("bundle %s (%s, profile %s)", self.bundle.folder, self.manifest.backbone, self.manifest.profile.name)
        self._model_notes = list(models.notes_on(model))
        if (provider, precision, threads) == ("auto", "auto", None) and not provider_options:
            tuned, notes = recall(self.bundle)
            self._model_notes += notes
            if tuned is not None:
                provider, precision, threads = tuned.provider, tuned.precision, tuned.threads
                provider_options = tuned.options
        where = Where(provider, dict(provider_options or {}), threads, static_shapes, prompts_per_image)
        self._opened: OpenModel | None = OpenModel(self.bundle, where, precision)
        self.cache = EmbeddingCache(cache) if isinstance(cache, (str, Path)) else cache

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the sessions and their memory; a call that is under way ends as usual. Again is no error."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    @property
    def _model(self) -> OpenModel:
        if self._opened is None:
            raise InputError(f"this predictor of {self.bundle.folder} is closed: open another with Predictor(...)")
        return self._opened

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def precision(self) -> Precision:
        """The precision that was asked for, or that `auto` took."""
        return self._model.precision

    @property
    def graphs(self) -> dict[str, Graph]:
        """The bundle's graphs that this predictor may run, by role; their precisions may differ.

        `encoder` and `decoder`; on the CPU also `decoder_image` and `decoder_prompts`, for prompts without masks, but
        not where one or two `prompts_per_image` were announced.
        """
        return self._model.graphs()

    @property
    def providers(self) -> dict[str, str]:
        """The provider that each graph opened so far really runs on."""
        return {role: session.provider for role, session in self._model.sessions()}

    @property
    def notes(self) -> list[str]:
        """Plain lines a person should see, such as what `auto` fell back to and why."""
        of_sessions = (note for _, session in self._model.sessions() for note in session.notes)
        return list(dict.fromkeys([*self._model_notes, *self._model.notes, *of_sessions]))

    def encode(self, image: npt.ArrayLike, intensity_range: tuple[float, float] | None = None) -> Embedding:
        """Run the encoder on one slice, or read from the cache what it gave before.

        Args:
            image: (H, W) grey or (H, W, 3) RGB, any real dtype.
            intensity_range: Intensities mapped to black and white; None takes what the bundle's profile says.

        Raises:
            InputError: Not such an image, or NaN or infinite values in it; or the predictor is closed.
            BundleError: The encoder's file is missing or changed.
        """
        pixels = checked_pixels(image)
        embedding_id, key = self.manifest.embedding_id(self.precision), None
        if self.cache is not None and embedding_id is not None:
            arithmetic = arithmetic_of(self._model.decoder.session.provider, self._model.where.options)
            key = embedding_key(pixels, intensity_range, embedding_id, arithmetic)
        if self.cache is None or embedding_id is None or key is None:
            return self._run_encoder(pixels, intensity_range)
        found = self.cache.find(key, embedding_id, (1, *self.manifest.embedding_shape))
        if found.features is not None:
            _LOG.info("cache hit: %s", self.cache.path_of(key))
            return Embedding(found.features, (pixels.shape[0], pixels.shape[1]), embedding_id, True, found.made)
        _LOG.info("cache miss: no embedding %s", key)
        new = self._run_encoder(pixels, intensity_range)
        kept = self.cache.keep(key, new.features, new.shape, embedding_id, new.made)
        return replace(new, features=kept.features, notes=(*found.notes, *kept.notes))

    def predict(
        self,
        embedding: Embedding,
        *,
        boxes: npt.ArrayLike | None = None,
        points: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
        point_labels: npt.ArrayLike | Sequence[npt.ArrayLike] | None = None,
        prompts: Sequence[Prompt] | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask: bool = False,
    ) -> Prediction:
        """Answer B prompts on one slice, in one pass of the decoder.

        All coordinates are (x, y) in pixels of the slice, floats welcome; a box beyond the image is clipped.

        Args:
            embedding: From `encode` of a predictor with the same encoder.
            boxes: (B, 4) or (4,) XYXY. No box at all, `[]`, has an answer without masks.
            points: (N, 2) for one prompt, or a sequence of B such arrays, of any lengths. Together with boxes, each
                prompt has its box and its points.
            point_labels: Like `points` without the last axis: 1 belongs to the object, 0 doesn't. None: all belong.
            prompts: B `Prompt`s, instead of boxes and points.
            mask_input: (B, L, L), (B, 1, L, L) or (L, L) low-resolution logits of an earlier answer.
            multimask: Three candidates a prompt rather than one mask.

        Raises:
            PromptError: A prompt that makes no sense for this slice.
            InputError: The embedding was made by another encoder, or the predictor is closed.
        """
        if prompts is not None and not (boxes is None and points is None and point_labels is None):
            raise PromptError("give either prompts, or boxes and points")
        if prompts is None and boxes is None and points is None and point_labels is None:
            raise PromptError("no prompt: give boxes, points or prompts")
        self._check(embedding)
        asked = gather(boxes, points, point_labels) if prompts is None else _listed(prompts)
        checked = [prompt.validate(embedding.shape) for prompt in asked]
        valid = tuple(prompt for prompt, _ in checked)
        coords, labels = pack(valid)
        low_res, scores = self.decode(embedding, coords, labels, mask_input, CANDIDATES if multimask else SINGLE)
        if not multimask:
            low_res, scores = low_res[:, 0], scores[:, 0]
        return Prediction(
            scores=scores,
            low_res_logits=low_res,
            shape=embedding.shape,
            prompts=valid,
            notes=tuple(note for _, notes in checked for note in notes),
            profile=self.manifest.profile,
            image_size=self.manifest.image_size,
        )

    def decode(
        self,
        embedding: Embedding,
        coords: npt.NDArray[np.float32],
        labels: npt.NDArray[np.float32],
        mask_input: npt.ArrayLike | None = None,
        wanted: slice = ALL,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The decoder itself, for prompts that are packed already (`samri.prompts.pack`).

        Args:
            embedding: From `encode`.
            coords: (B, N, 2) float32 in pixels of the slice.
            labels: (B, N) float32.
            mask_input: As in `predict`.
            wanted: Which of SAM's masks: the first is its single mask, the others its candidates. Fewer are faster.

        Returns:
            Logits (B, M, L, L) and scores (B, M), float32.

        Raises:
            InputError: The embedding was made by another encoder.
            PromptError: `mask_input` has another shape.
            ProviderError: The provider failed, or computed NaN or infinite numbers.
        """
        self._check(embedding)
        frame = to_model_frame(coords, embedding.shape, self.manifest.profile, self.manifest.image_size)
        masks = self._mask_input(mask_input, len(labels))
        if not len(labels):
            side = 4 * self.manifest.embedding_shape[1]
            count = len(range(*wanted.indices(self.manifest.masks)))
            return np.zeros((0, count, side, side), np.float32), np.zeros((0, count), np.float32)
        started = time.perf_counter()
        low_res, scores = self._model.decoder(embedding.features, frame, labels, masks, wanted)
        _LOG.info("decoded %d prompt(s) in %.3f s", len(labels), time.perf_counter() - started)
        if not (np.isfinite(low_res).all() and np.isfinite(scores).all()):
            raise ProviderError(
                f"{self._model.decoder.session.provider} computed NaN or infinite logits with {self.bundle.folder}: "
                "try --provider cpu, or another precision"
            )
        return low_res, scores

    def _mask_input(self, mask_input: npt.ArrayLike | None, count: int) -> npt.NDArray[np.float32] | None:
        if mask_input is None:
            return None
        side = 4 * self.manifest.embedding_shape[1]
        with np.errstate(over="ignore"):
            masks = finite_numbers(mask_input, "mask_input").astype(np.float32)
        if masks.size != count * side * side or masks.shape[-2:] != (side, side):
            raise PromptError(
                f"mask_input for {count} prompts is ({count}, {side}, {side}) low-resolution logits, not {masks.shape}"
            )
        if not np.isfinite(masks).all():
            raise PromptError("mask_input must be finite numbers, without NaN or infinities")
        return masks.reshape(count, 1, side, side)

    def _check(self, embedding: Embedding) -> None:
        if not isinstance(embedding, Embedding):
            raise InputError(f"an embedding is what encode(...) returns, not a {type(embedding).__name__}")
        expected = self.manifest.embedding_id(self.precision)
        shape = (1, *self.manifest.embedding_shape)
        if embedding.features.shape != shape:
            raise InputError(f"an embedding for {self.bundle.folder} is {shape}, not {embedding.features.shape}")
        if embedding.embedding_id != expected:
            raise InputError(
                f"this embedding was made by another encoder ({embedding.embedding_id}) than that of "
                f"{self.bundle.folder} ({expected}): encode the image again"
            )

    def _run_encoder(self, pixels: npt.NDArray[Any], intensity_range: tuple[float, float] | None) -> Embedding:
        encoder = self._model.encoder()
        model_input = preprocess(pixels, self.manifest.profile, self.manifest.image_size, intensity_range)
        started = time.perf_counter()
        features = encoder.run({"image": model_input})["image_embeddings"]
        _LOG.info("encoded a slice of %d x %d in %.3f s", *pixels.shape[:2], time.perf_counter() - started)
        made = {
            "encoder": self.bundle.graph("encoder", self.precision).sha256,
            "provider": self.providers["encoder"],
            "samri": __version__,
            "onnxruntime": load_onnxruntime().__version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        shape = (pixels.shape[0], pixels.shape[1])
        return Embedding(features, shape, self.manifest.embedding_id(self.precision), made=made)


def _listed(prompts: Sequence[Prompt]) -> list[Prompt]:
    listed = list(prompts) if isinstance(prompts, Iterable) else [prompts]
    if isinstance(prompts, Prompt) or not all(isinstance(prompt, Prompt) for prompt in listed):
        raise PromptError("prompts are a sequence of Prompt: make each with Prompt.of(points, labels, box)")
    return listed
