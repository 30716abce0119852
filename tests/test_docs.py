"""The site that `make docs` builds: no warning, no dead link, nothing loaded from elsewhere, and what the code has."""

import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

from jtrans import metrics
from jtrans.harness import experiment

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The anchors of a page, what it links to, what it loads, and the cells of its tables."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.rows = {"", "top"}, [], [], []
        self.in_cell = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self.in_cell = True
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif target := attributes.get("src") or attributes.get("href"):
            self.loads.append(target)

    def handle_endtag(self, tag):
        if tag == "td":
            self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, and its pages by path."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-M", "html", ROOT / "docs", folder, "-W", "--keep-going", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    html = folder / "html"
    return html, {path: Page(path) for path in sorted(html.rglob("*.html"))}


def test_every_link_within_the_site_leads_somewhere(site):
    _, pages = site
    count = 0
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert target.is_file(), f"{path}: {link}"
            if target in pages:
                assert unquote(url.fragment) in pages[target].anchors, f"{path}: {link}"
            count += 1
    assert count > 1000


def test_nothing_is_loaded_from_another_host(site):
    html, pages = site
    for path, page in pages.items():
        assert page.loads
        for target in page.loads:
            url = urlsplit(target)
            assert url.scheme in ("", "data"), f"{path}: {target}"
            assert not url.netloc, f"{path}: {target}"
    styles = list(html.rglob("*.css"))
    assert styles
    for path in styles:
        assert not re.search(r"@import|url\([\"']?(https?:)?//", path.read_text()), path


def test_every_public_function_of_metrics_is_on_its_page(site):
    html, pages = site
    page = pages[html / "api" / "jtrans.metrics.html"]
    names = [
        name
        for name, value in vars(metrics).items()
        if inspect.isfunction(value) and value.__module__ == metrics.__name__ and not name.startswith("_")
    ]
    assert {"angles", "transferability", "success_matrix"} <= set(names)
    for name in names:
        assert f"jtrans.metrics.{name}" in page.anchors


def test_every_field_of_every_experiment_is_on_the_page_of_configs(site):
    html, pages = site
    page = pages[html / "config.html"]
    fields = [item for name in experiment.names() for item in experiment.load(name).fields.items()]
    rows = [row for row in page.rows if row][-len(fields) :]
    assert rows == [[name, field.means, repr(field.default), field.takes] for name, field in fields]


def test_formulas_are_mathml(site):
    html, _ = site
    assert "<math" in (html / "transfer.html").read_text()
