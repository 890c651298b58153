"""Relatives of SAM that SAMRI can't read, recognized by names that only their tensors have, and the way out of each."""

from __future__ import annotations

import re
from collections.abc import Iterable

_READS = "SAMRI reads SAM's own architecture (ViT-B, ViT-L, ViT-H, or smaller ones of the kind)"

_FAMILIES = (
    (
        r"(^|\.)(vision_backbone\.trunk|language_backbone|geometry_encoder|detector_model|tracker_model)\."
        r"|^(detector|tracker)\.",
        f"a SAM 3 model, which is not supported: {_READS}",
    ),
    (
        r"(^|\.)(memory_attention|memory_encoder|sam_mask_decoder|sam_prompt_encoder|image_encoder\.trunk"
        r"|vision_encoder\.backbone|vision_encoder\.neck\.fpn_\w+)(\.|$)|(^|\.)maskmem_tpos_enc$",
        f"a SAM 2 model (SAM 2.1 and MedSAM2 are of the kind), which is not supported: {_READS}",
    ),
    (
        r"(^|\.)mask_decoder\.(hf_token|hf_mlp|hq_token|hq_mask_mlp|compress_vit_feat|compress_vit_conv\d|embedding_encoder"
        r"|embedding_maskfeature|encoder_conv\d|mask_conv\d)(\.|$)",
        "a SAM-HQ model, whose mask decoder has more parts than SAM's: not supported, give a SAM checkpoint",
    ),
    (
        r"(^|\.)(lora_\w+|\w+_lora|linear_[ab]_[qkv]|w_[ab]_\d+|qkv\.qkv|base_layer)(\.|$)",
        "holds low-rank adapters (LoRA): merge them into the weights first (with PEFT, model.merge_and_unload()), "
        "then save model.state_dict()",
    ),
    (
        r"(?i)adapter(\.|_|\d|$)|(^|\.)prompt_generator\.",
        "holds adapters inside the encoder (as Medical SAM Adapter and SAM-Med2D have), which change what it computes: "
        f"not supported, {_READS}",
    ),
    (
        r"(^|\.)image_encoder\.(patch_embed\.seq|layers\.\d+\.(blocks\.\d+|downsample)\.)",
        f"a TinyViT encoder (MobileSAM, LiteMedSAM), which is not supported: {_READS}",
    ),
    (
        r"(^|\.)image_encoder\.(features|stages)\.\d+.*(token_mixer|channel_mixer)|(^|\.)image_encoder\.fuse_stage\d",
        f"a RepViT encoder (EdgeSAM, RepViT-SAM), which is not supported: {_READS}",
    ),
    (
        r"(^|\.)image_encoder\.(backbone\.(input_stem|stages)|norm$|neck\.(input_ops|middle|output_ops))",
        f"an EfficientViT-SAM model, which is not supported: {_READS}",
    ),
)


def family_of(names: Iterable[str]) -> str | None:
    """A sentence on a model that isn't SAM's own, from its tensors' names; None if no name gives it away."""
    names = list(names)
    for pattern, sentence in _FAMILIES:
        if any(re.search(pattern, name) for name in names):
            return sentence
    blocks = [name for name in names if re.search(r"(^|\.)image_encoder\.blocks\.\d+\.attn\.", name)]
    if blocks and not any("rel_pos" in name for name in blocks):
        return f"an encoder without relative positions (EfficientSAM is of the kind), which is not supported: {_READS}"
    return None
