"""Trial runs: a bundle's graphs, or the probe graph, once each, and where they ran."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samri.bundle import Bundle
from samri.contract import (
    Feeds,
    Floats,
    GraphRole,
    decoder_feeds,
    decoder_image_feeds,
    decoder_prompts_feeds,
    encoder_feeds,
)
from samri.manifest import Manifest, Precision, Role
from samri.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT
from samri_runtime._graphs import check_pair, open_graph
from samri_runtime.doctor._placement import Placement, profiled_run
from samri_runtime.models import locate
from samri_runtime.providers._names import Provider
from samri_runtime.providers._probe_graph import probe_feeds
from samri_runtime.providers._session import Session, open_probe


@dataclass(frozen=True)
class TrialGraph:
    """A graph to try and what to run it on."""

    bundle: Bundle
    role: GraphRole
    precision: Precision
    make_feeds: Callable[[], Feeds]

    def runs_on(self, provider: Provider) -> bool:
        """Predictors open the decoder's two graphs on the CPU alone."""
        return provider == "cpu" or self.role in ("encoder", "decoder")


@dataclass(frozen=True)
class Trial:
    """One run of one graph: `role` and `precision` of a bundle's graph, what it ran on, and where its nodes went."""

    role: Role
    precision: Precision
    provider: Provider
    placement: Placement
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"role": self.role, "precision": self.precision, "provider": self.provider, **self.placement.to_json()}


def trial_graphs(model: str | Path, precision: Precision = "fp32") -> list[TrialGraph]:
    """The graphs that a predictor may open, checked, with a made-up image and one box to run them on.

    Raises:
        BundleError: The bundle can't be used, or has no encoder or decoder.
    """
    bundle = Bundle.open(locate(model))
    manifest = bundle.manifest
    feeds: dict[GraphRole, Callable[[], Feeds]] = {
        "encoder": lambda: encoder_feeds(_image(manifest)),
        "decoder": lambda: decoder_feeds(_embedding(manifest), *_one_box(manifest)),
        "decoder_image": lambda: decoder_image_feeds(_embedding(manifest)),
        "decoder_prompts": partial(_prompt_stage_feeds, bundle, precision),
    }
    held = {role: manifest.precision_with(role, precision) for role in feeds}
    needed = [role for role in feeds if role in ("encoder", "decoder") or manifest.find(role, held[role])]
    for role in needed:
        bundle.graph_path(role, held[role])
    return [TrialGraph(bundle, role, held[role], feeds[role]) for role in needed]


def try_graph(graph: TrialGraph, provider: Provider, options: Mapping[str, str]) -> Trial:
    """Run a graph once.

    Raises:
        ProviderError: The provider can't be used, or failed while running.
        BundleError: ONNX Runtime can't load the graph, or it isn't what the manifest states.
    """

    def opener(profile: Path) -> Session:
        return open_graph(
            graph.bundle, graph.role, graph.precision, provider, provider_options=options, profile=profile
        )

    session, placement = profiled_run(opener, graph.make_feeds)
    return Trial(graph.role, graph.precision, session.provider, placement, session.notes)


def try_probe(provider: Provider, options: Mapping[str, str]) -> tuple[Session, Placement]:
    """Run the probe graph once.

    Raises:
        ProviderError: The provider can't be used, failed while running, or gave wrong numbers.
    """

    def opener(profile: Path) -> Session:
        return open_probe(provider, provider_options=options, profile=profile)

    return profiled_run(opener, probe_feeds)


def strays(placement: Placement) -> str | None:
    """One line on what ran where it shouldn't, or None when the provider's promise was kept."""
    if placement.kept:
        return None
    if not placement.elsewhere:
        return f"nothing ran on {placement.promised}"
    nodes = ", ".join(f"{count} {kind}" for kind, count in placement.elsewhere.items())
    others = [share.execution_provider for share in placement.shares if share.execution_provider != placement.promised]
    return f"{nodes} ran on {' and '.join(others)} instead of {placement.promised}"


def broken_promises(trials: Sequence[Trial]) -> list[str]:
    """A line for each graph whose heavy nodes ran elsewhere."""
    lines = [(trial, strays(trial.placement)) for trial in trials]
    return [f"the {trial.role} is not all on {trial.provider}: {line}" for trial, line in lines if line]


def _image(manifest: Manifest) -> Floats:
    return _waves((1, 3, manifest.image_size, manifest.image_size))


def _embedding(manifest: Manifest) -> Floats:
    return _waves((1, *manifest.embedding_shape))


def _waves(shape: tuple[int, ...]) -> Floats:
    waves: Floats = np.sin(np.linspace(0, 40, math.prod(shape), dtype=np.float32)).reshape(shape)
    return waves


def _one_box(manifest: Manifest) -> tuple[Floats, Floats]:
    side = manifest.image_size
    coords = np.array([[[side / 4, side / 4], [side / 2, side / 2]]], dtype=np.float32)
    return coords, np.array([[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]], dtype=np.float32)


def _prompt_stage_feeds(bundle: Bundle, precision: Precision) -> Feeds:
    """The outputs of `decoder_image` for the embedding, and the box, for `decoder_prompts`."""
    image, prompts = (open_graph(bundle, role, precision, "cpu") for role in ("decoder_image", "decoder_prompts"))
    check_pair(image, prompts)
    stage = image.run(decoder_image_feeds(_embedding(bundle.manifest)))
    return decoder_prompts_feeds(stage, *_one_box(bundle.manifest), np.zeros(1, dtype=np.int64))
