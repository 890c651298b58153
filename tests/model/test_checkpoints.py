from __future__ import annotations

import dataclasses
import os
import pickle
import random
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from samri.errors import CheckpointError
from samri.hashing import file_sha256
from samri.model import encoder_sha256, load_checkpoint, read_state_dict
from tests.support.sams import MEDIUM, SMALL, save_checkpoint, seeded_sam, with_other_decoder

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sam() -> Sam:
    return seeded_sam(SMALL)


@pytest.fixture
def state(sam: Sam) -> State:
    return dict(sam.state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    "model and optimizer": lambda state: {"model": state, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 7},
    "state_dict": lambda state: {"epoch": 1, "state_dict": state},
    "twice wrapped": lambda state: {"checkpoint": 1, "model": {"state_dict": state}},
    "data parallel": lambda state: prefixed("module.", state),
    "compiled data parallel": lambda state: prefixed("_orig_mod.module.", state),
    "attribute of a larger module": lambda state: {"model": prefixed("module.sam_model.", state)},
    "decoder alone in parallel": lambda state: {
        name.replace("mask_decoder.", "mask_decoder.module."): tensor for name, tensor in state.items()
    },
    "half precision": lambda state: {name: tensor.half().float() for name, tensor in state.items()},
}


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_checkpoint_is_read_however_it_is_wrapped(wrapping: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save(WRAPPINGS[wrapping](state), path)
    loaded = load_checkpoint(path)
    expected = {
        name: tensor.half().float() if wrapping == "half precision" else tensor for name, tensor in state.items()
    }
    assert dict(loaded.sam.state_dict()).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.sam.state_dict().items())
    assert loaded.architecture == SMALL
    assert loaded.sha256 == file_sha256(path)


def test_a_safetensors_file_is_read(state: State, tmp_path: Path) -> None:
    path = tmp_path / "sam.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    loaded = load_checkpoint(path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.sam.state_dict().items())


def test_half_precision_weights_become_float32(state: State, tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pth")
    assert {tensor.dtype for tensor in read_state_dict(tmp_path / "half.pth").values()} == {torch.float32}


def test_a_loaded_model_computes_what_the_saved_one_does(sam: Sam, tmp_path: Path) -> None:
    loaded = load_checkpoint(save_checkpoint(tmp_path / "sam.pth", sam)).sam
    image = torch.rand(1, 3, 90, 128, generator=torch.Generator().manual_seed(0)) * 255
    record = {"image": image[0], "original_size": (90, 128), "boxes": torch.tensor([[20.0, 10.0, 90.0, 70.0]])}
    for key, value in sam([record], multimask_output=True)[0].items():
        assert torch.equal(value, loaded([record], multimask_output=True)[0][key])


def test_a_decoder_takes_the_rest_from_its_base(sam: Sam, tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base.pth", sam)
    tuned = with_other_decoder(sam, seed=5)
    decoder = {name: tensor for name, tensor in tuned.state_dict().items() if name.startswith("mask_decoder.")}
    torch.save({"model": prefixed("module.", decoder), "epoch": 3}, tmp_path / "decoder.pth")
    loaded = load_checkpoint(tmp_path / "decoder.pth", base=base)
    assert all(torch.equal(loaded.sam.state_dict()[name], tensor) for name, tensor in decoder.items())
    for name, tensor in sam.state_dict().items():
        assert torch.equal(loaded.sam.state_dict()[name], tensor) == (not name.startswith("mask_decoder."))
    assert (loaded.base_path, loaded.base_sha256) == (base, file_sha256(base))


def test_the_state_dict_of_a_bare_mask_decoder_is_recognised(sam: Sam, tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base.pth", sam)
    tuned = with_other_decoder(sam, seed=5)
    torch.save(tuned.mask_decoder.state_dict(), tmp_path / "decoder.pth")
    loaded = load_checkpoint(tmp_path / "decoder.pth", base=base)
    assert torch.equal(loaded.sam.mask_decoder.iou_token.weight, tuned.mask_decoder.iou_token.weight)


def test_a_decoder_without_a_base_says_which_option_gives_one(sam: Sam, tmp_path: Path) -> None:
    torch.save(sam.mask_decoder.state_dict(), tmp_path / "decoder.pth")
    with pytest.raises(CheckpointError, match=r"decoder.pth: holds no image encoder; .*--base"):
        load_checkpoint(tmp_path / "decoder.pth")


def test_a_base_for_a_full_model_is_refused(sam: Sam, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "sam.pth", sam)
    with pytest.raises(CheckpointError, match="full model already"):
        load_checkpoint(path, base=path)


def test_a_decoder_is_no_base(sam: Sam, tmp_path: Path) -> None:
    torch.save(sam.mask_decoder.state_dict(), tmp_path / "decoder.pth")
    with pytest.raises(CheckpointError, match=r"decoder.pth: holds no image encoder either"):
        load_checkpoint(tmp_path / "decoder.pth", base=tmp_path / "decoder.pth")


def test_a_decoder_of_another_width_than_its_base_is_named(sam: Sam, tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base.pth", sam)
    torch.save(seeded_sam(MEDIUM).mask_decoder.state_dict(), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"other shapes: .*\(file \[.*\], model \[.*\]\)"):
        load_checkpoint(tmp_path / "wide.pth", base=base)


def load_error(state: State, tmp_path: Path) -> str:
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "odd.pth")
    text = str(caught.value)
    assert "odd.pth" in text and "\n" not in text
    return text


def test_missing_unexpected_and_reshaped_tensors_are_named(state: State, tmp_path: Path) -> None:
    del state["mask_decoder.transformer.layers.1.norm2.bias"]
    state["mask_decoder.fourth_token.weight"] = torch.zeros(1, 64)
    state["image_encoder.neck.1.bias"] = torch.zeros(7)
    text = load_error(state, tmp_path)
    assert "1 missing key: mask_decoder.transformer.layers.1.norm2.bias" in text
    assert "1 unexpected key: mask_decoder.fourth_token.weight" in text
    assert "1 other shape: image_encoder.neck.1.bias (file [7], model [64])" in text


def test_a_long_list_of_misfits_is_shortened_and_counted(state: State, tmp_path: Path) -> None:
    kept = {name: tensor for name, tensor in state.items() if ".mlp.lin2." not in name}
    assert "12 missing keys: " in load_error(kept, tmp_path)
    assert "and 9 more" in load_error(kept, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["image_encoder.pos_embed", "image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.mask_tokens.weight"],
)
def test_a_missing_tensor_that_tells_the_architecture_is_named(name: str, state: State, tmp_path: Path) -> None:
    del state[name]
    assert f"{name} is missing" in load_error(state, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image_encoder.pos_embed", (1, 16, 15, 64)),
        ("image_encoder.pos_embed", (256, 64)),
        ("image_encoder.blocks.0.attn.rel_pos_h", (11, 17)),
        ("image_encoder.blocks.2.attn.rel_pos_h", (13, 16)),
        ("mask_decoder.iou_token.weight", (1, 65)),
    ],
)
def test_shapes_that_contradict_each_other_are_named(
    name: str, shape: tuple[int, ...], state: State, tmp_path: Path
) -> None:
    state[name] = torch.zeros(shape)
    assert "not a SAM-shaped model" in load_error(state, tmp_path)


def test_weights_that_are_not_finite_are_named(state: State, tmp_path: Path) -> None:
    state["mask_decoder.iou_token.weight"] = torch.full((1, 64), float("nan"))
    assert "mask_decoder.iou_token.weight holds NaN or infinite" in load_error(state, tmp_path)


def test_integer_weights_are_named(state: State, tmp_path: Path) -> None:
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 64, dtype=torch.int8)
    assert "mask_decoder.iou_token.weight holds int8 values" in load_error(state, tmp_path)


def test_weights_beyond_float32_are_named(state: State, tmp_path: Path) -> None:
    state["mask_decoder.iou_token.weight"] = torch.full((1, 64), 1e300, dtype=torch.float64)
    assert "mask_decoder.iou_token.weight holds NaN or infinite values, or some beyond float32" in load_error(
        state, tmp_path
    )


@pytest.mark.parametrize(("kind", "words"), [("sparse", "a sparse_coo tensor"), ("meta", "no values")])
def test_tensors_that_are_not_dense_values_are_named(kind: str, words: str, state: State, tmp_path: Path) -> None:
    dense = torch.ones(1, 64)
    state["mask_decoder.iou_token.weight"] = dense.to_sparse() if kind == "sparse" else dense.to("meta")
    assert f"mask_decoder.iou_token.weight holds {words}" in load_error(state, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image_encoder.patch_embed.proj.weight", (64, 3, 0, 0)),
        ("image_encoder.patch_embed.proj.weight", (0, 3, 8, 8)),
        ("image_encoder.pos_embed", (1, 0, 0, 64)),
        ("image_encoder.blocks.0.attn.rel_pos_h", (0, 16)),
        ("image_encoder.blocks.0.mlp.lin1.weight", (0, 64)),
        ("mask_decoder.mask_tokens.weight", (0, 64)),
        ("mask_decoder.transformer.layers.0.mlp.lin1.weight", (0, 64)),
        ("mask_decoder.iou_prediction_head.layers.0.weight", (0, 64)),
        ("prompt_encoder.mask_downscaling.3.weight", (0, 1, 2, 2)),
        ("prompt_encoder.mask_downscaling.3.weight", (2, 1, 2, 2)),
    ],
)
def test_a_shape_that_no_model_can_have_is_named(
    name: str, shape: tuple[int, ...], state: State, tmp_path: Path
) -> None:
    state[name] = torch.zeros(shape)
    assert f"not a SAM-shaped model, {name} " in load_error(state, tmp_path)


def test_another_kind_of_model_is_no_sam_checkpoint(tmp_path: Path) -> None:
    text = load_error(dict(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).state_dict()), tmp_path)
    assert "not a SAM checkpoint; its weights are named 0.weight, 0.bias, 1.weight, 1.bias" in text


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"epoch": 3, "loss": 0.5}, {}])
def test_a_file_without_weights_is_no_checkpoint(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        load_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("written_by", ["torch", "torch before 1.6", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(protocol: int, written_by: str, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "it ran"),)

    content, path = {"weight": torch.zeros(2).bfloat16(), "model": Code()}, tmp_path / "evil.pth"
    if written_by == "pickle":
        path.write_bytes(pickle.dumps({"model": Code()}, protocol=protocol))
    else:
        new_format = written_by == "torch"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused, it carries code or objects \(\w+\.mkdir\)"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_weights_in_a_newer_pickle_protocol_are_read_or_said_to_be_so(
    new_format: bool, state: State, tmp_path: Path
) -> None:
    def saved(protocol: int) -> Path:
        path = tmp_path / f"protocol{protocol}.pth"
        torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new_format)
        return path

    assert read_state_dict(saved(3)).keys() == state.keys()
    for protocol in (4, 5):
        with pytest.raises(CheckpointError, match=rf"written in pickle protocol {protocol}, .*default protocol$"):
            read_state_dict(saved(protocol))


def test_a_name_from_an_untrusted_file_stays_on_one_line(tmp_path: Path) -> None:
    name = b"sys\nGLOBAL"
    short = b"\x8c" + bytes([len(name)]) + name
    (tmp_path / "evil.pth").write_bytes(b"\x80\x04" + short + b"\x94" + short + b"\x94\x93.")
    with pytest.raises(CheckpointError, match=r"carries code or objects \(sys\?GLOBAL\.sys\?GLOBAL\)") as caught:
        read_state_dict(tmp_path / "evil.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>404 not found</html>", bytes(range(256)) * 20])
def test_a_file_that_is_no_checkpoint_gets_one_plain_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_cut_off_checkpoint_gets_one_plain_line(new_format: bool, sam: Sam, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(sam.state_dict(), whole, _use_new_zipfile_serialization=new_format)
    data = whole.read_bytes()
    cut = tmp_path / "cut.pth"
    for length in [1, 30, 1000, 9000, *random.Random(0).sample(range(len(data)), 12), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pth: not a PyTorch checkpoint, or truncated"):
            load_checkpoint(cut)


def test_a_cut_off_safetensors_file_gets_one_plain_line(state: State, tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (4, 2000, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors: not a readable safetensors file"):
            load_checkpoint(cut)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth: no such checkpoint file"):
        load_checkpoint(tmp_path / "nothing.pth")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows says that such a file doesn't exist")
def test_a_name_that_is_too_long_gets_one_plain_line() -> None:
    with pytest.raises(CheckpointError, match=r"cannot read x+\.pth: File name too long"):
        load_checkpoint("x" * 300 + ".pth")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is a folder, and no \*\.index\.json lies in it: give the file with the weights"
    ):
        load_checkpoint(tmp_path)


def test_the_encoder_hash_does_not_depend_on_decoder_or_wrapping(sam: Sam, tmp_path: Path) -> None:
    wrapped = {"epoch": 9, "model": prefixed("module.", dict(with_other_decoder(sam, seed=3).state_dict()))}
    torch.save(wrapped, tmp_path / "tuned.pth")
    assert encoder_sha256(load_checkpoint(tmp_path / "tuned.pth").sam) == encoder_sha256(sam)


def test_the_encoder_hash_changes_with_one_weight_and_with_a_shape(sam: Sam) -> None:
    other = with_other_decoder(sam, seed=0)
    with torch.no_grad():
        other.image_encoder.blocks[2].mlp.lin1.bias[3] += 1e-6
    assert encoder_sha256(other) != encoder_sha256(sam)
    assert encoder_sha256(seeded_sam(dataclasses.replace(SMALL, window_size=7))) != encoder_sha256(sam)
