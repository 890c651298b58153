"""Encode a slice once, then predict masks from boxes and points: the two calls on which everything else is built."""

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
from samri.prompts import Prompt, finite_numbers, prompts_from_arrays, to_batch, to_model_frame
from samri_runtime import models
from samri_runtime._decoders import ALL, CANDIDATES, SINGLE
from samri_runtime._embedding import Embedding
from samri_runtime._open_model import OpenModel
from samri_runtime._prediction import Prediction
from samri_runtime._tuned import load_tuned
from samri_runtime.cache import EmbeddingCache, arithmetic_of, embedding_key
from samri_runtime.providers import Provider, load_onnxruntime

_LOG = logging.getLogger("samri")


class Predictor:
    """A bundle, open on one provider. `encode` and `predict` may be called from several threads.

    Use it as a context manager, or call `close`, to release the memory of its sessions.

    Args:
        model: A bundle's folder, or the name of a model that comes with the package (`samri_runtime.models`).
        provider: Where to run. A named provider is used or an error is raised; `auto` takes the fastest that works.
        precision: Precision of the graphs. `auto` takes the one that suits the provider, among those whose masks agreed
            with fp32 when the bundle was exported. The decoder runs in fp32 where the bundle has none in `precision`.
        provider_options: Passed to the provider unchanged, over SAMRI's defaults.
        threads: CPU threads per operator; None for one per core.
        expect_sha256: The SHA-256 that the bundle's `manifest.json` must have.
        cache: An `EmbeddingCache`, or a folder for one, to keep embeddings on disk; None keeps none. The encoder graph
            isn't opened while the cache has every embedding.
        static_shapes: Pad prompts to a few sizes, with tensors bound on the device; None for providers that gain by it.
        prompts_per_image: Expected number of prompts per image, if known. With one or two, the CPU skips a preparation
            that pays from the third prompt on. It doesn't limit the number.

    Attributes:
        bundle: The bundle.
        requested_provider: `provider` as it was passed; `providers` has those that run.
        cache: The embedding cache, or None.

    Raises:
        BundleError: There is no bundle, or it is damaged or unsafe.
        ProviderError: The provider can't be used, and why.
        MissingDependencyError: ONNX Runtime isn't installed.

    Example:
        >>> import numpy as np
        >>> from samri_runtime import Predictor
        >>> image = np.zeros((60, 80), np.float32)
        >>> image[20:40, 30:60] = 1
        >>> with Predictor("samri-tiny", "cpu") as predictor:
        ...     embedding = predictor.encode(image)
        ...     prediction = predictor.predict(embedding, boxes=[[30, 20, 60, 40], [28, 18, 62, 42]])
        >>> prediction.masks.shape, prediction.scores.shape
        ((2, 60, 80), (2,))
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
        self.requested_provider: Provider = provider
        self._model_notes = list(models.notes_on(model))
        self._opened: OpenModel | None = OpenModel(
            self.bundle,
            provider,
            precision,
            options=dict(provider_options or {}),
            threads=threads,
            static_shapes=static_shapes,
            prompts_per_image=prompts_per_image,
        )
        self.cache = EmbeddingCache(cache) if isinstance(cache, (str, Path)) else cache

    @classmethod
    def tuned(
        cls,
        model: str | Path,
        provider: Provider = "auto",
        *,
        precision: Precision | Literal["auto"] = "auto",
        provider_options: Mapping[str, str] | None = None,
        threads: int | None = None,
        expect_sha256: str | None = None,
        **others: Any,
    ) -> Predictor:
        """A predictor with the settings that `samri-bench --tune` found fastest for this bundle on this machine.

        They count where neither a provider, a precision, options nor threads are passed, and are read from `tuned.json`
        in the user's configuration folder; `notes` names them. Without any it is `Predictor(model, ...)`.

        Args:
            model: As for the class.
            provider: As for the class.
            precision: As for the class.
            provider_options: As for the class.
            threads: As for the class.
            expect_sha256: As for the class.
            others: Further arguments of the class.

        Raises:
            SamriError: As for the class.
        """
        requested, notes = provider, list[str]()
        if (provider, precision, threads) == ("auto", "auto", None) and not provider_options:
            settings, notes = load_tuned(Bundle.open(models.locate(model), expect_sha256=expect_sha256))
            if settings is not None:
                provider, precision, threads = settings.provider, settings.precision, settings.threads
                provider_options = settings.options
        predictor = cls(
            model,
            provider,
            precision=precision,
            provider_options=provider_options,
            threads=threads,
            expect_sha256=expect_sha256,
            **others,
        )
        predictor.requested_provider = requested
        predictor._model_notes += notes
        return predictor

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the sessions and their memory. Calls in progress finish; closing twice is no error."""
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
        """The manifest of the bundle."""
        return self.bundle.manifest

    @property
    def precision(self) -> Precision:
        """The requested precision, or the one `auto` chose."""
        return self._model.precision

    @property
    def graphs(self) -> dict[str, Graph]:
        """The graphs that this predictor may run, by role; their precisions may differ.

        `encoder` and `decoder`; on the CPU also `decoder_image` and `decoder_prompts`, for prompts without masks,
        unless `prompts_per_image` is one or two.
        """
        return self._model.graphs()

    @property
    def providers(self) -> dict[str, str]:
        """The provider that each open graph runs on, by role."""
        return {role: session.provider for role, session in self._model.sessions()}

    @property
    def notes(self) -> list[str]:
        """Messages for the user, such as what `auto` fell back to and why."""
        of_sessions = (note for _, session in self._model.sessions() for note in session.notes)
        return list(dict.fromkeys([*self._model_notes, *self._model.notes, *of_sessions]))

    def encode(self, image: npt.ArrayLike, intensity_range: tuple[float, float] | None = None) -> Embedding:
        """Run the encoder on one slice, or read its embedding from the cache.

        Args:
            image: (H, W) gray or (H, W, 3) RGB, any real dtype.
            intensity_range: Intensities mapped to black and white; None for those of the bundle's profile.

        Raises:
            InputError: The array isn't such an image, or holds NaN or infinite values; or the predictor is closed.
            BundleError: The encoder's file is missing or changed.
            ProviderError: The provider failed.
        """
        pixels = checked_pixels(image)
        embedding_id, key = self.manifest.embedding_id(self.precision), None
        if self.cache is not None and embedding_id is not None:
            arithmetic = arithmetic_of(self._model.decoder.session.provider, self._model.options)
            key = embedding_key(pixels, intensity_range, embedding_id, arithmetic)
        if self.cache is None or embedding_id is None or key is None:
            return self._run_encoder(pixels, intensity_range)
        cached, notes = self.cache.find(key, embedding_id, (1, *self.manifest.embedding_shape))
        if cached is not None:
            _LOG.info("cache hit: %s", self.cache.path_of(key))
            return replace(cached, shape=(pixels.shape[0], pixels.shape[1]))
        _LOG.info("cache miss: no embedding %s", key)
        return self.cache.keep(key, replace(self._run_encoder(pixels, intensity_range), notes=notes))

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
        """Predict the masks of B prompts on one slice.

        All coordinates are (x, y) in pixels of the slice and may be fractions; a box is clipped to the image.

        Args:
            embedding: From `encode` of a predictor with the same encoder.
            boxes: (B, 4) or (4,) XYXY. An empty list gives a prediction of no masks.
            points: (N, 2) for one prompt, or a sequence of B such arrays, of any lengths. Together with boxes, each
                prompt has its box and its points.
            point_labels: Like `points` without the last axis: 1 is foreground, 0 background. None: all foreground.
            prompts: B `Prompt`s, instead of boxes and points.
            mask_input: (B, L, L), (B, 1, L, L) or (L, L) low-resolution logits of an earlier prediction.
            multimask: Three candidates per prompt rather than one mask.

        Raises:
            PromptError: A prompt lies outside the slice, or its shape is wrong.
            InputError: The embedding was made by another encoder, or the predictor is closed.
            ProviderError: The provider failed, or computed NaN or infinite numbers.
        """
        if prompts is not None and not (boxes is None and points is None and point_labels is None):
            raise PromptError("give either prompts, or boxes and points")
        if prompts is None and boxes is None and points is None and point_labels is None:
            raise PromptError("no prompt: give boxes, points or prompts")
        self._check(embedding)
        requested = prompts_from_arrays(boxes, points, point_labels) if prompts is None else _listed(prompts)
        checked = [prompt.validate(embedding.shape) for prompt in requested]
        valid = tuple(prompt for prompt, _ in checked)
        coords, labels = to_batch(valid)
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
        requested_masks: slice = ALL,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Run the decoder on prompts that are packed already (`samri.prompts.to_batch`).

        Args:
            embedding: From `encode`.
            coords: (B, N, 2) float32 in pixels of the slice.
            labels: (B, N) float32.
            mask_input: As in `predict`.
            requested_masks: Range of SAM's masks: the first is the single mask, the others are the candidates. Fewer
                are faster.

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
            count = len(range(*requested_masks.indices(self.manifest.masks)))
            return np.zeros((0, count, side, side), np.float32), np.zeros((0, count), np.float32)
        started = time.perf_counter()
        low_res, scores = self._model.decoder(embedding.features, frame, labels, masks, requested_masks)
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
            raise InputError(f"embedding must be the result of encode(...), not a {type(embedding).__name__}")
        expected = self.manifest.embedding_id(self.precision)
        shape = (1, *self.manifest.embedding_shape)
        if embedding.features.shape != shape:
            raise InputError(
                f"embeddings for {self.bundle.folder} have shape {shape}, not {embedding.features.shape}: "
                "encode the image with this predictor"
            )
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
        provenance = {
            "encoder": self.bundle.graph("encoder", self.precision).sha256,
            "provider": self.providers["encoder"],
            "samri": __version__,
            "onnxruntime": load_onnxruntime().__version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        shape = (pixels.shape[0], pixels.shape[1])
        return Embedding(features, shape, self.manifest.embedding_id(self.precision), provenance=provenance)


def _listed(prompts: Sequence[Prompt]) -> list[Prompt]:
    listed = list(prompts) if isinstance(prompts, Iterable) else [prompts]
    if isinstance(prompts, Prompt) or not all(isinstance(prompt, Prompt) for prompt in listed):
        raise PromptError("prompts must be a sequence of Prompt: make each with Prompt.of(points, labels, box)")
    return listed
