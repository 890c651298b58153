"""Where the nodes of a graph ran, read from ONNX Runtime's profile of one run.

A session with a provider doesn't run everything there: nodes that the provider lacks go to the next one in the list.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from samri.errors import ProviderError
from samri_runtime.providers._session import Session

# The node types that SAM spends its time in, with their fused and quantized variants (FusedMatMul, QLinearConv,
# MultiHeadAttention ...). A subgraph that a provider compiled as a whole appears as one node of that provider.
_HEAVY = re.compile(r"MatMul|Gemm|Conv(?!ert)|Attention|Einsum")
# Their time is that of the nodes inside them, which are listed too.
_CONTROL_FLOW = {"If", "Loop", "Scan"}


@dataclass(frozen=True)
class Share:
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
    shares: tuple[Share, ...]
    elsewhere: Mapping[str, int]

    @property
    def kept(self) -> bool:
        """Whether nodes ran on the provider of the session, and no compute-heavy ones ran elsewhere."""
        return not self.elsewhere and any(share.execution_provider == self.promised for share in self.shares)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kept": self.kept,
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
    shares = [Share(name, count, round(microseconds[name] / 1000, 3)) for name, count in nodes.items()]
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
