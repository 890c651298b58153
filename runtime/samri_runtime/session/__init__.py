"""Objects on a scan, made by edits that can be undone, saved and replayed: `samri.Session`."""

from __future__ import annotations

from samri_runtime.session._document import SCHEMA_VERSION, read_session_scan
from samri_runtime.session._edits import (
    Add,
    Box,
    Choose,
    Clear,
    Edit,
    Lasso,
    Point,
    Propagate,
    Remove,
    Scribble,
    SlicePosition,
    Start,
    edit_from_json,
)
from samri_runtime.session._session import Session
from samri_runtime.session._state import SessionObject, SlicePrompts

__all__ = [
    "SCHEMA_VERSION",
    "Add",
    "Box",
    "Choose",
    "Clear",
    "Edit",
    "Lasso",
    "Point",
    "Propagate",
    "Remove",
    "Scribble",
    "Session",
    "SessionObject",
    "SlicePosition",
    "SlicePrompts",
    "Start",
    "edit_from_json",
    "read_session_scan",
]
