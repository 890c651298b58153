"""A bundle's graphs, opened on one provider in one precision: the decoder at once, the encoder when it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from samri.bundle import Bundle
from samri.contract import GraphRole
from samri.manifest import Graph, Precision
from samri_runtime._decoders import Decoder, FlexibleDecoder, SplitDecoder, StaticDecoder, needs_static_shapes
from samri_runtime._graphs import ONE_IMAGE, open_graph
from samri_runtime._precision import precision_for
from samri_runtime.providers import BoundSession, Provider, Session, is_cpu

# Preparing an image costs what the whole decoder loses in two or three prompts (docs/benchmarks.md).
_WORTH_PREPARING = 3


@dataclass(frozen=True)
class Where:
    """Where graphs run, as it was asked for.

    Attributes:
        provider: A name, or `auto`.
        options: Passed to the provider, over SAMRI's defaults.
        threads: CPU threads of an operator; None for one a core.
        static_shapes: Pad prompts to a few sizes; None for providers that gain by it.
        prompts_per_image: How many will be asked of an image, where that is known.
    """

    provider: Provider
    options: Mapping[str, str]
    threads: int | None
    static_shapes: bool | None
    prompts_per_image: int | None = None


class OpenModel:
    """The opened graphs.

    Attributes:
        where: As it was asked for.
        precision: That was asked for, or that `auto` took.
        decoder: Its first graph is opened from the start: it is small and always needed, and shows at once whether the
            provider keeps its promise.
        notes: Plain lines on what `auto` took.

    Raises:
        BundleError: The bundle lacks the precision, or a graph of it is damaged.
        ProviderError: The provider can't be used, and why.
    """

    def __init__(self, bundle: Bundle, where: Where, precision: Precision | Literal["auto"]) -> None:
        self.where = where
        self.notes: list[str] = []
        self._bundle = bundle
        if precision != "auto":
            bundle.graph("encoder", precision)
        # Which precision suits `auto` is known when it is known where the decoder runs; by then it may be another one.
        self.precision: Precision = "fp32" if precision == "auto" else precision
        if precision == "auto" and where.provider != "auto":
            self._take_precision_for(where.provider)
        self.decoder = self._open_decoder()
        if precision == "auto" and where.provider == "auto":
            opened = self._precision_with("decoder")
            self._take_precision_for(self.decoder.session.provider)
            if self._precision_with("decoder") != opened:
                self.decoder = self._open_decoder()
        self._encoder: Session | BoundSession | None = None
        self._opening = threading.Lock()

    def graphs(self) -> dict[str, Graph]:
        """Those that may run, by role; where the decoder isn't held in the encoder's precision, fp32 goes with it."""
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
        """Let go of the sessions; nothing can be asked afterwards."""
        self._encoder = None
        del self.decoder  # It holds a way back here, so it would live until the garbage is collected.

    def sessions(self) -> list[tuple[str, Session | BoundSession]]:
        """Those opened so far, by role."""
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
        """In two graphs on the CPU, for images that are asked often enough.

        Elsewhere the image side would travel to a device and back, and the whole decoder is faster.
        """
        static, two = self.where.static_shapes, self._pays_to_prepare() and self._holds_two_graphs()
        if two and not static and is_cpu(self.where.provider):
            # Opened when a prompt with a mask comes; a damaged one is refused now.
            self._bundle.graph_path("decoder", self._precision_with("decoder"))
            return self._in_two_graphs(partial(self._open, "decoder"))
        session = self._open("decoder")
        if static is None:
            static = needs_static_shapes(session, self.where.options)
        if static:
            return StaticDecoder(session, partial(self._open, "decoder"))
        if two and session.provider == "cpu":  # `auto` found no accelerator that works.
            return self._in_two_graphs(lambda: session)
        return FlexibleDecoder(session)

    def _in_two_graphs(self, open_whole: Callable[[], Session]) -> SplitDecoder:
        prompts = self._open("decoder_prompts")
        return SplitDecoder(prompts, self._bundle.manifest.masks, partial(self._open, "decoder_image"), open_whole)

    def _pays_to_prepare(self) -> bool:
        """Whether an image is asked often enough for the graph that computes its share of the decoder beforehand."""
        asked = self.where.prompts_per_image
        return asked is None or asked >= _WORTH_PREPARING

    def _holds_two_graphs(self) -> bool:
        manifest, precision = self._bundle.manifest, self._precision_with("decoder")
        return None not in (manifest.find("decoder_image", precision), manifest.find("decoder_prompts", precision))

    def _open(self, role: GraphRole, fixed_axes: Mapping[str, int] | None = None) -> Session:
        return open_graph(
            self._bundle,
            role,
            self.precision,
            self.where.provider,
            provider_options=self.where.options,
            threads=self.where.threads,
            fixed_axes=fixed_axes,
        )
