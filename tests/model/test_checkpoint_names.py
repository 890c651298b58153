"""Other programs' names of SAM's tensors, what lies beside them, and relatives of SAM that are no SAM."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from samri.errors import CheckpointError
from samri.model import load_checkpoint, read_weights
from tests.support.sams import SMALL, save_checkpoint, seeded_sam

State = dict[str, torch.Tensor]

# As transformers' own conversion script writes them, one name after the other.
_THEIRS = {
    "mask_decoder.output_upscaling.0": "mask_decoder.upscale_conv1",
    "mask_decoder.output_upscaling.1": "mask_decoder.upscale_layer_norm",
    "mask_decoder.output_upscaling.3": "mask_decoder.upscale_conv2",
    "mask_downscaling.0": "mask_embed.conv1",
    "mask_downscaling.1": "mask_embed.layer_norm1",
    "mask_downscaling.3": "mask_embed.conv2",
    "mask_downscaling.4": "mask_embed.layer_norm2",
    "mask_downscaling.6": "mask_embed.conv3",
    "point_embeddings": "point_embed",
    "pe_layer.positional_encoding_gaussian_matrix": "shared_embedding.positional_embedding",
    "image_encoder": "vision_encoder",
    "neck.0": "neck.conv1",
    "neck.1": "neck.layer_norm1",
    "neck.2": "neck.conv2",
    "neck.3": "neck.layer_norm2",
    "patch_embed.proj": "patch_embed.projection",
    ".norm": ".layer_norm",
    "blocks": "layers",
}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return seeded_sam(SMALL)


@pytest.fixture
def state(sam: Sam) -> State:
    return {name: weight.contiguous() for name, weight in sam.state_dict().items()}


def hugging_face(state: State) -> State:
    converted = {}
    for name, weight in state.items():
        for ours, theirs in _THEIRS.items():
            name = name.replace(ours, theirs)
        small = re.fullmatch(r"(.*(?:hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.(\d)\.(\w+)", name)
        if small is not None:
            name = small[1] + ("proj_in", "layers.0", "proj_out")[int(small[2])] + f".{small[3]}"
        converted[name] = weight
    return converted


def with_both_places(state: State) -> State:
    places = state["prompt_encoder.shared_embedding.positional_embedding"]
    return {**state, "shared_image_embedding.positional_embedding": places.clone()}


def with_shared_places_only(state: State) -> State:
    both = with_both_places(state)
    del both["prompt_encoder.shared_embedding.positional_embedding"]
    return both


@pytest.mark.parametrize("prefix", ["", "model.", "module.sam.", "base."])
@pytest.mark.parametrize("places", [with_both_places, with_shared_places_only])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_hugging_faces_names_are_read_as_segment_anythings(
    prefix: str, places: Any, suffix: str, state: State, tmp_path: Path
) -> None:
    theirs = {prefix + name: weight for name, weight in places(hugging_face(state)).items()}
    assert not any("norm1" in name and "layer_norm" not in name for name in theirs)
    path = tmp_path / f"model{suffix}"
    if suffix == ".bin":
        torch.save(theirs, path)
    else:
        save_file(theirs, path)
    read = read_weights(path)
    assert read.state.keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in read.state.items())
    assert any("Hugging Face" in note for note in read.notes)
    # The whole way, every tensor in its place.
    loaded = load_checkpoint(path)
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.sam.state_dict().items())
    assert loaded.notes == read.notes


def test_small_networks_of_other_depths_are_numbered_through(state: State, tmp_path: Path) -> None:
    head = "mask_decoder.iou_prediction_head."
    theirs = with_both_places(hugging_face(state))
    theirs[f"{head}layers.1.weight"] = torch.ones(48, 48)
    theirs[f"{head}layers.1.bias"] = torch.ones(48)
    torch.save(theirs, tmp_path / "deep.bin")
    read = read_weights(tmp_path / "deep.bin").state
    assert {name.removeprefix(head)[:8] for name in read if name.startswith(head)} == {f"layers.{i}" for i in range(4)}
    assert torch.equal(read[f"{head}layers.2.weight"], torch.ones(48, 48))
    assert torch.equal(read[f"{head}layers.3.weight"], state[f"{head}layers.2.weight"])


def test_two_different_encodings_of_places_are_refused(state: State, tmp_path: Path) -> None:
    theirs = with_both_places(hugging_face(state))
    theirs["shared_image_embedding.positional_embedding"] += 1
    torch.save(theirs, tmp_path / "odd.bin")
    with pytest.raises(CheckpointError, match=r"odd\.bin: uses different positional encodings"):
        load_checkpoint(tmp_path / "odd.bin")


def test_hugging_faces_decoder_takes_the_rest_from_any_base(sam: Sam, state: State, tmp_path: Path) -> None:
    decoder = {name: weight for name, weight in hugging_face(state).items() if name.startswith("mask_decoder.")}
    torch.save(decoder, tmp_path / "decoder.bin")
    loaded = load_checkpoint(tmp_path / "decoder.bin", base=save_checkpoint(tmp_path / "sam.pth", sam))
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.sam.state_dict().items())


def test_segment_anythings_own_names_give_no_note(sam: Sam, tmp_path: Path) -> None:
    assert load_checkpoint(save_checkpoint(tmp_path / "sam.pth", sam)).notes == ()


@pytest.mark.parametrize("prefix", ["", "model.", "model.module.sam."])
def test_what_lies_beside_sam_is_left_out_with_a_note(prefix: str, state: State, tmp_path: Path) -> None:
    content = {prefix + name: weight for name, weight in state.items()}
    content["criterion.dice_loss.class_weight"] = torch.ones(1)
    content["criterion.focal_loss.class_weight"] = torch.ones(1)
    content["teacher.image_encoder.trunk.pos_embed"] = torch.ones(1)
    torch.save({"state_dict": content, "epoch": 1}, tmp_path / "best.ckpt")
    loaded = load_checkpoint(tmp_path / "best.ckpt")
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.sam.state_dict().items())
    (note,) = loaded.notes
    assert note.startswith("best.ckpt holds more than SAM, which was left out: criterion.dice_loss.class_weight, ")


def test_two_whole_models_in_one_file_are_refused(state: State, tmp_path: Path) -> None:
    both = {prefix + name: weight for prefix in ("student.", "ema.") for name, weight in state.items()}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(CheckpointError, match=r"both\.pth: holds several models, under 'student\.', 'ema\.': save"):
        load_checkpoint(tmp_path / "both.pth")


def test_the_same_weights_with_and_without_a_parallel_prefix_are_refused(state: State, tmp_path: Path) -> None:
    torch.save(state | {f"module.{name}": weight for name, weight in state.items()}, tmp_path / "twice.pth")
    with pytest.raises(CheckpointError, match="holds the same weights twice"):
        load_checkpoint(tmp_path / "twice.pth")


QKV = "image_encoder.blocks.0.attn.qkv"

RELATIVES: dict[str, tuple[list[str], str]] = {
    "MobileSAM": (
        ["image_encoder.patch_embed.seq.0.c.weight", "image_encoder.layers.0.blocks.0.conv1.c.weight"],
        "TinyViT",
    ),
    "LiteMedSAM": (["module.image_encoder.layers.1.blocks.0.attn.attention_biases"], "LiteMedSAM"),
    "EdgeSAM": (
        ["image_encoder.features.1.token_mixer.0.conv.c.weight", "image_encoder.fuse_stage2.op_0.weight"],
        "EdgeSAM",
    ),
    "EfficientViT-SAM": (["image_encoder.backbone.input_stem.op_list.0.conv.weight"], "EfficientViT-SAM"),
    "EfficientSAM": (["image_encoder.blocks.0.attn.qkv.weight", "image_encoder.pos_embed"], "EfficientSAM"),
    "SAM 2": (["image_encoder.trunk.pos_embed", "sam_mask_decoder.iou_token.weight"], r"SAM 2 .*MedSAM2"),
    "SAM 2 of Hugging Face": (["vision_encoder.backbone.pos_embed", "mask_decoder.iou_token.weight"], "SAM 2"),
    "SAM 3": (["detector.backbone.vision_backbone.trunk.pos_embed", "tracker.maskmem_tpos_enc"], "SAM 3"),
    "SAM-HQ": ([f"{QKV}.weight", "image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.hf_token.weight"], "SAM-HQ"),
    "SAM-HQ of Hugging Face": (["vision_encoder.pos_embed", "mask_decoder.hq_token.weight"], "SAM-HQ"),
    "LoRA inside": ([f"{QKV}.qkv.weight", f"{QKV}.linear_a_q.weight"], r"LoRA.*merge"),
    "LoRA of PEFT alone": (["base_model.model.vision_encoder.layers.0.attn.qkv.lora_A.weight"], r"LoRA.*merge"),
    "SAMed": (["w_a_000.weight", "w_b_000.weight"], r"LoRA.*merge"),
    "SAM-Med2D": ([f"{QKV}.weight", "image_encoder.blocks.0.Adapter.channel.0.weight"], "SAM-Med2D"),
    "Medical SAM Adapter": (["image_encoder.blocks.0.MLP_Adapter.D_fc1.weight"], "Medical SAM Adapter"),
}


@pytest.mark.parametrize("relative", RELATIVES)
def test_relatives_of_sam_are_named_with_the_way_out(relative: str, tmp_path: Path) -> None:
    names, words = RELATIVES[relative]
    torch.save({"model": {name: torch.zeros(4, 4) for name in names}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*{words}") as caught:
        load_checkpoint(tmp_path / "x.pth")
    assert re.search(r"not supported|merge them", str(caught.value))


FILES: dict[str, tuple[str, bytes, str]] = {
    "Git LFS": (
        "sam.pth",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 375042383\n",
        r"git lfs pull",
    ),
    "Git LFS, safetensors": ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", r"git lfs pull"),
    "web page": ("sam.pth", b"\n<!DOCTYPE html><html><head></head></html>", r"web page .*download it again"),
    "HDF5": ("sam.pth", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "Keras": ("sam.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "gzip": ("sam.pth", b"\x1f\x8b" + bytes(99), "unpack"),
    "configuration": ("config.json", b'{"architectures": ["SamModel"]}', "a JSON file"),
    "part": ("model-00001-of-00002.safetensors", bytes(99), r"part 1 of a model in 2 files: give the \*\.index\.json"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_other_kinds_are_named_with_the_way_out(kind: str, tmp_path: Path) -> None:
    name, content, words = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


INDEX = "model.safetensors.index.json"
PARTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def in_parts(state: State, folder: Path) -> dict[str, str]:
    """Two files and their index, as transformers' `save_pretrained(..., max_shard_size=...)` lays them out."""
    places = {name: PARTS[number % 2] for number, name in enumerate(sorted(state))}
    for part in PARTS:
        save_file({name: state[name] for name in state if places[name] == part}, folder / part, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return places


def test_a_model_in_several_files_is_joined(state: State, tmp_path: Path) -> None:
    theirs = hugging_face(state)
    in_parts(theirs, tmp_path)
    (tmp_path / "whole").mkdir()
    save_file(theirs, tmp_path / "whole" / "sam.safetensors")
    whole = read_weights(tmp_path / "whole" / "sam.safetensors")
    for given in (tmp_path / INDEX, tmp_path):
        joined = read_weights(given)
        assert joined.state.keys() == whole.state.keys()
        assert all(torch.equal(joined.state[name], whole.state[name]) for name in whole.state)
    printed = "".join(f"{hashlib.sha256((tmp_path / n).read_bytes()).hexdigest()}  {n}\n" for n in [INDEX, *PARTS])
    assert joined.sha256 == hashlib.sha256(printed.encode()).hexdigest()


def damaged(case: str, folder: Path, places: dict[str, str]) -> None:
    first = next(iter(places))
    if case == "missing part":
        (folder / PARTS[1]).unlink()
    elif case == "cut part":
        (folder / PARTS[1]).write_bytes((folder / PARTS[1]).read_bytes()[:-9])
    elif case == "parts exchanged":
        (folder / PARTS[0]).write_bytes((folder / PARTS[1]).read_bytes())
    elif case == "not JSON":
        (folder / INDEX).write_text("{")
    else:
        maps: dict[str, Any] = {
            "no map": None,
            "empty map": {},
            "numbers": {first: 1},
            "a file elsewhere": {**places, first: "../secret.safetensors"},
            "itself": {**places, first: INDEX},
            "a tensor less": {name: place for name, place in places.items() if name != first},
            "a tensor more": {**places, "other": PARTS[0]},
            "very many files": {f"{n}": f"{n}.safetensors" for n in range(5000)},
        }
        (folder / INDEX).write_text(json.dumps({"weight_map": maps[case]}))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing part", r"no such checkpoint file"),
        ("cut part", r"not a readable safetensors file"),
        ("parts exchanged", r"doesn't hold the tensors that model\.safetensors\.index\.json lists"),
        ("not JSON", "not JSON"),
        ("no map", "weight_map"),
        ("empty map", "weight_map"),
        ("numbers", "weight_map"),
        ("a file elsewhere", r"names \.\./secret\.safetensors, no file beside it"),
        ("itself", "no file beside it"),
        ("a tensor less", "doesn't hold the tensors"),
        ("a tensor more", "doesn't hold the tensors"),
        ("very many files", "names 5000 files"),
    ],
)
def test_a_damaged_model_in_several_files_is_one_line(state: State, tmp_path: Path, case: str, words: str) -> None:
    damaged(case, tmp_path, in_parts(state, tmp_path))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_weights(tmp_path / INDEX)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_one_index_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder, and no \*\.index\.json lies in it: give the file"):
        read_weights(tmp_path)
    for name in ("a.index.json", "b.index.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds a\.index\.json and b\.index\.json: give the file"):
        read_weights(tmp_path)


def test_an_onnx_graph_is_named_under_any_name(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    for number, options in enumerate([{}, {"producer_name": "samri"}]):
        (tmp_path / f"{number}.pth").write_bytes(onnx.helper.make_model(graph, **options).SerializeToString())
        with pytest.raises(CheckpointError, match=r"an ONNX graph, not weights: give the checkpoint"):
            load_checkpoint(tmp_path / f"{number}.pth")


def test_a_whole_pickled_model_is_named(sam: Sam, tmp_path: Path) -> None:
    torch.save(sam, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"a whole pickled model \(segment_anything\.[\w.]+\).*model\.state_dict"):
        load_checkpoint(tmp_path / "whole.pth")


def test_a_zip_archive_of_something_else_is_named(sam: Sam, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "download.pth", "w") as archive:
        archive.write(save_checkpoint(tmp_path / "sam.pth", sam), "sam.pth")
    with pytest.raises(CheckpointError, match=r"a zip archive, but not one of PyTorch's: .*unpack it"):
        load_checkpoint(tmp_path / "download.pth")


def test_a_decoder_alone_is_named_as_such(sam: Sam, tmp_path: Path) -> None:
    torch.save(sam.mask_decoder.state_dict(), tmp_path / "decoder.pth")
    with pytest.raises(CheckpointError, match=r"holds no image encoder; it is a mask decoder alone, .*--base"):
        load_checkpoint(tmp_path / "decoder.pth")
