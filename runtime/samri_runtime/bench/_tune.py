"""Choosing what is fastest here among what is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samri.errors import InputError
from samri.manifest import Manifest
from samri_runtime._precision import is_proven
from samri_runtime._tuned import Tuned
from samri_runtime.bench._case import Case, cases, precisions_of, thread_counts, usable_providers
from samri_runtime.bench._measure import Sample

LEAST_DICE = 0.98
"""Mean Dice with the masks of fp32 on the CPU that a candidate must reach: the gate of `samri-export --precision`."""

OPENVINO_BF16 = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}'}
"""Half the time on processors with bf16 arithmetic; the gate decides."""

_PROMPTS = 10
_CLEARLY = 0.95


def candidates(manifest: Manifest) -> list[Case]:
    """What to try for a bundle: providers that work, precisions that proved right, and several numbers of threads.

    A precision that was forced into the bundle, or never compared, isn't tried: a few boxes here prove less than the
    slices that the exporter takes.
    """
    found: list[Case] = []
    precisions = [precision for precision in precisions_of(manifest) if is_proven(manifest, precision)]
    for provider in usable_providers():
        threads = thread_counts() if provider in ("cpu", "openvino") else [None]
        found += cases([provider], precisions, threads)
        if provider == "openvino":
            found.append(Case("openvino", "fp32", options=dict(OPENVINO_BF16), name="in bf16"))
    return found


def effort_of(sample: Sample) -> float:
    """Seconds of one image and ten boxes asked one by one, once warm: medians. What tuning makes small."""
    return float(np.median(sample.encodes) + _PROMPTS * np.median(sample.decodes[1]))


def best(samples: Sequence[Sample]) -> tuple[Sample, list[str]]:
    """The fastest candidate whose masks are right, and a line for each that was left out.

    The first one, fp32 on the CPU, stays the best unless another is clearly faster: noise is no reason.

    Raises:
        InputError: The masks of fp32 on the CPU are empty, so that nothing shows whether others are right.
    """
    reference = samples[0].agreement
    if reference is None or reference.telling == 0:
        raise InputError("fp32's own masks are empty or full here, which proves nothing: give --input a slice of yours")
    right, left_out = [], []
    for sample in samples:
        if sample.error is not None:
            left_out.append(f"{sample.case}: {sample.error}")
        elif _dice(sample) < LEAST_DICE:
            left_out.append(f"{sample.case}: Dice {_dice(sample):.4f} with fp32 on the CPU is below {LEAST_DICE}")
        else:
            right.append(sample)
    fastest = min(right, key=effort_of)
    return (fastest if effort_of(fastest) < _CLEARLY * effort_of(right[0]) else right[0]), left_out


def settings_of(sample: Sample) -> Tuned:
    """What to keep of a sample."""
    case = sample.case
    return Tuned(case.provider, case.precision, case.threads, dict(case.options), round(_dice(sample), 6))


def _dice(sample: Sample) -> float:
    return sample.agreement.mean_dice if sample.agreement else 0.0
