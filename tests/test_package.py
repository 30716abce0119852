"""What the package says of itself in several files is the same in all of them."""

import json
import re
import tomllib

from conftest import ROOT

import jtrans

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def cited(name):
    """A field of jtrans itself in CITATION.cff."""
    (value,) = re.findall(rf"^{name}: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    return value


def test_the_citation_is_of_this_version_and_of_what_the_project_says():
    assert "version" in PROJECT["dynamic"]
    assert cited("version") == jtrans.__version__
    for name, field in (("title", "name"), ("abstract", "description"), ("license", "license")):
        assert cited(name) == PROJECT[field]


def test_the_papers_are_those_of_the_readme():
    citation, readme = ((ROOT / name).read_text() for name in ("CITATION.cff", "README.md"))
    papers = re.findall(r"^  title += \{(.*)\}", readme, re.MULTILINE)
    assert len(papers) == 2
    assert re.findall(r"^    title: (.*)", citation, re.MULTILINE) == papers
    authors = [author for line in re.findall(r"author += \{(.*)\}", readme) for author in line.split(" and ")]
    cited_authors = re.findall(r"family-names: (.*)\n +given-names: (.*)", citation)
    assert [f"{family}, {given}" for family, given in cited_authors] == authors


def test_the_notebooks_install_from_the_projects_address():
    address = PROJECT["urls"]["Repository"]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = "".join(line for cell in json.loads(path.read_text())["cells"] for line in cell["source"])
        assert re.findall(r'^ADDRESS = "git\+(.*)"$', source, re.MULTILINE) == [address]
