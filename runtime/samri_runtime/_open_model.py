"""The graphs of a bundle, open on one provider: the decoder at once, the encoder when first needed.

Also the choice of `--precision auto`: the fastest precision on a provider among those verified against fp32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from samri.bundle import Bundle
from samri.contract import GraphRole
from samri.manifest import Graph, Manifest, Precision
from samri_runtime._decoders import Decoder, FlexibleDecoder, SplitDecoder, StaticDecoder, needs_static_shapes
from samri_runtime._graphs import ONE_IMAGE, open_graph
from samri_runtime.machine import computes_int8_fast
from samri_runtime.providers import BoundSession, Provider, Session, is_cpu

# `decoder_image` takes as long as the two-graph decoder saves in two or three prompts (docs/benchmarks.md).
_WORTH_PREPARING = 3
_HALF_FIRST: tuple[Precision, ...] = ("fp16", "fp32", "int8")
_FULL_FIRST: tuple[Precision, ...] = ("fp32", "int8", "fp16")
_INT8_FIRST: tuple[Precision, ...] = ("int8", "fp32", "fp16")

# The precisions of each provider, the fastest first; docs/precision.md has the measurements. OpenVINO runs the int8
# graphs slower than float32 ones, since it expects another quantization format. For CPUs without integer instructions,
# see below.
_BY_SPEED: dict[Provider, tuple[Precision, ...]] = {
    "cpu": _INT8_FIRST,
    "openvino": _FULL_FIRST,
    "cuda": _HALF_FIRST,
    "tensorrt": _HALF_FIRST,
    "rocm": _HALF_FIRST,
    "migraphx": _HALF_FIRST,
    "directml": _HALF_FIRST,
    "coreml": _HALF_FIRST,
}


class OpenModel:
    """The open graphs of a bundle.

    Args:
        bundle: The bundle.
        provider: A name, or `auto`.
        precision: A name, or `auto`.
        options: Passed to the provider, over SAMRI's defaults.
        threads: CPU threads per operator; None for one per core.
        static_shapes: Pad prompts to a few sizes; None for the providers that gain from it.
        prompts_per_image: Expected number of prompts per image, where known.

    Attributes:
        options: Those that were passed.
        precision: The one requested, or the one `auto` chose.
        decoder: Its first graph is opened at once: it is small and always needed, and shows whether the provider works.
        notes: Messages for the user on what `auto` chose.

    Raises:
        BundleError: The bundle lacks the precision, or one of its graphs is damaged.
        ProviderError: The provider can't be used, and why.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        precision: Precision | Literal["auto"],
        *,
        options: Mapping[str, str],
        threads: int | None,
        static_shapes: bool | None,
        prompts_per_image: int | None,
    ) -> None:
        self.options = options
        self._provider: Provider = provider
        self._threads = threads
        self._static_shapes = static_shapes
        self._prompts_per_image = prompts_per_image
        self.notes: list[str] = []
        self._bundle = bundle
        if precision != "auto":
            bundle.graph("encoder", precision)
        # With `auto` for both, the decoder shows where graphs run, which decides the precision; it may be opened twice.
        self.precision: Precision = "fp32" if precision == "auto" else precision
        if precision == "auto" and provider != "auto":
            self._take_precision_for(provider)
        self.decoder = self._open_decoder()
        if precision == "auto" and provider == "auto":
            opened = self._precision_with("decoder")
            self._take_precision_for(self.decoder.session.provider)
            if self._precision_with("decoder") != opened:
                self.decoder = self._open_decoder()
        self._encoder: Session | BoundSession | None = None
        self._opening = threading.Lock()

    def graphs(self) -> dict[str, Graph]:
        """The graphs that may run, by role. Those of the decoder are fp32 where the bundle has no others to match."""
        roles: tuple[GraphRole, ...] = ("encoder", "decoder")
        if isinstance(self.decoder, SplitDecoder):
            roles = (*roles, "decoder_image", "decoder_prompts")
        return {role: self._bundle.graph(role, self._precision_with(role)) for role in roles}

    def encoder(self) -> Session | BoundSession:
        """The encoder's session, opened by the first call; safe with several threads."""
        with self._opening:
            if self._encoder is None:
                fixed = isinstance(self.decoder, StaticDecoder)
                self._encoder = self._open("encoder", ONE_IMAGE).bound() if fixed else self._open("encoder")
            return self._encoder

    def close(self) -> None:
        """Release the sessions; the object is of no use afterwards."""
        self._encoder = None
        del self.decoder  # It refers back to this object: without this, only garbage collection would free it.

    def sessions(self) -> list[tuple[str, Session | BoundSession]]:
        """The sessions opened so far, by role."""
        opened: list[tuple[str, Session | BoundSession | None]] = [
            ("encoder", self._encoder),
            ("decoder", self.decoder.session),
        ]
        return [(role, session) for role, session in opened if session is not None]

    def _precision_with(self, role: GraphRole) -> Precision:
        return self._bundle.manifest.precision_with(role, self.precision)

    def _take_precision_for(self, provider: Provider) -> None:
        self.precision, chosen = precision_for(self._bundle.manifest, provider)
        self.notes += chosen

    def _open_decoder(self) -> Decoder:
        """The two-graph decoder on the CPU, for images with enough prompts; elsewhere the whole one.

        On other devices the output of `decoder_image` would be copied from the device and back, so it is slower there.
        """
        static, two = self._static_shapes, self._pays_to_prepare() and self._holds_two_graphs()
        if two and not static and is_cpu(self._provider):
            # Opened at the first prompt with a mask, but checked for damage now.
            self._bundle.graph_path("decoder", self._precision_with("decoder"))
            return self._in_two_graphs(partial(self._open, "decoder"))
        session = self._open("decoder")
        if static is None:
            static = needs_static_shapes(session, self.options)
        if static:
            return StaticDecoder(session, partial(self._open, "decoder"))
        if two and session.provider == "cpu":  # `auto` found no accelerator that works.
            return self._in_two_graphs(lambda: session)
        return FlexibleDecoder(session)

    def _in_two_graphs(self, open_whole: Callable[[], Session]) -> SplitDecoder:
        prompts = self._open("decoder_prompts")
        return SplitDecoder(prompts, self._bundle.manifest.masks, partial(self._open, "decoder_image"), open_whole)

    def _pays_to_prepare(self) -> bool:
        """Whether an image gets enough prompts for `decoder_image`, which does its share of the work once per image."""
        expected = self._prompts_per_image
        return expected is None or expected >= _WORTH_PREPARING

    def _holds_two_graphs(self) -> bool:
        manifest, precision = self._bundle.manifest, self._precision_with("decoder")
        return None not in (manifest.find("decoder_image", precision), manifest.find("decoder_prompts", precision))

    def _open(self, role: GraphRole, fixed_axes: Mapping[str, int] | None = None) -> Session:
        return open_graph(
            self._bundle,
            role,
            self.precision,
            self._provider,
            provider_options=self.options,
            threads=self._threads,
            fixed_axes=fixed_axes,
        )


def precision_for(manifest: Manifest, provider: Provider) -> tuple[Precision, list[str]]:
    """The precision to run on a provider, and notes for the user.

    It is the fastest one in the bundle whose masks agreed with fp32 at export. A lower precision that was forced into a
    bundle is used only when requested by name, or when there is no other.

    Args:
        manifest: Manifest of the bundle.
        provider: The provider that runs; not `auto`.
    """
    available = manifest.precisions("encoder")
    slow_int8 = provider == "cpu" and not computes_int8_fast()
    by_speed = _FULL_FIRST if slow_int8 else _BY_SPEED[provider]
    order = [precision for precision in by_speed if precision in available]
    proven = [precision for precision in order if is_proven(manifest, precision)]
    if not proven:
        # There is no encoder at all: opening it raises the error.
        return (order or ["fp32"])[0], []
    chosen = proven[0]
    if slow_int8 and chosen == "fp32" and "int8" in proven:
        return chosen, ["precision fp32: this processor has no integer instructions, so int8 would be no faster"]
    proof = None if chosen == "fp32" else _proof(manifest, chosen)
    if proof is None:
        return chosen, []
    dice = proof.get("mean_dice")
    measured = f"mean Dice {dice:.4f} with fp32" if isinstance(dice, float) else "logits close to fp32"
    return chosen, [f"precision {chosen}, which suits {provider} ({measured}, measured at export)"]


def is_proven(manifest: Manifest, precision: Precision) -> bool:
    """Whether the masks of a precision agreed with fp32 at export; true for fp32 itself."""
    return precision == "fp32" or _proof(manifest, precision) is not None


def _proof(manifest: Manifest, precision: Precision) -> Mapping[str, Any] | None:
    """The measurements of a precision that passed its thresholds at export, or None."""
    variants = manifest.verification.get("variants", [])
    for entry in variants if isinstance(variants, list) else []:
        if isinstance(entry, dict) and entry.get("precision") == precision and entry.get("below_bar") == []:
            measured = entry.get("measured")
            return measured if isinstance(measured, dict) else None
    return None
