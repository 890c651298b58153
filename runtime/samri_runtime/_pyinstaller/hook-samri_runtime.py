"""Collect the model that comes with SAMRI, and the packages that read and write images."""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("samri_runtime")
hiddenimports = ["nibabel", "cv2"]
