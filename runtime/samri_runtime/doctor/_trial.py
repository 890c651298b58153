"""Trial runs of the graphs of a bundle, or of the probe graph, once each, and where their nodes ran.

A session with a provider doesn't run everything there: nodes that the provider lacks go to the next one in the list.
ONNX Runtime's profile of the run tells which did.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from samri.errors import ProviderError
from samri.manifest import Manifest, Precision, Role
from samri.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT
from samri_runtime._graphs import check_pair, open_graph
from samri_runtime.models import locate
from samri_runtime.providers import Session
from samri_runtime.providers._names import Provider
from samri_runtime.providers._opening import open_probe
from samri_runtime.providers._probe_graph import probe_feeds

# The node types that SAM spends its time in, with their fused and quantized variants (FusedMatMul, QLinearConv,
# MultiHeadAttention ...). A subgraph that a provider compiled as a whole appears as one node of that provider.
_HEAVY = re.compile(r"MatMul|Gemm|Conv(?!ert)|Attention|Einsum")
# Their time is that of the nodes inside them, which are listed too.
_CONTROL_FLOW = {"If", "Loop", "Scan"}


@dataclass(frozen=True)
class TrialGraph:
    """A graph to run, with a function that makes its inputs."""

    bundle: Bundle
    role: GraphRole
    precision: Precision
    make_feeds: Callable[[], Feeds]

    def runs_on(self, provider: Provider) -> bool:
        """Whether a predictor would run it on `provider`: the two-graph decoder is for the CPU alone."""
        return provider == "cpu" or self.role in ("encoder", "decoder")


@dataclass(frozen=True)
class Trial:
    """One run of one graph: its role, its precision, its provider, and where its nodes ran."""

    role: Role
    precision: Precision
    provider: Provider
    placement: Placement
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"role": self.role, "precision": self.precision, "provider": self.provider, **self.placement.to_json()}


def trial_graphs(model: str | Path, precision: Precision = "fp32") -> list[TrialGraph]:
    """The graphs that a predictor may open, checked, with a synthetic image and one box to run them on.

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
    precisions = {role: manifest.precision_with(role, precision) for role in feeds}
    needed = [role for role in feeds if role in ("encoder", "decoder") or manifest.find(role, precisions[role])]
    for role in needed:
        bundle.graph_path(role, precisions[role])
    return [TrialGraph(bundle, role, precisions[role], feeds[role]) for role in needed]


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


def misplaced_nodes(placement: Placement) -> str | None:
    """One line on heavy nodes that ran on other providers, or None."""
    if placement.as_promised:
        return None
    if not placement.elsewhere:
        return f"nothing ran on {placement.promised}"
    nodes = ", ".join(f"{count} {kind}" for kind, count in placement.elsewhere.items())
    others = [share.execution_provider for share in placement.shares if share.execution_provider != placement.promised]
    return f"{nodes} ran on {' and '.join(others)} instead of {placement.promised}"


def misplaced_graphs(trials: Sequence[Trial]) -> list[str]:
    """A line for each graph with heavy nodes that ran on other providers."""
    lines = [(trial, misplaced_nodes(trial.placement)) for trial in trials]
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


@dataclass(frozen=True)
class NodeShare:
    """One provider's part of a run: ONNX Runtime's name of it, the number of nodes it ran, and their milliseconds."""

    execution_provider: str
    nodes: int
    milliseconds: float


@dataclass(frozen=True)
class Placement:
    """Where the nodes of one run ran.

    Attributes:
        promised: ONNX Runtime's name of the provider of the session.
        shares: One for each provider that ran nodes, the one with the most time first.
        elsewhere: Compute-heavy nodes that ran on another provider: node type -> count.
    """

    promised: str
    shares: tuple[NodeShare, ...]
    elsewhere: Mapping[str, int]

    @property
    def as_promised(self) -> bool:
        """Whether nodes ran on the provider of the session, and no compute-heavy ones ran elsewhere."""
        return not self.elsewhere and any(share.execution_provider == self.promised for share in self.shares)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kept": self.as_promised,
            "elsewhere": dict(self.elsewhere),
            "shares": [
                {"execution_provider": share.execution_provider, "nodes": share.nodes, "ms": share.milliseconds}
                for share in self.shares
            ],
        }


def profiled_run(
    opener: Callable[[Path], Session], make_feeds: Callable[[], Mapping[str, NDArray[Any]]]
) -> tuple[Session, Placement]:
    """Run a graph once and record where its nodes ran.

    Args:
        opener: Opens the session, from the prefix of the profile that it writes.
        make_feeds: Makes the inputs, by name, once the session is open.

    Raises:
        ProviderError: The provider can't be used, or ONNX Runtime wrote no profile that can be read.
    """
    with tempfile.TemporaryDirectory(prefix="samri-profile-", ignore_cleanup_errors=True) as folder:
        session = opener(Path(folder) / "run")
        try:
            session.run(make_feeds())
        finally:
            profile = session.end_profiling()
        return session, read_profile(profile, session.execution_provider)


def read_profile(path: Path, promised: str) -> Placement:
    """Count nodes and time by provider in a profile of ONNX Runtime.

    Raises:
        ProviderError: It isn't the JSON that ONNX Runtime writes.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        raise ProviderError(f"ONNX Runtime's profile {path} can't be read: {error}") from error
    if not isinstance(events, list):
        raise ProviderError(f"ONNX Runtime's profile {path} isn't a list of events")
    nodes: Counter[str] = Counter()
    microseconds: defaultdict[str, float] = defaultdict(float)
    elsewhere: Counter[str] = Counter()
    for provider, kind, duration in filter(None, map(_node_run, events)):
        nodes[provider] += 1
        microseconds[provider] += 0 if kind in _CONTROL_FLOW else duration
        if provider != promised and _HEAVY.search(kind):
            elsewhere[kind] += 1
    shares = [NodeShare(name, count, round(microseconds[name] / 1000, 3)) for name, count in nodes.items()]
    shares.sort(key=lambda share: share.milliseconds, reverse=True)
    return Placement(promised, tuple(shares), dict(elsewhere.most_common()))


def _node_run(event: Any) -> tuple[str, str, float] | None:
    """Provider, node type and microseconds of one node's run; None for events of other kinds."""
    if not isinstance(event, dict) or event.get("cat") != "Node":
        return None
    arguments, duration = event.get("args"), event.get("dur")
    if not isinstance(arguments, dict) or not str(event.get("name", "")).endswith("_kernel_time"):
        return None
    provider, kind = arguments.get("provider"), arguments.get("op_name")
    if not isinstance(provider, str) or not isinstance(kind, str) or not isinstance(duration, int | float):
        return None
    return provider, kind, float(duration)
