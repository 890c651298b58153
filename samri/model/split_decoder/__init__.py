"""The decoder in two graphs: one runs once per image, the other once per batch of prompts on that image.

Without mask prompts, the image tokens that enter the decoder are the same for all prompts. In each layer the tokens of
a prompt then update them (`cross_attn_image_to_token`), and segment-anything recomputes all (P, C) of them for each
prompt. Here an update is kept as a low-rank term instead, and every product of (P, C) with a (C, D) matrix is computed
once per image, by `DecoderImageStage` (`decoder_image.onnx`). What is left for each prompt, `DecoderPromptStage`
(`decoder_prompts.onnx`), handles the prompt's T tokens, the (h T, P) attention scores and the mask upscaling.

Symbols (docs/glossary.md has those of the whole project):

| symbol | shape   | meaning |
|--------|---------|---------|
| B      |         | prompts in a batch |
| T      |         | tokens of a prompt: 1 for the IoU, M for the masks, N for its points; 7 for a box and M = 4 |
| P, C   |         | image tokens, G * G = 4096 for ViT-B, and their width, 256 |
| h, d, D|         | attention heads, width of one head, and D = h d |
| X      | (P, C)  | image tokens before any prompt: `image_embeddings` plus `no_mask_embed` |
| A      | (P, h T)| weights of a layer's image-to-token attention |
| V      | (h T, C)| what each token adds to an image token that attends to it alone, per head |
| g, b   | (C,)    | gain and bias of a layer's last norm, `norm4` |
| s      | (P, 1)  | standard deviation that `norm4` divides by |
| t      | (P, 1)  | product of the s of all layers so far; 1 before the first |
| M      | (C, C)  | the centering and the gains of all layers so far: weights only |
| Z, R   | (P, K), (K, C) | left and right factor of one layer's update, K = h (T - 1) + 1: 49 for a box |

Derivation. A layer turns the image tokens x into LN(x + A V). With c(y) = y minus its mean over the C channels,

1.  LN(y) = c(y) g / s + b: at each position affine, but for the one number s. By induction over the layers l,
2.  x = (X M + sum_l Z_l R_l) / t + b, with b of the last norm. A layer adds Z R = t A V and applies c(.) g to M and R.
3.  The weights of a head sum to 1, so its first token, which is never padding, takes what the others leave: R has the
    other tokens' rows minus the first's, Z the columns t A of the others, and one more column, t, carries the row that
    all first tokens add together, with the output bias and the previous layer's b.
4.  Every reader needs a product x W = (X M W + sum_l Z_l (R_l W)) / t + b W. X M W is (P, C)(C, D), once per image;
    R W is small; b W is equal at all positions.
5.  The next s comes from (t s)^2 = |c(X M) + sum_l Z_l R_l|^2 / C + eps t^2, with the rows of R centered,
6.  where |..|^2 = |c(X M)|^2 + sum_k Z_k (2 c(X M) . R_k + sum_l (R_k . R_l) Z_l) at each position. The first term is
    computed once per image. So is c(X M) . R_k up to the tokens' values, since a row is a head's d values times d rows
    of the output projection: (P, d) numbers per head, and one number per position for the biases in R.

When it pays: on the CPU from the third prompt on one image. With ViT-B on two cores a box takes 32 ms instead of the
whole decoder's 60, but 105 ms for the first box on a new image (docs/benchmarks.md). The whole decoder is used on GPUs,
for one or two prompts per image, for prompts of more than 16 points, and for prompts with a mask (docs/precision.md).
"""

from samri.model.split_decoder._stages import DecoderImageStage, DecoderPromptStage, image_stage_shapes

__all__ = ["DecoderImageStage", "DecoderPromptStage", "image_stage_shapes"]
