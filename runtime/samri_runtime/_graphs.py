"""A bundle's graph, opened: whole and unchanged, on its provider, with the inputs and outputs of its role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from samri.bundle import Bundle
from samri.contract import PROMPT_INPUTS, GraphRole, TensorSpec, graph_spec
from samri.errors import BundleError
from samri.manifest import Precision
from samri_runtime.providers import Provider, Session, Tensor, open_session

ONE_IMAGE = {"images": 1}
"""The encoder's free axis, which is 1 wherever a slice is encoded."""


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
    """Open a graph of a bundle; further arguments are those of `open_session`.

    If the bundle has no decoder in that precision, the fp32 decoder is opened.

    Raises:
        BundleError: The graph is missing, damaged or unsafe, or isn't what the manifest states.
        ProviderError: The provider can't be used, and why.
        MissingDependencyError: ONNX Runtime isn't installed.
    """
    with bundle.verified_graph(role, bundle.manifest.precision_with(role, precision)) as file:
        session = open_session(
            file, provider, provider_options=provider_options, threads=threads, fixed_axes=fixed_axes, profile=profile
        )
    manifest = bundle.manifest
    spec = graph_spec(role, image_size=manifest.image_size, embedding_shape=manifest.embedding_shape)
    # What passes between the decoder's two graphs is theirs alone; `check_pair` sees that it fits.
    if not (
        _fits(session.inputs, spec.inputs, may_have_more=role == "decoder_prompts")
        and _fits(session.outputs, spec.outputs, may_have_more=role == "decoder_image")
    ):
        raise BundleError(f"{file.path} isn't the {role} that its manifest describes: export the checkpoint again")
    if fixed_axes and not all(isinstance(size, int) for tensor in session.inputs for size in tensor.shape):
        named = ", ".join(fixed_axes)
        raise BundleError(f"{file.path} can't be given static shapes: its axes aren't called {named}; export it again")
    return session


def check_pair(image: Session, prompts: Session) -> None:
    """Check that `decoder_image` gives `decoder_prompts` all inputs but those of the prompts.

    Raises:
        BundleError: They are of two bundles.
    """
    outputs = {tensor.name: tensor.shape for tensor in image.outputs}
    inputs = {tensor.name: tensor.shape for tensor in prompts.inputs if tensor.name not in PROMPT_INPUTS}
    if outputs != inputs:
        raise BundleError(f"{image.source} and {prompts.source} don't fit together: export the checkpoint again")


def _fits(tensors: Sequence[Tensor], expected: Sequence[TensorSpec], *, may_have_more: bool) -> bool:
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    names = {tensor.name for tensor in expected}
    if not (shapes.keys() >= names if may_have_more else shapes.keys() == names):
        return False
    return all(_has_shape(shapes[tensor.name], tensor.axes) for tensor in expected)


def _has_shape(shape: tuple[int | str | None, ...], axes: tuple[int | str, ...]) -> bool:
    """Whether a shape is the expected one, in which a named axis may have any size."""
    return len(shape) == len(axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(axes, shape, strict=True)
    )
