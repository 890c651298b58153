"""Options of the published SAMRI scripts, in terms of this program's."""

from __future__ import annotations

import re
from typing import cast, get_args

import click

from samri.errors import BundleError
from samri_runtime.providers import Provider

# PyTorch's names of devices, which `--device` took.
_DEVICES: dict[str, Provider] = {"cpu": "cpu", "cuda": "cuda", "mps": "coreml"}
_BACKBONES = {"vit_b": "vit_b", "vit_l": "vit_l", "vit_h": "vit_h", "samri": "vit_b"}

MODEL_TYPES = tuple(_BACKBONES)


def provider_of_device(device: str) -> tuple[Provider, dict[str, str]]:
    """Provider and its options for a PyTorch device: `cuda:1` is provider `cuda` with `device_id` 1.

    Raises:
        click.UsageError: No such device.
    """
    matched = re.fullmatch(r"(cuda):(\d+)", device)
    name, options = (matched[1], {"device_id": matched[2]}) if matched else (device, {})
    if name in _DEVICES:
        return _DEVICES[name], options
    if name in get_args(Provider):
        return cast(Provider, name), options
    known = ", ".join(dict.fromkeys((*_DEVICES, "cuda:N", *get_args(Provider))))
    raise click.UsageError(f"unknown --device {device!r}: choose one of {known}.")


def check_model_type(model_type: str, backbone: str, model: str) -> None:
    """A bundle knows its backbone; one named on the command line must be the same.

    Raises:
        BundleError: It isn't.
    """
    if _BACKBONES[model_type] != backbone:
        raise BundleError(
            f"{model} holds a {backbone}, not --model-type {model_type}: leave the option out, or name another bundle"
        )
