"""From prompts on a few slices to objects in a volume."""

from __future__ import annotations

from samri_runtime.volume._propagation import FollowedObject, Propagation, SliceFinding, Target, propagate
from samri_runtime.volume._rule import RULE, Rule
from samri_runtime.volume._segment import VolumeSegmentation, segment_volume
from samri_runtime.volume._stack import SliceStack

__all__ = [
    "RULE",
    "FollowedObject",
    "Propagation",
    "Rule",
    "SliceFinding",
    "SliceStack",
    "Target",
    "VolumeSegmentation",
    "propagate",
    "segment_volume",
]
