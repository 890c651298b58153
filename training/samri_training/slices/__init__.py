"""The slice dataset: 2-D images and label maps in files, matched by their names.

    dataset_A/{training,validation,testing}/<case>_img_<k>.nii.gz
    dataset_A/{training,validation,testing}/<case>_seg_<k>.nii.gz

`samri-prepare` writes it, with a `slices.json` in each of the folders; a published dataset without one is read as well.
"""

from __future__ import annotations

from samri_training.slices._layout import LabelledSlice, SlicePair, SliceSource, find_slices, image_files, match_slices
from samri_training.slices._scans import (
    SIZES,
    Size,
    check_same_grid,
    gray,
    label_map,
    one_slice,
    size_of,
    slice_spacing,
)
from samri_training.slices._splits import KNOWN_NAMES, SPLITS, Split, split_named, split_of

__all__ = [
    "KNOWN_NAMES",
    "SIZES",
    "SPLITS",
    "LabelledSlice",
    "Size",
    "SlicePair",
    "SliceSource",
    "Split",
    "check_same_grid",
    "find_slices",
    "gray",
    "image_files",
    "label_map",
    "match_slices",
    "one_slice",
    "size_of",
    "slice_spacing",
    "split_named",
    "split_of",
]
