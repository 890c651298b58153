"""MR-like slices drawn from label maps: any contrast, any plane, exact masks (the idea of SynthSeg, Billot et al.).

`draw_slice` cuts a label map somewhere, gives each label an intensity that no scanner may ever have produced, and adds
texture, bias field, blur and noise; `draw_shapes` does the same with shapes that aren't anatomy at all.
`pick_targets` chooses what to segment in it; `visible_parts` takes every connected part of a label that can be
seen. All randomness comes from the generator passed in: the same seed draws the same slices.
"""

from samri_tiny.synthesis._draw import SyntheticSlice, draw_shapes, draw_slice
from samri_tiny.synthesis._label_maps import LabelMap, hold_out, read_label_maps
from samri_tiny.synthesis._sheet import contact_sheet
from samri_tiny.synthesis._targets import Target, contrast_to_noise, pick_targets, visible_parts

__all__ = [
    "LabelMap",
    "SyntheticSlice",
    "Target",
    "contact_sheet",
    "contrast_to_noise",
    "draw_shapes",
    "draw_slice",
    "hold_out",
    "pick_targets",
    "read_label_maps",
    "visible_parts",
]
