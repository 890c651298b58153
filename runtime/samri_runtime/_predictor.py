"""Encode a slice once, then answer boxes and points on it: the two calls that everything else is made of."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri import __version__
from samri.bundle import Bundle
from samri.errors import InputError, PromptError, ProviderError
from samri.manifest import Graph, Manifest, Precision
from samri.postprocessing import upscale_logits
from samri.preprocessing import Profile, preprocess
from samri.prompts import Prompt, gather, pack, to_model_frame
from samri_runtime import models
from samri_runtime._decoder import Decoder, FlexibleDecoder, StaticDecoder, needs_static_shapes
from samri_runtime._embedding import Embedding
from samri_runtime._graphs import ONE_IMAGE, GraphRole, open_graph
from samri_runtime._precision import precision_for
from samri_runtime._prompt_decoder import PromptDecoder
from samri_runtime._tuned import recall
from samri_runtime.cache import EmbeddingCache, arithmetic_of, embedding_key
from samri_runtime.providers import BoundSession, Provider, Session, load_onnxruntime


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to B prompts: one mask each, or three candidates each with `multimask`.

    Attributes:
        masks: (B, H, W) bool, or (B, 3, H, W).
        scores: (B,) float32, or (B, 3): the model's own estimate of the IoU.
        low_res_logits: (B, L, L) float32, or (B, 3, L, L); one of them can be the next call's `mask_input`.
        prompts: What was asked, after clipping.
        notes: Plain lines on what was clipped.
        profile: How low-resolution logits become masks.
        image_size: S of the model.
    """

    masks: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    low_res_logits: npt.NDArray[np.float32]
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]
    profile: Profile
    image_size: int
    _logits: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits at the slice's size, in the shape of `masks`; a mask is where they are above 0. Don't change them."""
        if self._logits is not None:
            return self._logits
        height, width = self.masks.shape[-2:]
        return upscale_logits(self.low_res_logits, (height, width), self.profile, self.image_size)


class Predictor:
    """A bundle, opened on one provider. `encode` and `predict` may be called from several threads.

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
    ) -> None:
        self.bundle = Bundle.open(models.locate(model), expect_sha256=expect_sha256)
        self._model_notes = list(models.notes_on(model))
        if (provider, precision, threads) == ("auto", "auto", None) and not provider_options:
            tuned, notes = recall(self.bundle)
            self._model_notes += notes
            if tuned is not None:
                provider, precision, threads = tuned.provider, tuned.precision, tuned.threads
                provider_options = tuned.options
        if precision != "auto":
            self.bundle.graph("encoder", precision)
        # Which precision suits `auto` is known when it is known where the decoder runs; by then it may be another one.
        self.precision: Precision = "fp32" if precision == "auto" else precision
        if precision == "auto" and provider != "auto":
            self.precision, chosen = precision_for(self.manifest, provider)
            self._model_notes += chosen
        self._provider: Provider = provider
        self._provider_options = provider_options
        self._threads = threads
        self.cache = EmbeddingCache(cache) if isinstance(cache, (str, Path)) else cache
        # The decoder is small and always needed: opened now, it shows at once whether the provider keeps its promise.
        self._static = static_shapes
        self._decoder = self._open_decoder()
        if precision == "auto" and provider == "auto":
            self._suit_precision()
        self._encoder: Session | BoundSession | None = None
        self._opening = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def graphs(self) -> dict[str, Graph]:
        """The bundle's graphs that this predictor runs: `encoder` and `decoder`, whose precisions may differ."""
        roles: tuple[GraphRole, ...] = ("encoder", "decoder")
        precisions = {role: self.manifest.precision_with(role, self.precision) for role in roles}
        return {role: self.bundle.graph(role, precision) for role, precision in precisions.items()}

    @property
    def providers(self) -> dict[str, str]:
        """The provider that each graph opened so far really runs on."""
        return {role: session.provider for role, session in self._sessions()}

    @property
    def notes(self) -> list[str]:
        """Plain lines a person should see, such as what `auto` fell back to and why."""
        of_sessions = (note for _, session in self._sessions() for note in session.notes)
        return list(dict.fromkeys([*self._model_notes, *of_sessions]))

    def encode(self, image: npt.ArrayLike, intensity_range: tuple[float, float] | None = None) -> Embedding:
        """Run the encoder on one slice, or read from the cache what it gave before.

        Args:
            image: (H, W) grey or (H, W, 3) RGB, any real dtype.
            intensity_range: Intensities mapped to black and white; None takes what the bundle's profile says.

        Raises:
            InputError: Not such an image, or NaN or infinite values in it.
            BundleError: The encoder's file is missing or changed.
        """
        pixels = np.asarray(image)
        embedding_id, key = self.manifest.embedding_id(self.precision), None
        if self.cache is not None and embedding_id is not None:
            arithmetic = arithmetic_of(self._decoder.session.provider, self._provider_options)
            key = embedding_key(pixels, intensity_range, embedding_id, arithmetic)
        if self.cache is None or embedding_id is None or key is None:
            return self._run_encoder(pixels, intensity_range)
        found = self.cache.find(key, embedding_id, (1, *self.manifest.embedding_shape))
        if found.features is not None:
            return Embedding(found.features, (pixels.shape[0], pixels.shape[1]), embedding_id, True, found.made)
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
            boxes: (B, 4) or (4,) XYXY.
            points: (N, 2) for one prompt, or a sequence of B such arrays, of any lengths. Together with boxes, each
                prompt has its box and its points.
            point_labels: Like `points` without the last axis: 1 belongs to the object, 0 doesn't. None: all belong.
            prompts: B `Prompt`s, instead of boxes and points.
            mask_input: (B, L, L), (B, 1, L, L) or (L, L) low-resolution logits of an earlier answer.
            multimask: Three candidates a prompt rather than one mask.

        Raises:
            PromptError: A prompt that makes no sense for this slice.
            InputError: The embedding was made by another encoder.
        """
        asked = gather(boxes, points, point_labels) if prompts is None else list(prompts)
        if prompts is not None and not (boxes is None and points is None and point_labels is None):
            raise PromptError("give either prompts, or boxes and points")
        if not asked:
            raise PromptError("no prompt: give at least one box or point")
        checked = [prompt.validate(embedding.shape) for prompt in asked]
        valid = tuple(prompt for prompt, _ in checked)
        coords, labels = pack(valid)
        low_res, scores = self.decode(embedding, coords, labels, mask_input)
        chosen = slice(1, None) if multimask else 0
        low_res, scores = low_res[:, chosen], scores[:, chosen]
        logits = upscale_logits(low_res, embedding.shape, self.manifest.profile, self.manifest.image_size)
        return Prediction(
            masks=logits > 0,
            scores=scores,
            low_res_logits=low_res,
            prompts=valid,
            notes=tuple(note for _, notes in checked for note in notes),
            profile=self.manifest.profile,
            image_size=self.manifest.image_size,
            _logits=logits,
        )

    def decode(
        self,
        embedding: Embedding,
        coords: npt.NDArray[np.float32],
        labels: npt.NDArray[np.float32],
        mask_input: npt.ArrayLike | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The decoder itself, for prompts that are packed already (`samri.prompts.pack`).

        Args:
            embedding: From `encode`.
            coords: (B, N, 2) float32 in pixels of the slice.
            labels: (B, N) float32.
            mask_input: As in `predict`.

        Returns:
            Logits (B, 4, L, L) and scores (B, 4), float32: SAM's single mask, then its three candidates.

        Raises:
            InputError: The embedding was made by another encoder.
            PromptError: `mask_input` has another shape.
            ProviderError: The provider failed, or computed NaN or infinite numbers.
        """
        self._check(embedding)
        frame = to_model_frame(coords, embedding.shape, self.manifest.profile, self.manifest.image_size)
        masks = self._mask_input(mask_input, len(labels))
        low_res, scores = self._decoder(embedding.features, frame, labels, masks)
        if not (np.isfinite(low_res).all() and np.isfinite(scores).all()):
            raise ProviderError(
                f"{self._decoder.session.provider} computed NaN or infinite logits with {self.bundle.folder}: "
                "try --provider cpu, or another precision"
            )
        return low_res, scores

    def _mask_input(self, mask_input: npt.ArrayLike | None, count: int) -> npt.NDArray[np.float32] | None:
        if mask_input is None:
            return None
        side = 4 * self.manifest.embedding_shape[1]
        masks = np.asarray(mask_input, dtype=np.float32)
        if masks.size != count * side * side or masks.shape[-2:] != (side, side):
            raise PromptError(
                f"mask_input for {count} prompts is ({count}, {side}, {side}) low-resolution logits, not {masks.shape}"
            )
        if not np.isfinite(masks).all():
            raise PromptError("mask_input must be finite numbers, without NaN or infinities")
        return masks.reshape(count, 1, side, side)

    def _check(self, embedding: Embedding) -> None:
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
        encoder = self._open_encoder()
        model_input = preprocess(pixels, self.manifest.profile, self.manifest.image_size, intensity_range)
        features = encoder.run({"image": model_input})["image_embeddings"]
        made = {
            "encoder": self.bundle.graph("encoder", self.precision).file.sha256,
            "provider": self.providers["encoder"],
            "samri": __version__,
            "onnxruntime": load_onnxruntime().__version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        shape = (pixels.shape[0], pixels.shape[1])
        return Embedding(features, shape, self.manifest.embedding_id(self.precision), made=made)

    def _open(self, role: GraphRole, fixed_axes: Mapping[str, int] | None = None) -> Session:
        return open_graph(
            self.bundle,
            role,
            self.precision,
            self._provider,
            provider_options=self._provider_options,
            threads=self._threads,
            fixed_axes=fixed_axes,
        )

    def _open_decoder(self) -> Decoder:
        session = self._open("decoder")
        decoder_precision = self.manifest.precision_with("decoder", self.precision)
        if self._static is None:
            self._static = needs_static_shapes(session, self._provider_options or {})
        if self._static:
            return StaticDecoder(session, partial(self._open, "decoder"))
        held = [self.manifest.find(role, decoder_precision) for role in ("decoder_image", "decoder_prompts")]
        # Where the image side would travel to a device and back, the whole decoder is faster.
        if session.provider == "cpu" and None not in held:
            return PromptDecoder(session, lambda: (self._open("decoder_image"), self._open("decoder_prompts")))
        return FlexibleDecoder(session)

    def _suit_precision(self) -> None:
        """Take the precision that suits the provider which `auto` came to, for the decoder too if it is held in it."""
        opened = self.manifest.precision_with("decoder", self.precision)
        self.precision, chosen = precision_for(self.manifest, self._decoder.session.provider)
        self._model_notes += chosen
        if self.manifest.precision_with("decoder", self.precision) != opened:
            self._decoder = self._open_decoder()

    def _open_encoder(self) -> Session | BoundSession:
        with self._opening:
            if self._encoder is None:
                self._encoder = self._open("encoder", ONE_IMAGE).bound() if self._static else self._open("encoder")
            return self._encoder

    def _sessions(self) -> list[tuple[str, Session | BoundSession]]:
        opened: list[tuple[str, Session | BoundSession | None]] = [
            ("encoder", self._encoder),
            ("decoder", self._decoder.session),
        ]
        return [(role, session) for role, session in opened if session is not None]
