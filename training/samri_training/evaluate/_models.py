"""Models to compare: bundles on ONNX Runtime and checkpoints on PyTorch, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from samri.contract import prompt_chunks
from samri.errors import CheckpointError
from samri.manifest import Precision
from samri.postprocessing import upscale_logits
from samri.preprocessing import Profile, ProfileName, preprocess, profile
from samri.privacy import without_folders
from samri.prompts import Prompt, to_batch, to_model_frame
from samri_runtime import Embedding, Predictor
from samri_runtime.providers import Provider
from samri_training.devices import torch_device
from samri_training.store import EncoderFacts

CHECKPOINT_SUFFIXES = {".pth", ".pt", ".bin", ".ckpt", ".safetensors"}


@dataclass(frozen=True)
class ModelRequest:
    """A model as the user named it.

    Attributes:
        name: In tables and plots.
        path: A bundle's folder or a checkpoint.
        profile: Preprocessing of a checkpoint, `samri` by default; a bundle has its own.
        precision: Precision of a bundle's graphs.
        base: The full checkpoint behind a decoder-only one.
    """

    name: str
    path: Path
    profile: ProfileName | None = None
    precision: Precision | Literal["auto"] = "auto"
    base: Path | None = None

    @property
    def is_checkpoint(self) -> bool:
        """A file with weights, rather than a bundle's folder."""
        return self.path.suffix.lower() in CHECKPOINT_SUFFIXES and not self.path.is_dir()


class Model(Protocol):
    """The interface of a model under evaluation.

    Attributes:
        name: In tables and plots.
        profile: How slices become its input and logits become masks.
        image_size: S.
        embedding_id: Id of its encoder and preprocessing.
        backend: What computes: models of one backend with one `embedding_id` share embeddings.
    """

    name: str
    profile: Profile
    image_size: int
    embedding_id: str | None
    backend: Literal["onnx", "torch"]

    def encode(self, image: npt.NDArray[Any], intensity_range: tuple[float, float] | None) -> Embedding:
        """The embedding of an (H, W) slice."""
        ...

    def decode(
        self, embedding: Embedding, coords: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits (B, 4, L, L) and scores (B, 4) for packed prompts in pixels of the slice."""
        ...

    def facts(self, precision: Precision) -> EncoderFacts:
        """Encoder facts of a store made by this model's encoder in that precision."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain JSON values, for provenance."""
        ...


def open_model(request: ModelRequest, provider: Provider = "auto", device: str = "auto") -> Model:
    """Open a bundle on an ONNX Runtime provider, or a checkpoint on a torch device.

    Raises:
        BundleError: No bundle there, or it is damaged.
        CheckpointError: The checkpoint can't be read or isn't a SAM-shaped model.
        ProviderError: The provider or device can't be used.
    """
    if request.is_checkpoint:
        return _CheckpointModel(request, device)
    return _BundleModel(request, provider)


def segment(
    model: Model, embedding: Embedding, prompts: Sequence[Prompt], multimask: bool = False
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """One mask per prompt, (B, H, W), and the model's own score of it, (B,).

    The model's single mask, or with `multimask` the best-scored of its three candidates.
    """
    coords, labels = to_batch(prompts)
    low_res, scores = model.decode(embedding, coords, labels)
    rows = np.arange(len(prompts))
    best = 1 + scores[:, 1:].argmax(axis=1) if multimask else np.zeros(len(prompts), dtype=np.intp)
    logits = upscale_logits(low_res[rows, best], embedding.shape, model.profile, model.image_size)
    return logits > 0, scores[rows, best]


class _BundleModel:
    backend: Literal["onnx", "torch"] = "onnx"

    def __init__(self, request: ModelRequest, provider: Provider) -> None:
        self.name = request.name
        self._predictor = Predictor(request.path, provider, precision=request.precision)
        manifest = self._predictor.manifest
        self.profile = manifest.profile
        self.image_size = manifest.image_size
        self.embedding_id = manifest.embedding_id(self._predictor.precision)

    def encode(self, image: npt.NDArray[Any], intensity_range: tuple[float, float] | None) -> Embedding:
        return self._predictor.encode(image, _range_for(self.profile, intensity_range))

    def decode(
        self, embedding: Embedding, coords: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return self._predictor.decode(embedding, coords, labels)

    def facts(self, precision: Precision) -> EncoderFacts:
        return EncoderFacts.of_bundle(self._predictor.manifest, precision)

    def describe(self) -> dict[str, Any]:
        bundle = self._predictor.bundle
        return {
            "name": self.name,
            "kind": "bundle",
            "folder": bundle.folder.resolve().name,
            "sha256": bundle.sha256,
            "checkpoint": dict(bundle.manifest.checkpoint),
            "backbone": bundle.manifest.backbone,
            "profile": self.profile.name,
            "precision": self._predictor.precision,
            "embedding_id": self.embedding_id,
            "ran_on": self._predictor.providers,
            "notes": [without_folders(note, [bundle.folder]) for note in self._predictor.notes],
        }


class _CheckpointModel:
    backend: Literal["onnx", "torch"] = "torch"

    def __init__(self, request: ModelRequest, device: str) -> None:
        import torch

        from samri.model import ImageEncoder, SamDecoder, encoder_sha256, load_checkpoint

        self.name = request.name
        self._checkpoint = load_checkpoint(request.path, request.base)
        self.profile = profile(request.profile or "samri")
        self.image_size = self._checkpoint.architecture.image_size
        self._weights = encoder_sha256(self._checkpoint.sam)
        self.embedding_id: str | None = self.facts("fp32").embedding_id
        if self._checkpoint.architecture.mask_tokens != 4:
            raise CheckpointError(f"{request.path}: has {self._checkpoint.architecture.mask_tokens} mask tokens, not 4")
        self._torch = torch
        self._device = torch_device(device)
        self._checkpoint.sam.to(self._device)
        self._encoder = ImageEncoder(self._checkpoint.sam.image_encoder)
        self._decoder = SamDecoder(self._checkpoint.sam)
        self._encoder.to(self._device)  # Its own buffers: the window indices.

    def encode(self, image: npt.NDArray[Any], intensity_range: tuple[float, float] | None) -> Embedding:
        pixels = preprocess(image, self.profile, self.image_size, _range_for(self.profile, intensity_range))
        with self._torch.inference_mode():
            features = self._encoder(self._tensor(pixels)).cpu().numpy()
        return Embedding(features, (image.shape[0], image.shape[1]), self.embedding_id)

    def decode(
        self, embedding: Embedding, coords: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        frame = to_model_frame(coords, embedding.shape, self.profile, self.image_size)
        masks, scores = [], []
        with self._torch.inference_mode():
            features = self._tensor(embedding.features)
            for some in prompt_chunks(len(labels)):
                answer = self._decoder(features, self._tensor(frame[some]), self._tensor(labels[some]))
                masks.append(answer[0].cpu().numpy())
                scores.append(answer[1].cpu().numpy())
        return np.concatenate(masks), np.concatenate(scores)

    def facts(self, precision: Precision) -> EncoderFacts:
        return EncoderFacts.of_checkpoint(self._checkpoint, self._weights, self.profile.name, precision)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": "checkpoint",
            "file": self._checkpoint.path.name,
            "sha256": self._checkpoint.sha256,
            "base_sha256": self._checkpoint.base_sha256,
            "backbone": self._checkpoint.architecture.backbone,
            "profile": self.profile.name,
            "precision": "fp32",
            "embedding_id": self.embedding_id,
            "ran_on": {"torch": str(self._device)},
            "notes": list(self._checkpoint.notes),
        }

    def _tensor(self, array: npt.NDArray[np.float32]) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _range_for(profile: Profile, intensity_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """The volume's percentiles are for the profile that asks for them; the others look at the slice."""
    return intensity_range if profile.intensity == "percentile" else None
