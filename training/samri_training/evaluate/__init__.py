"""Models compared on a test set: metrics in millimetres, by size of structure, with paired tests. `samri-evaluate`."""

from __future__ import annotations

from samri_training.evaluate._command import main
from samri_training.evaluate._evaluation import Evaluation, EvaluationRow, Protocol, evaluate, prompt_generator
from samri_training.evaluate._files import write_files
from samri_training.evaluate._metrics import METRICS, Measures, Metric, measure
from samri_training.evaluate._models import Model, ModelRequest, open_model, segment
from samri_training.evaluate._report import SIGNIFICANT, markdown_table, p_text, plain_name
from samri_training.evaluate._sources import EmbeddedSlices, SliceFolder, TestSource
from samri_training.evaluate._statistics import (
    Comparison,
    Spread,
    case_means,
    compare,
    compare_family,
    holm,
    rank_biserial,
    spread,
)
from samri_training.evaluate._summary import Group, PairedTest, Summary, summarize
from samri_training.slices import SIZES, Size, size_of

__all__ = [
    "METRICS",
    "SIGNIFICANT",
    "SIZES",
    "Comparison",
    "EmbeddedSlices",
    "Evaluation",
    "EvaluationRow",
    "Group",
    "Measures",
    "Metric",
    "Model",
    "ModelRequest",
    "PairedTest",
    "Protocol",
    "Size",
    "SliceFolder",
    "Spread",
    "Summary",
    "TestSource",
    "case_means",
    "compare",
    "compare_family",
    "evaluate",
    "holm",
    "main",
    "markdown_table",
    "measure",
    "open_model",
    "p_text",
    "plain_name",
    "prompt_generator",
    "rank_biserial",
    "segment",
    "size_of",
    "spread",
    "summarize",
    "write_files",
]
