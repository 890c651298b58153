"""An exported bundle against the model that it was made from: torch on one side, ONNX Runtime on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from samri.errors import VerificationError
from samri.manifest import Precision, Role
from samri.model import Checkpoint
from samri.preprocessing import Profile
from samri.prompts import to_batch
from samri_export._choices import Level
from samri_export._exported import Exported
from samri_export._reference import DecoderOutput, Floats, Reference
from samri_export._report import DecoderResult, EncoderResult, VerificationReport, compare, relative_difference
from samri_export._verification_cases import PromptCase, VerificationSlice, built_in_slices, prompt_cases

Graphs = Mapping[Precision, Mapping[Role, Path]]


def verify(
    checkpoint: Checkpoint,
    profile: Profile,
    graphs: Graphs,
    *,
    level: Level,
    user_images: Sequence[VerificationSlice] = (),
    progress: Callable[[str], None],
) -> VerificationReport:
    """Compare on pictures and prompts, from the slice to the mask at its own size.

    Args:
        checkpoint: Its model is run by segment-anything's own modules.
        profile: Profile of the bundle.
        graphs: By precision and role, the files.
        level: `full` takes a portrait, a landscape and a larger picture, `quick` the portrait alone, `off` nothing.
        user_images: The user's own images, from `user_slices`; added at any level but `off`.
        progress: Gets a line for each picture.

    Raises:
        VerificationError: A result is beyond its tolerance; the text says which and where.
        MissingDependencyError: ONNX Runtime isn't installed.
    """
    if level == "off":
        return VerificationReport("off", (), ())
    image_size = checkpoint.architecture.image_size
    pictures = built_in_slices(image_size)
    slices = [*(pictures if level == "full" else pictures[:1]), *user_images]
    reference = Reference(checkpoint.sam, profile)
    exported = {precision: Exported(files, profile, image_size) for precision, files in graphs.items()}
    encoder_results: list[EncoderResult] = []
    decoder_results: list[DecoderResult] = []
    for picture in slices:
        progress(f"verifying on {picture.name} ({picture.shape[1]} x {picture.shape[0]})")
        image, embedding = reference.encode(picture)
        answers = _reference_answers(reference, embedding, picture)
        for precision, side in exported.items():
            own_image, own_embedding = side.encode(picture)
            encoder_results.append(
                EncoderResult(
                    picture=picture.name,
                    shape=picture.shape,
                    precision=precision,
                    model_input=float(np.abs(image - own_image).max()),
                    embedding=relative_difference(embedding.numpy(), own_embedding),
                )
            )
            further = [role for role in graphs[precision] if role.startswith(("decoder_sam", "decoder_prompts"))]
            decoder_results += _compared(side, further, own_embedding, answers, picture, precision)
    report = VerificationReport(level, tuple(encoder_results), tuple(decoder_results))
    failures = report.failures()
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise VerificationError(
            f"the exported graphs don't give the results of {checkpoint.path}: {failures[0]}{more}; nothing was written"
        )
    return report


def _reference_answers(
    reference: Reference, embedding: torch.Tensor, picture: VerificationSlice
) -> list[tuple[PromptCase, Floats | None, DecoderOutput]]:
    """Each case with its mask input, where it refines the answer to the first case, and the reference's answer."""
    answers: list[tuple[PromptCase, Floats | None, DecoderOutput]] = []
    for case in prompt_cases(picture.shape):
        masks = answers[0][2].low_res[:1, :1] if case.refines else None
        answers.append((case, masks, reference.decode(embedding, case, picture.shape, masks)))
    return answers


def _compared(
    side: Exported,
    further: Sequence[Role],
    embedding: Floats,
    answers: Sequence[tuple[PromptCase, Floats | None, DecoderOutput]],
    picture: VerificationSlice,
    precision: Precision,
) -> list[DecoderResult]:
    """All decoders of one precision; those with Meta's interface take one prompt at a time."""
    results = []
    for case, masks, expected in answers:
        answer = side.decode(embedding, case, picture.shape, masks)
        graphs: list[tuple[Role, DecoderOutput, DecoderOutput]] = [("decoder", expected, answer)]
        if "decoder_prompts" in further and masks is None:
            graphs.append(("decoder_prompts", expected, side.decode_in_stages(embedding, case, picture.shape)))
        contracts = [role for role in further if role.startswith("decoder_sam")]
        for role in contracts if len(case.prompts) == 1 else ():
            reference = _single_mask(expected, case) if role == "decoder_sam" else expected
            graphs.append((role, reference, side.decode_sam_contract(role, embedding, case, picture.shape, masks)))
        results += [
            compare(reference, output, picture=picture.name, case=case.name, graph=role, precision=precision)
            for role, reference, output in graphs
        ]
    return results


def _single_mask(answer: DecoderOutput, case: PromptCase) -> DecoderOutput:
    """What Meta's `--return-single-mask` picks: mask 0 from three points on, else the best-scored of the others."""
    points = to_batch(case.prompts)[1].shape[1]
    best = 0 if points > 2 else 1 + int(answer.scores[0, 1:].argmax())
    best_mask = slice(best, best + 1)
    return DecoderOutput(answer.low_res[:, best_mask], answer.scores[:, best_mask], answer.at_size[:, best_mask])
