"""Undo and redo, against a plain list of edits."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

import samri
from samri.errors import SamriError
from samri.io import Scan
from samri_runtime import Predictor
from samri_runtime.session import Add, Box, Clear, Edit, Point, Remove, SlicePosition
from tests.support.examples import examples

NAMES = st.sampled_from(["a", "b"])
AT = st.builds(SlicePosition, slice=st.sampled_from([6, 7]), axis=st.just(2))
BOXES = st.sampled_from([(11, 8, 39, 32), (20, 10, 36, 38)])
EDITS = st.one_of(
    st.builds(Box, object=NAMES, at=AT, box=BOXES),
    st.builds(Point, object=NAMES, at=AT, point=st.sampled_from([(20, 20), (9, 30)]), label=st.sampled_from([0, 1])),
    st.builds(Add, object=NAMES),
    st.builds(Remove, object=NAMES),
    st.builds(Clear, object=NAMES, at=st.none() | AT),
)
STEPS = st.lists(st.one_of(EDITS, st.just("undo"), st.just("redo")), max_size=14)


def described(session: samri.Session) -> list[Any]:
    return [(each.name, each.label, each.color, dict(each.prompts), dict(each.scores)) for each in session.objects]


@given(steps=STEPS)
@settings(max_examples=examples(25))
def test_a_session_is_what_its_list_of_edits_makes(steps: list[Edit | str], scan: Scan, model: Predictor) -> None:
    session, done, undone = samri.Session(scan, model), list[Edit](), list[Edit]()
    for step in steps:
        if step == "undo":
            assert session.undo() is bool(done)
            undone += [done.pop()] if done else []
        elif step == "redo":
            assert session.redo() is bool(undone)
            done += [undone.pop()] if undone else []
        else:
            assert isinstance(step, Edit)
            try:
                session.edit(step)
            except SamriError:
                continue
            done, undone = [*done, step], []
        assert session.edits == tuple(done)
    plain = samri.Session(scan, model)
    for edit in done:
        plain.edit(edit)
    assert described(session) == described(plain)
    np.testing.assert_array_equal(session.label_map(), plain.label_map())
