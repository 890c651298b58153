"""`samri-tiny`, the demo model: a small SAM trained from nothing on slices drawn from label maps.

Stage 1 (`pretrain`) trains all of it on synthetic slices; stage 2 is SAMRI's own procedure on top: the encoder frozen,
its embeddings cached, the decoder fine-tuned. `python -m samri_tiny` runs both and writes the bundle.
"""

from samri_tiny.architecture import tiny_sam
from samri_tiny.plan import Phase, Plan
from samri_tiny.pretraining import pretrain

__all__ = ["Phase", "Plan", "pretrain", "tiny_sam"]
