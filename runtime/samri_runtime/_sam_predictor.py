"""Meta's `SamPredictor` interface on a bundle, for the many programs written against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, PromptError
from samri.postprocessing import upscale_logits
from samri.preprocessing import checked_pixels, input_shape
from samri.prompts import ABSENT, Prompt, finite_numbers, to_batch
from samri_runtime._decoders import CANDIDATES, SINGLE
from samri_runtime._embedding import Embedding
from samri_runtime._predictor import Predictor

Masks = npt.NDArray[Any]


class SamPredictor:
    """`segment_anything.SamPredictor` without PyTorch: same methods, arguments, shapes and order of results.

    It holds one image at a time, as Meta's class does, so give each thread its own. `Predictor` has no such state;
    several `SamPredictor(predictor)` can share one.

    Args:
        model: A `Predictor`, or what `Predictor` takes: a bundle's folder or a name.
        settings: Passed on to `Predictor` when `model` isn't one.

    Example:
        >>> import numpy as np
        >>> from samri_runtime import SamPredictor
        >>> predictor = SamPredictor("samri-tiny", provider="cpu")
        >>> predictor.set_image(np.zeros((60, 80, 3), np.uint8))
        >>> masks, scores, low_res = predictor.predict(box=np.array([10, 10, 40, 30]), multimask_output=True)
        >>> masks.shape, scores.shape, low_res.shape
        ((3, 60, 80), (3,), (3, 128, 128))
    """

    def __init__(self, model: Predictor | str | Path, **settings: Any) -> None:
        self.predictor = model if isinstance(model, Predictor) else Predictor(model, **settings)
        self._embedding: Embedding | None = None

    def set_image(self, image: npt.NDArray[Any], image_format: Literal["RGB", "BGR"] = "RGB") -> None:
        """Encode an image; uint8 passes with its intensities unchanged, as in Meta's class.

        Args:
            image: (H, W, 3) uint8; also (H, W), and any other dtype, which is scaled as the profile says.
            image_format: Order of the channels.

        Raises:
            InputError: Not such an image.
        """
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is RGB or BGR, not {image_format!r}")
        pixels = checked_pixels(image)
        if image_format == "BGR" and pixels.ndim == 3:
            pixels = pixels[..., ::-1]
        unchanged = (0.0, 255.0) if pixels.dtype == np.uint8 else None
        self._embedding = self.predictor.encode(pixels, intensity_range=unchanged)

    def predict(
        self,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Masks, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Masks for one prompt on the image that was set.

        Args:
            point_coords: (N, 2), (x, y) in pixels.
            point_labels: (N,), 1 foreground, 0 background.
            box: (4,) XYXY in pixels.
            mask_input: (1, L, L) low-resolution logits of an earlier answer.
            multimask_output: Three masks rather than one.
            return_logits: Logits rather than booleans.

        Returns:
            Masks (C, H, W), bool or float32; scores (C,); low-resolution logits (C, L, L).

        Raises:
            InputError: No image was set.
            PromptError: A shape is wrong.
        """
        embedding = self._required_embedding()
        if point_coords is not None and point_labels is None:
            raise PromptError("point_labels must be given with point_coords")
        coords, labels = _packed(point_coords, point_labels, box)
        low_res, scores = self.predictor.decode(
            embedding, coords, labels, mask_input, CANDIDATES if multimask_output else SINGLE
        )
        low_res, scores = low_res[0], scores[0]
        manifest = self.predictor.manifest
        logits = upscale_logits(low_res, embedding.shape, manifest.profile, manifest.image_size)
        return (logits if return_logits else logits > 0), scores, low_res

    def get_image_embedding(self) -> npt.NDArray[np.float32]:
        """(1, C, G, G) of the image that was set.

        Raises:
            InputError: No image was set.
        """
        return self._required_embedding().features

    def reset_image(self) -> None:
        """Forget the image."""
        self._embedding = None

    @property
    def is_image_set(self) -> bool:
        """Whether `predict` has an image to work on."""
        return self._embedding is not None

    @property
    def features(self) -> npt.NDArray[np.float32] | None:
        """The embedding, if an image was set."""
        return None if self._embedding is None else self._embedding.features

    @property
    def original_size(self) -> tuple[int, int] | None:
        """(H, W) of the image, if one was set."""
        return None if self._embedding is None else self._embedding.shape

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(H, W) of the image as the encoder saw it, without padding, if one was set."""
        if self._embedding is None:
            return None
        manifest = self.predictor.manifest
        return input_shape(self._embedding.shape, manifest.profile, manifest.image_size)

    def _required_embedding(self) -> Embedding:
        if self._embedding is None:
            raise InputError("no image is set: call set_image(...) before predict(...)")
        return self._embedding


def _packed(
    points: npt.ArrayLike | None, labels: npt.ArrayLike | None, box: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """One prompt as Meta's class takes it: unclipped, and possibly none at all (with `mask_input` alone)."""
    if points is None and box is None:
        return np.zeros((1, 1, 2), np.float32), np.full((1, 1), ABSENT, np.float32)
    corners = None if box is None else finite_numbers(box, "box").reshape(-1)
    return to_batch([Prompt.of(points, labels, corners)])
