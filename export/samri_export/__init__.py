"""Export of SAM-family checkpoints to bundles of ONNX graphs (`pip install 'samri[cpu,export]'`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from samri.errors import MissingDependencyError
from samri.process import forbid_telemetry, thread_limit
from samri_export._choices import CONTRACTS, LEVELS, OFFERED_PRECISIONS, Contract, Level

if TYPE_CHECKING:
    from samri_export._export import export_bundle

forbid_telemetry()  # onnxsim imports onnxruntime.

__all__ = ["CONTRACTS", "LEVELS", "OFFERED_PRECISIONS", "Contract", "Level", "export_bundle"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `samri-export --help` shouldn't, and without torch there should be a way out.
    if name != "export_bundle":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import torch

        from samri_export._export import export_bundle
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"exporting needs {error.name}, which isn't installed: pip install 'samri[cpu,export]'"
        ) from error
    if (threads := thread_limit()) is not None and threads < torch.get_num_threads():
        torch.set_num_threads(threads)
    return export_bundle
