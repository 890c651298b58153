"""Options of the published SAMRI scripts, in terms of this program's."""

from __future__ import annotations

import click

from samri.errors import BundleError, ProviderError
from samri_runtime import providers
from samri_runtime.providers import Provider

_BACKBONES = {"vit_b": "vit_b", "vit_l": "vit_l", "vit_h": "vit_h", "samri": "vit_b"}

MODEL_TYPES = tuple(_BACKBONES)


def provider_of_device(device: str) -> tuple[Provider, dict[str, str]]:
    """Provider and its options for a PyTorch device: `cuda:1` is provider `cuda` with `device_id` 1.

    Raises:
        click.UsageError: No such device.
    """
    try:
        return providers.provider_of_device(device)
    except ProviderError as error:
        raise click.UsageError(f"--device: {error}.") from error


def check_model_type(model_type: str, backbone: str, model: str) -> None:
    """A bundle knows its backbone; one named on the command line must be the same.

    Raises:
        BundleError: It isn't.
    """
    if _BACKBONES[model_type] != backbone:
        raise BundleError(
            f"{model} holds a {backbone}, not --model-type {model_type}: leave the option out, or name another bundle"
        )
