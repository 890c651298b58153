"""The torch side of SAM: checkpoints, and the encoder and decoder that training and export share.

Needs torch and segment-anything (`pip install 'samri[export]'`); nothing else in `samri` imports this package.
"""

from samri.model._architecture import Architecture, build_sam, infer_architecture
from samri.model._checkpoint import Checkpoint, encoder_sha256, load_checkpoint, weights_sha256
from samri.model._decoder import SamDecoder
from samri.model._encoder import ImageEncoder
from samri.model._state_dict import Weights, read_state_dict, read_weights
from samri.model.split_decoder import DecoderImageStage, DecoderPromptStage, image_stage_shapes

__all__ = [
    "Architecture",
    "Checkpoint",
    "DecoderImageStage",
    "DecoderPromptStage",
    "ImageEncoder",
    "SamDecoder",
    "Weights",
    "build_sam",
    "encoder_sha256",
    "image_stage_shapes",
    "infer_architecture",
    "load_checkpoint",
    "read_state_dict",
    "read_weights",
    "weights_sha256",
]
