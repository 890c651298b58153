"""The fastest settings among those whose masks are correct."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samri.errors import InputError
from samri.manifest import Manifest
from samri_runtime._open_model import is_proven
from samri_runtime._tuned import Tuned
from samri_runtime.bench._case import BenchCase, cases, precisions_of, thread_counts, usable_providers
from samri_runtime.bench._measure import Measurements

LEAST_DICE = 0.98
"""The mean Dice with fp32 on the CPU that a candidate must reach, as for `samri-export --precision`."""

OPENVINO_BF16 = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}'}
"""Takes half the time on processors with bf16 arithmetic; the Dice decides."""

_PROMPTS = 10
_CLEARLY = 0.95


def candidates(manifest: Manifest) -> list[BenchCase]:
    """The cases to try for a bundle: working providers, verified precisions, and several thread counts.

    A precision that was forced into the bundle, or never compared, isn't tried: the few boxes here are weaker evidence
    than the slices of the exporter.
    """
    cases_to_try: list[BenchCase] = []
    precisions = [precision for precision in precisions_of(manifest) if is_proven(manifest, precision)]
    for provider in usable_providers():
        threads = thread_counts() if provider in ("cpu", "openvino") else [None]
        cases_to_try += cases([provider], precisions, threads)
        if provider == "openvino":
            cases_to_try.append(BenchCase("openvino", "fp32", options=dict(OPENVINO_BF16), name="in bf16"))
    return cases_to_try


def seconds_of(sample: Measurements) -> float:
    """Seconds for one image and ten single boxes once warm, from medians: what tuning minimizes."""
    return float(np.median(sample.encodes) + _PROMPTS * np.median(sample.decodes[1]))


def best(samples: Sequence[Measurements]) -> tuple[Measurements, list[str]]:
    """The fastest candidate whose masks are correct, and a line for each rejected one.

    The first one, fp32 on the CPU, stays the best unless another is at least 5% faster, which is beyond noise.

    Raises:
        InputError: The masks of fp32 on the CPU are empty, so that nothing shows whether others are right.
    """
    reference = samples[0].agreement
    if reference is None or reference.informative == 0:
        raise InputError("the fp32 masks are empty or full here, which proves nothing: pass your own slice as --input")
    right, left_out = [], []
    for sample in samples:
        if sample.error is not None:
            left_out.append(f"{sample.case}: {sample.error}")
        elif _dice(sample) < LEAST_DICE:
            left_out.append(f"{sample.case}: Dice {_dice(sample):.4f} with fp32 on the CPU is below {LEAST_DICE}")
        else:
            right.append(sample)
    fastest = min(right, key=seconds_of)
    return (fastest if seconds_of(fastest) < _CLEARLY * seconds_of(right[0]) else right[0]), left_out


def settings_of(sample: Measurements) -> Tuned:
    """The settings of a sample."""
    case = sample.case
    return Tuned(case.provider, case.precision, case.threads, dict(case.options), round(_dice(sample), 6))


def _dice(sample: Measurements) -> float:
    return sample.agreement.mean_dice if sample.agreement else 0.0
