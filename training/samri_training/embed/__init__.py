"""`samri-embed`: slices in, a store of embeddings out, by as many processes as there are."""

from __future__ import annotations

from samri_training.embed._command import main
from samri_training.embed._division import WorkShare
from samri_training.embed._encoders import BundleEncoder, Encoder, TorchEncoder, checkpoint_facts
from samri_training.embed._run import EmbedOutcome, embed
from samri_training.embed._sources import SliceSet, find_sources

__all__ = [
    "BundleEncoder",
    "EmbedOutcome",
    "Encoder",
    "SliceSet",
    "TorchEncoder",
    "WorkShare",
    "checkpoint_facts",
    "embed",
    "find_sources",
    "main",
]
