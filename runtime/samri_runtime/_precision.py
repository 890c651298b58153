"""What `--precision auto` means: the precision that suits a provider, among those that proved to give fp32's masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samri.manifest import Manifest, Precision
from samri_runtime.machine import computes_int8_fast
from samri_runtime.providers import Provider

_HALF_FIRST: tuple[Precision, ...] = ("fp16", "fp32", "int8")
_FULL_FIRST: tuple[Precision, ...] = ("fp32", "int8", "fp16")
_INT8_FIRST: tuple[Precision, ...] = ("int8", "fp32", "fp16")

# What each provider computes fastest; docs/precision.md has the measurements. OpenVINO runs the int8 graphs slower than
# float32 ones: it wants another way of writing integers down. CPUs without instructions for integers are seen to below.
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


def precision_for(manifest: Manifest, provider: Provider) -> tuple[Precision, list[str]]:
    """The precision to run on a provider, and plain lines about it.

    The fastest of those that the bundle holds and that its exporter measured to reach their bar: a lower precision that
    was forced into a bundle is taken only by name, or when nothing else is there.

    Args:
        manifest: Of the bundle.
        provider: What really runs.
    """
    held = manifest.precisions("encoder")
    slow_int8 = provider == "cpu" and not computes_int8_fast()
    by_speed = _FULL_FIRST if slow_int8 else _BY_SPEED[provider]
    order = [precision for precision in by_speed if precision in held]
    proven = [precision for precision in order if is_proven(manifest, precision)]
    if not proven:
        # An encoder of any kind is missing: opening it says so.
        return (order or ["fp32"])[0], []
    chosen = proven[0]
    if slow_int8 and chosen == "fp32" and "int8" in proven:
        return chosen, ["precision fp32: this processor has no instructions for integers, and int8 would be no faster"]
    proof = None if chosen == "fp32" else _proof(manifest, chosen)
    if proof is None:
        return chosen, []
    dice = proof.get("mean_dice")
    measured = f"mean Dice {dice:.4f} with fp32's masks" if isinstance(dice, float) else "logits near fp32's"
    return chosen, [f"precision {chosen}, which suits {provider} ({measured}, measured at export)"]


def is_proven(manifest: Manifest, precision: Precision) -> bool:
    """Whether the bundle's exporter measured that a precision gives fp32's masks; fp32 itself needs no proof."""
    return precision == "fp32" or _proof(manifest, precision) is not None


def _proof(manifest: Manifest, precision: Precision) -> Mapping[str, Any] | None:
    """What was measured of a precision that reached its bar, or None."""
    variants = manifest.verification.get("variants", [])
    for entry in variants if isinstance(variants, list) else []:
        if isinstance(entry, dict) and entry.get("precision") == precision and entry.get("below_bar") == []:
            measured = entry.get("measured")
            return measured if isinstance(measured, dict) else None
    return None
