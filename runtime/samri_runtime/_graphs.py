"""A bundle's graph, opened: whole and unchanged, on its provider, and of the shape that the manifest states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from samri.bundle import Bundle
from samri.errors import BundleError
from samri.manifest import Manifest, Precision
from samri_runtime.providers import Provider, Session, Tensor, open_session

GraphRole = Literal["encoder", "decoder", "decoder_image", "decoder_prompts"]

ONE_IMAGE = {"images": 1}
"""The encoder's free axis, which is 1 wherever a slice is encoded."""

_PROMPTS = ("point_coords", "point_labels", "wanted_masks")

_Shapes = dict[str, tuple[int | None, ...]]  # None: of any size.


def open_graph(
    bundle: Bundle,
    role: GraphRole,
    precision: Precision,
    provider: Provider,
    *,
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    fixed_axes: Mapping[str, int] | None = None,
    profile: Path | None = None,
) -> Session:
    """Open the encoder or the decoder of a bundle; further arguments are those of `open_session`.

    With an encoder of a precision that the decoder isn't held in goes the float32 decoder.

    Raises:
        BundleError: The graph is missing, damaged or unsafe, or isn't what the manifest states.
        ProviderError: The provider can't be used, and why.
        MissingDependencyError: ONNX Runtime isn't installed.
    """
    found = bundle.manifest.precision_with(role, precision)
    with bundle.opening(role, found) as path:
        session = open_session(
            path,
            provider,
            provider_options=provider_options,
            threads=threads,
            fixed_axes=fixed_axes,
            profile=profile,
            sha256=bundle.graph(role, found).sha256,
        )
    inputs, outputs = _signature(bundle.manifest, role)
    # What passes between the decoder's two graphs is theirs alone; `check_pair` sees that it fits.
    if not (
        _fits(session.inputs, inputs, may_hold_more=role == "decoder_prompts")
        and _fits(session.outputs, outputs, may_hold_more=role == "decoder_image")
    ):
        raise BundleError(f"{path} isn't the {role} that its manifest describes: export the checkpoint again")
    if fixed_axes and not all(isinstance(size, int) for tensor in session.inputs for size in tensor.shape):
        named = ", ".join(fixed_axes)
        raise BundleError(f"{path} can't be given static shapes: its axes aren't called {named}; export it again")
    return session


def check_pair(image: Session, prompts: Session) -> None:
    """See that `decoder_image` gives `decoder_prompts` all it takes but for the prompts.

    Raises:
        BundleError: They are of two bundles.
    """
    given = {tensor.name: tensor.shape for tensor in image.outputs}
    taken = {tensor.name: tensor.shape for tensor in prompts.inputs if tensor.name not in _PROMPTS}
    if given != taken:
        raise BundleError(f"{image.source} and {prompts.source} don't fit together: export the checkpoint again")


def _signature(manifest: Manifest, role: GraphRole) -> tuple[_Shapes, _Shapes]:
    """Inputs and outputs as docs/bundle.md states them."""
    size, (channels, grid, _) = manifest.image_size, manifest.embedding_shape
    if role == "encoder":
        return {"image": (None, 3, size, size)}, {"image_embeddings": (None, channels, grid, grid)}
    embeddings: _Shapes = {"image_embeddings": (1, channels, grid, grid)}
    prompts: _Shapes = {"point_coords": (None, None, 2), "point_labels": (None, None)}
    answers: _Shapes = {"low_res_masks": (None, None, 4 * grid, 4 * grid), "iou_predictions": (None, None)}
    if role == "decoder_image":
        return embeddings, {}
    if role == "decoder_prompts":
        return {**prompts, "wanted_masks": (None,)}, answers
    masks: _Shapes = {"mask_input": (None, 1, 4 * grid, 4 * grid), "has_mask_input": (None,)}
    return {**embeddings, **prompts, **masks}, answers


def _fits(tensors: Sequence[Tensor], expected: _Shapes, *, may_hold_more: bool) -> bool:
    given = {tensor.name: tensor.shape for tensor in tensors}
    if not (given.keys() >= expected.keys() if may_hold_more else given.keys() == expected.keys()):
        return False
    return all(
        len(given[name]) == len(shape)
        and all(size is None or size == taken for size, taken in zip(shape, given[name], strict=True))
        for name, shape in expected.items()
    )
