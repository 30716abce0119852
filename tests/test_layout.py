"""Data flows one way: a module imports only from those above it in README's table."""

import ast
import re

import pytest
from conftest import ROOT

TABLE = (ROOT / "README.md").read_text().partition("| module of `jtrans/` |")[2].partition("\n\n")[0]
ORDER = re.findall(r"`(\w+)\.py`", TABLE)


def imported(path):
    """The jtrans modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jtrans":
            yield from (alias.name for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jtrans."):
            yield node.module.removeprefix("jtrans.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("jtrans.") for a in node.names if a.name.startswith("jtrans"))


def test_the_list_names_every_module():
    assert {path.stem for path in (ROOT / "jtrans").glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_those_above_it(name):
    above = set(ORDER[: ORDER.index(name)])
    assert set(imported(ROOT / "jtrans" / f"{name}.py")) <= above


MEASURES = ["loops", "jacobian", "directions", "attacks", "transfer", "scores", "metrics"]


@pytest.mark.parametrize("name", MEASURES)
def test_the_measures_know_functions_and_arrays_only(name):
    assert set(imported(ROOT / "jtrans" / f"{name}.py")) <= set(MEASURES)
