"""`samri-tiny`, the demo model: a small SAM trained from nothing on slices drawn from label maps.

Stage 1 (`pretrain`) trains all of it on synthetic slices; stage 2 is SAMRI's own procedure on top: the encoder frozen,
its embeddings cached, the decoder fine-tuned. `python -m samri_training.recipes.tiny` runs both and writes the bundle.
"""

from samri_training.recipes.tiny.architecture import tiny_sam
from samri_training.recipes.tiny.plan import Phase, Plan
from samri_training.recipes.tiny.pretraining import pretrain

__all__ = ["Phase", "Plan", "pretrain", "tiny_sam"]
