"""From prompts on a few slices to objects in a volume."""

from samri_runtime.volume._propagation import FollowedObject, SliceFinding, Target, VolumeSegmentation, propagate
from samri_runtime.volume._rule import RULE, Rule
from samri_runtime.volume._stack import SliceStack

__all__ = ["RULE", "FollowedObject", "Rule", "SliceFinding", "SliceStack", "Target", "VolumeSegmentation", "propagate"]
