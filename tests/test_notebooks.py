"""Every notebook runs from top to bottom, and shows its pictures; its first cells install and check."""

import importlib.util
import os
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import nbclient
import nbformat
import pytest
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement
from traitlets.config import Config

from jtrans.harness import versions

NOTEBOOKS = [nbformat.read(path, 4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
INSTALL, GPU = ([c.source for c in NOTEBOOKS[0].cells if c.cell_type == "code"][number] for number in (0, 1))


def test_all_notebooks_begin_with_the_same_two_cells():
    for notebook in NOTEBOOKS:
        assert [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2] == [INSTALL, GPU]


@pytest.fixture
def session(monkeypatch, tmp_path, capsys):
    """Runs a cell as IPython does: the error, what is printed, and the shell commands, which are not run."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # IPython puts its own there
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    commands = []
    shell.system = commands.append

    def run(source):
        commands.clear()
        result = shell.run_cell(source)
        return result.error_in_exec, capsys.readouterr().out, list(commands)

    return run


@pytest.fixture
def jtrans_is_found(monkeypatch):
    """Sets what Python finds under the name jtrans before the cell installs it: a function of the spec."""
    find = importlib.util.find_spec
    return lambda spec: monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if name == "jtrans" else find(name)
    )


ADDRESS = "git+https://github.com/OWNER/jtrans"
FOLDER = SimpleNamespace(origin=None)  # as of a clone that lies beside the notebook


@pytest.mark.parametrize("found", [None, FOLDER])
@pytest.mark.parametrize(
    ("nvidia_smi", "extras", "address", "url"),
    [
        (None, set(), ADDRESS, ADDRESS),
        ("/usr/bin/nvidia-smi", {"cuda12"}, ADDRESS, ADDRESS),
        (None, set(), "/content/a clone", "file:///content/a%20clone"),
        ("/usr/bin/nvidia-smi", {"cuda12"}, "dist/jtrans-1-py3-none-any.whl", "{here}/dist/jtrans-1-py3-none-any.whl"),
    ],
)
def test_the_first_cell_installs_jtrans_for_what_the_machine_has(
    session, jtrans_is_found, monkeypatch, found, nvidia_smi, extras, address, url
):
    jtrans_is_found(found)
    monkeypatch.setattr(shutil, "which", {"nvidia-smi": nvidia_smi}.get)
    error, printed, (command,) = session(INSTALL.replace(ADDRESS, address))
    *pip, requirement = shlex.split(command)
    assert pip == [sys.executable, "-m", "pip", "install", "--quiet"]
    wanted = Requirement(requirement)
    assert (wanted.name, wanted.extras, wanted.url) == ("jtrans", extras, url.format(here=Path.cwd().as_uri()))
    assert error is None
    assert f"'jax': '{jax.__version__}'" in printed


def test_the_first_cell_installs_nothing_where_jtrans_is(session):
    error, printed, commands = session(INSTALL)
    assert (error, commands) == (None, [])
    assert f"'jax': '{jax.__version__}'" in printed


def one_line(printed):
    """The last line of what a cell printed, and that no traceback came before it."""
    assert "Traceback" not in printed
    assert "/" not in printed, "the path of a file"
    return printed.splitlines()[-1]


def test_a_package_that_was_imported_before_it_was_replaced_asks_for_a_restart(session, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(__version__="2.2.2"))
    error, printed, _ = session(INSTALL)
    assert type(error).__name__ == "InputError"
    assert one_line(printed) == (
        "jtrans: error: restart the runtime (Runtime > Restart session), then run the next cell: this session has "
        f"imported pandas 2.2.2, and {metadata.version('pandas')} is installed now"
    )


def test_a_package_that_is_too_old_is_named_with_what_would_do(session, monkeypatch):
    installed = metadata.version
    monkeypatch.setattr(versions.metadata, "version", lambda name: "0.7.2" if name == "jax" else installed(name))
    _, printed, _ = session(INSTALL)
    (need,) = (line for line in metadata.requires("jtrans") if line.startswith("jax>") and ";" not in line)
    floor = need.removeprefix("jax")
    assert one_line(printed) == f"jtrans: error: jax: got 0.7.2; it takes {floor}: %pip install '{need}'"


def test_the_second_cell_says_that_jax_does_not_see_the_gpu(session, unseen_gpu):
    _, printed, _ = session(GPU)
    assert one_line(printed) == f"jtrans: error: {unseen_gpu}"


def test_the_second_cell_says_nothing_where_jax_uses_what_there_is(session):
    assert session(GPU) == (None, "", [])


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not any(output.get("name") == "stderr" and "Traceback" in output.text for output in outputs)
    if folder := os.environ.get("NOTEBOOK_OUT"):
        nbformat.write(notebook, Path(folder) / path.name)
