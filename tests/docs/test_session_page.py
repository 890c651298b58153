"""The Python of docs/session.md, run as it stands, and the files of prompts of docs/samri-run.md."""

from __future__ import annotations

import re

import samri
from samri_runtime.run._prompts_file import read_prompts
from tests.support.pages import DOCS, blocks


def test_the_python_of_the_session_page_works(folder):
    for code in blocks(DOCS / "session.md", "python"):
        exec(compile(code, "docs/session.md", "exec"), {})
    session = samri.Session.load(folder / "work.json", folder / "scan.nii.gz")
    assert [edit.kind for edit in session.edits] == ["box", "propagate", "point"]


def test_the_files_of_prompts_on_the_page_can_be_read(tmp_path):
    text = (DOCS / "samri-run.md").read_text("utf-8")
    (table,) = re.findall(r"^```\n(object,.*?)^```", text, re.MULTILINE | re.DOTALL)
    (values,) = blocks(DOCS / "samri-run.md", "json")
    (tmp_path / "p.csv").write_text(table)
    (tmp_path / "p.json").write_text(values)
    from_table, from_json = read_prompts(tmp_path / "p.csv"), read_prompts(tmp_path / "p.json")
    assert from_table[0] == from_json[0]
    assert [each.points[0] for each in from_table[1:]] == list(from_json[1].points)
