"""Imports go one way: experiments -> harness -> population -> networks -> measures."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "jtrans"
MEASURES = {"attacks", "directions", "jacobian", "loops", "metrics", "scores", "stats", "transfer"}
NETWORKS = {"data", "errors", "files", "host", "models", "torch", "training"}
LAYERS = (MEASURES, NETWORKS, {"population"}, {"harness"}, {"experiments"}, {"report", "__main__"})
BELOW = {name: set().union(*LAYERS[: i + 1]) for i, layer in enumerate(LAYERS) for name in layer}
# The package, not the slices in it, which the harness finds by their names.
FINDS_EXPERIMENTS = PACKAGE / "harness" / "experiment.py"
# Slices that are about others.
USES = {"sweep": {...}, "reproduce": {...}, "knowledge_paper": {...}, "knowledge": {"matrix"}}

FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path):
    """The dotted names that a file imports when it runs, those within functions too."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(path):
    """The parts after `jtrans` of the names from jtrans that a file imports."""
    names = (name.split(".") for name in imported(path))
    return [parts for first, *parts in names if first == "jtrans" and parts and parts != ["__version__"]]


def files(parts):
    """The files that an import of such parts runs."""
    candidates = [f"{'/'.join(parts[:end])}{ending}" for end in (1, 2) for ending in (".py", "/__init__.py")]
    return FILES.keys() & candidates


def test_every_module_has_a_layer():
    assert {name.partition("/")[0].removesuffix(".py") for name in FILES} == {"__init__", *BELOW}


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_from_its_layer_and_those_below(name):
    own, *_ = name.removesuffix(".py").split("/")
    allowed = BELOW.get(own, set())
    for parts in within(FILES[name]):
        if FILES[name] != FINDS_EXPERIMENTS or parts != ["experiments"]:
            assert parts[0] in allowed, ".".join(parts)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiments/")])
def test_slices_do_not_import_one_another(name):
    own = name.removesuffix(".py").split("/")[1]
    others = {parts[1] for parts in within(FILES[name]) if parts[0] == "experiments"} - {own}
    allowed = USES.get(own, set())
    assert ... in allowed or others <= allowed


def test_metrics_does_not_import_pandas():
    packages, names, todo = set(), set(), {"metrics.py"}
    while todo:
        names |= todo
        packages |= {imported_name.partition(".")[0] for name in todo for imported_name in imported(FILES[name])}
        todo = {file for name in todo for parts in within(FILES[name]) for file in files(parts)} - names
    assert {"directions.py", "loops.py"} <= names
    assert "jax" in packages
    assert not packages & {"pandas", "flax", "matplotlib", "ml_collections", "tensorflow_datasets", "torch"}
