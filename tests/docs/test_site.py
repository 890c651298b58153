"""The documentation site: it builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.pages import ROOT

PACKAGES = ("mkdocs", "material", "mkdocstrings")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in PACKAGES),
        reason="the site's packages aren't installed: pip install --group docs",
    ),
]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


class Links(HTMLParser):
    """What a page loads, what it links to, and the ids it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.update(value for key in ("id", "name") if (value := values.get(key)))
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif tag != "link" or values.get("rel") not in ("canonical", "prev", "next"):
            self.loads += [value for key in ("src", "href") if (value := values.get(key))]


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Links]:
    return {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        for target in links.loads:
            assert not urlsplit(target).netloc, f"{page.name} loads {target}"
            assert (page.parent / unquote(urlsplit(target).path)).exists(), f"{page.name} loads {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[ '\"]*(https?:)?//", style.read_text("utf-8")), style.name


def test_every_link_leads_somewhere(pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        for link in links.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            file = (page.parent / unquote(target.path)).resolve() if target.path else page
            assert file.exists(), f"{page.name} links to {link}"
            if target.fragment and file in pages:
                assert unquote(target.fragment) in pages[file].ids, f"{page.name} links to {link}"


def test_every_command_is_in_the_reference(site: Path) -> None:
    reference = (site / "reference" / "commands.html").read_text("utf-8")
    scripts = re.findall(r'^(samri-\w+) = "', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert all(f'<h2 id="{name}">' in reference for name in scripts)
    assert "--plane [axial&#124;" in reference or "--plane [axial|" in reference
