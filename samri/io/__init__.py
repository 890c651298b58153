"""Scans in, masks and pictures out: NIfTI through nibabel, MGH, and PNG, JPEG and TIFF through OpenCV.

Both are imported only by the functions that need them: `pip install 'samri[io]'`.
"""

from __future__ import annotations

from samri.io._label_names import write_label_table
from samri.io._nifti import nibabel_version
from samri.io._overlay import PALETTE, draw_overlay, montage, side_by_side
from samri.io._raster import write_png
from samri.io._scan import MissingFrameError, Scan, ScanKind, read_scan, scan_name, write_mask

__all__ = [
    "PALETTE",
    "MissingFrameError",
    "Scan",
    "ScanKind",
    "draw_overlay",
    "montage",
    "nibabel_version",
    "read_scan",
    "scan_name",
    "side_by_side",
    "write_label_table",
    "write_mask",
    "write_png",
]
