"""What all commands share: exit codes, one-line errors, the types of their options, and what they print where."""

from __future__ import annotations

from samri_runtime.cli._command import Command, command
from samri_runtime.cli._options import (
    GivenFile,
    GivenFolder,
    GivenModel,
    GivenPath,
    OutputFolder,
    RenamedOption,
    json_option,
    overwrite_option,
    precision_option,
    profile_option,
    provider_option,
    provider_settings_option,
    renamed_option,
    threads_option,
)
from samri_runtime.cli._output import emit, say, say_error
from samri_runtime.cli._progress import ProgressBar, Stages, duration

__all__ = [
    "Command",
    "GivenFile",
    "GivenFolder",
    "GivenModel",
    "GivenPath",
    "OutputFolder",
    "ProgressBar",
    "RenamedOption",
    "Stages",
    "command",
    "duration",
    "emit",
    "json_option",
    "overwrite_option",
    "precision_option",
    "profile_option",
    "provider_option",
    "provider_settings_option",
    "renamed_option",
    "say",
    "say_error",
    "threads_option",
]
