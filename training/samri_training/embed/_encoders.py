"""The frozen encoder, by torch from a checkpoint or by ONNX Runtime from a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from samri import __version__
from samri.bundle import Bundle
from samri.errors import BundleError, ProviderError
from samri.manifest import Precision
from samri.preprocessing import ProfileName
from samri_runtime.providers import Provider, load_onnxruntime, open_session
from samri_training.devices import torch_device
from samri_training.store import EncoderFacts

TorchPrecision = Literal["fp32", "fp16"]


class Encoder(Protocol):
    """What makes embeddings."""

    @property
    def facts(self) -> EncoderFacts:
        """What decides which embeddings may be mixed."""
        ...

    @property
    def made_with(self) -> Mapping[str, str]:
        """Versions of the programs, and what it runs on, for provenance."""
        ...

    @property
    def runs_on(self) -> str:
        """Device or provider that really computes."""
        ...

    def encode(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, 3, S, S) preprocessed -> (B, C, G, G) float32."""
        ...


def checkpoint_facts(
    path: str | Path, profile_name: ProfileName, precision: Precision = "fp32", base: str | Path | None = None
) -> EncoderFacts:
    """The facts of the encoder in a checkpoint: what a store made with it has, and what a published cache is taken for.

    Raises:
        CheckpointError: The checkpoint can't be read.
    """
    from samri.model import encoder_sha256, load_checkpoint

    checkpoint = load_checkpoint(path, base)
    return EncoderFacts.of_checkpoint(checkpoint, encoder_sha256(checkpoint.sam), profile_name, precision)


class TorchEncoder:
    """A checkpoint's encoder on a torch device.

    Args:
        path: A .pth, .pt, .bin or .safetensors file.
        profile_name: The preprocessing that the checkpoint was trained with.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: `fp16` computes matrix products in half precision (autocast), which GPUs do several times faster.
        base: The full checkpoint behind a decoder-only file.
        local_rank: Which GPU `cuda` means, where a machine runs a process for each.

    Raises:
        CheckpointError: The checkpoint can't be read.
        ProviderError: There is no such device.
    """

    def __init__(
        self,
        path: str | Path,
        profile_name: ProfileName,
        device: str = "auto",
        precision: TorchPrecision = "fp32",
        base: str | Path | None = None,
        local_rank: int = 0,
    ) -> None:
        import torch

        from samri.model import ImageEncoder, encoder_sha256, load_checkpoint

        self._device = torch_device(device, local_rank)
        checkpoint = load_checkpoint(path, base)
        self.facts = EncoderFacts.of_checkpoint(checkpoint, encoder_sha256(checkpoint.sam), profile_name, precision)
        self.made_with = {
            "samri": __version__,
            "numpy": np.__version__,
            "torch": torch.__version__,
            "device": self.runs_on.replace(f":{self._device.index}", "", 1),
        }
        self.notes = checkpoint.notes
        self._half = precision == "fp16"
        self._encoder = ImageEncoder(checkpoint.sam.image_encoder).eval().to(self._device)

    @property
    def runs_on(self) -> str:
        """The device, with a GPU's name."""
        import torch

        if self._device.type == "cuda":
            return f"{self._device} ({torch.cuda.get_device_name(self._device)})"
        return str(self._device)

    def encode(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, 3, S, S) preprocessed -> (B, C, G, G) float32.

        Raises:
            ProviderError: The device has too little memory.
        """
        import torch

        half = torch.autocast(self._device.type, dtype=torch.float16, enabled=self._half)
        try:
            with torch.inference_mode(), half:
                features: npt.NDArray[np.float32] = (
                    self._encoder(torch.from_numpy(images).to(self._device)).float().cpu().numpy()
                )
        except torch.OutOfMemoryError as error:
            raise ProviderError(
                f"{self._device} has too little memory for {len(images)} slices at once: lower --batch-size"
            ) from error
        return features


class BundleEncoder:
    """A bundle's ONNX encoder on a provider.

    Args:
        folder: The bundle.
        provider: A name is a promise: it runs there or raises.
        precision: Precision of the bundle's encoder graph.
        provider_options: Passed to the provider as they are.

    Raises:
        BundleError: No bundle there, or it is damaged.
        ProviderError: The provider can't be used.
    """

    def __init__(
        self,
        folder: str | Path,
        provider: Provider = "auto",
        precision: Precision = "fp32",
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        bundle = Bundle.open(folder)
        graph = bundle.graph("encoder", precision)
        if graph.embedding_id is None:
            raise BundleError(f"{bundle.folder} doesn't say which embeddings its encoder makes: export it again")
        with bundle.verified_graph("encoder", precision) as path:
            self._session = open_session(path, provider, provider_options=provider_options)
        self.notes = self._session.notes
        self.facts = EncoderFacts.of_bundle(bundle.manifest, precision)
        self.made_with = {
            "samri": __version__,
            "numpy": np.__version__,
            "onnxruntime": load_onnxruntime().__version__,
            "device": self.runs_on,
        }

    @property
    def runs_on(self) -> str:
        """The provider that really runs."""
        return f"onnxruntime {self._session.provider}"

    def encode(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, 3, S, S) preprocessed -> (B, C, G, G) float32.

        Raises:
            ProviderError: The provider failed while computing.
        """
        features: npt.NDArray[np.float32] = self._session.run({"image": images})["image_embeddings"]
        return features
