"""What is fuzzed: by name, how its valid inputs are made and how one damaged input is run and judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.fuzz import targets_calls, targets_data, targets_files, targets_models, targets_sessions
from tests.fuzz.ground import Ground
from tests.fuzz.trial import Case

TARGETS: dict[str, Callable[[Ground, Path], Case]] = {
    "nifti": targets_files.nifti,
    "picture": targets_files.picture,
    "run": targets_files.run,
    "manifest": targets_models.manifest,
    "graph": targets_models.graph,
    "checkpoint": targets_models.checkpoint,
    "cache": targets_models.cache,
    "tuned": targets_models.tuned,
    "store": targets_data.store,
    "journal": targets_data.journal,
    "published": targets_data.published,
    "prepare": targets_data.prepare,
    "resume": targets_data.resume,
    "prompts": targets_calls.prompts,
    "options": targets_calls.options,
    "session": targets_sessions.session,
    "prompt_files": targets_sessions.prompt_files,
}
