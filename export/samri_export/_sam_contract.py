"""The decoder behind the interface that Meta published, for the applications that load `sam_onnx_example`'s model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samri.model import SamDecoder


class SamContractDecoder(nn.Module):
    """One prompt on one image, masks at the image's own size.

    Facts from segment-anything's `SamOnnxModel` and its `--return-single-mask` option; two differences: the region that
    the image fills is computed in the graph from `orig_im_size`, where tracing froze it to one aspect ratio, and in
    float64 like `ResizeLongestSide`, so that it never comes out a pixel off.
    """

    handicap: Tensor

    def __init__(self, decoder: SamDecoder, *, single_mask: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.single_mask = single_mask
        handicap = torch.zeros(decoder.mask_decoder.num_mask_tokens)
        handicap[0] = 1000.0
        self.register_buffer("handicap", handicap, persistent=False)

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode one prompt.

        Args:
            image_embeddings: (1, C, G, G).
            point_coords: (1, N, 2), (x, y) in the frame of the resized image (longest side S), padding point included.
            point_labels: (1, N): 1, 0, 2, 3, and -1 for the padding point when there is no box.
            mask_input: (1, 1, 4G, 4G) logits.
            has_mask_input: (1,), 1 or 0.
            orig_im_size: (2,), height and width of the image.

        Returns:
            masks (1, M, H, W) logits, iou_predictions (1, M), low_res_masks (1, M, 4G, 4G); M is 1 for a single mask.
        """
        low_res, scores = self.decoder(image_embeddings, point_coords, point_labels, mask_input, has_mask_input)
        if self.single_mask:
            best = self._best(scores, point_coords.shape[1])
            low_res, scores = low_res.index_select(1, best), scores.index_select(1, best)
        return self._at_original_size(low_res, orig_im_size), scores, low_res

    def _best(self, scores: Tensor, points: int) -> Tensor:
        """(1,) index of the mask to return: the single-mask answer for three points or more, else the best of the rest.

        Meta's rule: a box, or one click and its padding, count as two points and leave open what is meant.
        """
        return (scores + (points - 2.5) * self.handicap).argmax(dim=1)

    def _at_original_size(self, low_res: Tensor, orig_im_size: Tensor) -> Tensor:
        size = self.decoder.image_size
        square = functional.interpolate(low_res, (size, size), mode="bilinear", align_corners=False)
        original = orig_im_size.to(torch.float64)
        filled = torch.floor(original * (size / original.max()) + 0.5).clamp(min=1).to(torch.int64)
        height, width = orig_im_size.to(torch.int64).unbind(0)
        cropped = square[:, :, : filled[0], : filled[1]]
        # The tracer takes tensors for sizes, which torch's annotations don't say.
        return functional.interpolate(cropped, size=(height, width), mode="bilinear", align_corners=False)  # type: ignore[arg-type]
