"""How Sphinx builds the site of `docs/`: `make docs`.

Three things are made from the code at each build: the pages of modules in `docs/api`, the tables of `config.md`, and
downloads of the files outside `docs/` that pages link to.
"""

import importlib
import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

import jtrans
from jtrans.harness import cli, experiment

DOCS = Path(__file__).parent

project = "jtrans"
version = release = jtrans.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings put code in single backticks, as Markdown does
smartquotes_action = "D"  # dashes, not quotes: '' is an empty string
highlight_language = "none"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True}
autosummary_generate = False
napoleon_use_param = False  # keeps arguments that share a line together
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"jtrans {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False

MODULES = {
    "Measures": [
        "metrics",
        "jacobian",
        "directions",
        "attacks",
        "attacks.parts",
        "attacks.words",
        "transfer",
        "scores",
        "stats",
    ],
    "Networks and data": ["models", "data", "training", "host", "torch", "errors"],
    "Populations": ["population.engine", "population.observe", "population.trajectory", "population.follow"],
    "Running experiments": ["harness.experiment", "harness.fields", "harness.setup", "report"],
    "Experiments": [*(f"experiments.{name}" for name in experiment.names()), "experiments.knowledge.sources"],
}
# Types of functions, as they are spelled in signatures; the second contains the first.
ALIASES = {
    "~collections.abc.Callable[[~jax.Array], ~jax.Array]": "Function",
    "~collections.abc.Callable[[Function, ~jax.Array, ~jax.Array, ~jax.Array | None], ~jax.Array]": "Attack",
}
# A letter with an accent, before a subscript: docutils would place the subscript straight below the letter.
ACCENTED = re.compile(
    r"(\\(?:hat|widehat|bar|overline|tilde|widetilde|vec|dot) *(?:\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]))(?=_)"
)
# Files outside this folder that have a page here.
PAGES = {
    "../README": "index",
    "../CHANGELOG": "changelog",
    "../CONTRIBUTING": "contributing",
    "../benchmarks/README": "benchmarks",
}


def write_api(app):
    """Write a page for each public module, and one that lists them."""
    shutil.rmtree(DOCS / "api", ignore_errors=True)
    (DOCS / "api").mkdir()
    index = "# Modules\n"
    for section, names in MODULES.items():
        index += f"\n## {section}\n\n"
        for name in names:
            module = importlib.import_module(f"jtrans.{name}")
            (DOCS / "api" / f"{module.__name__}.md").write_text(of_module(module))
            index += f"- [{module.__name__}]({module.__name__}.md): {module.__doc__.partition('\n')[0]}\n"
        index += "\n```{toctree}\n:hidden:\n\n" + "".join(f"jtrans.{name}\n" for name in names) + "```\n"
    (DOCS / "api" / "index.md").write_text(index)


def of_module(module):
    """The page of a module: what it is for, a list of its public names, and each of them."""
    names = [name for name in getattr(module, "__all__", vars(module)) if is_documented(module, name)]
    kinds = {name: "class" if isinstance(getattr(module, name), type) else "function" for name in names}
    listed = "".join(f"   {name}\n" for name in names)
    each = "".join(f".. auto{kind}:: {name}\n\n" for name, kind in kinds.items())
    about = f".. automodule:: {module.__name__}\n   :no-members:\n\n"
    summary = f".. autosummary::\n   :nosignatures:\n\n{listed}\n" if names else ""
    return f"# {module.__name__}\n\n```{{eval-rst}}\n{about}{summary}{each}```\n"


def is_documented(module, name):
    """Whether a name is public, a class or a function, and the module's own or in its `__all__`."""
    value = getattr(module, name)
    own = getattr(value, "__module__", None) == module.__name__ or name in getattr(module, "__all__", ())
    return own and callable(value) and not name.startswith("_") and bool(value.__doc__)


def is_alias(app, what, name, value, skip, options):
    """Leave out the fields of named tuples: their class describes them."""
    return skip or (value.__doc__ or "").startswith("Alias for field number")


def shorten(app, what, name, value, options, signature, returns):
    """Name the types that have a name."""
    for full, alias in ALIASES.items():
        signature, returns = (text and text.replace(full, alias) for text in (signature, returns))
    return signature, returns


def add_fields(app, docname, source):
    """Add to `config.md` the fields of every experiment."""
    if docname == "config":
        source[0] += "".join(of_experiment(experiment.load(name)) for name in experiment.names())


def of_experiment(made):
    """A section with a table of an experiment's config fields."""
    escaped = lambda text: re.sub(r"([\\`*_|<\[])", r"\\\1", text)
    rows = [
        f"| `{name}` | {escaped(field.means)} | `{field.default!r}` | {escaped(field.takes)} |\n"
        for name, field in made.fields.items()
    ]
    about = f"[{escaped(cli.about(made))}](api/jtrans.experiments.{made.name}.md)"
    head = "| field | what it means | default | takes |\n|---|---|---|---|"
    return f"\n## {made.name}\n\n{about}\n\n{head}\n{''.join(rows)}"


class Outside(SphinxTransform):
    """Links to files outside this folder go to their page here, those to folders become downloads of an archive."""

    default_priority = 1

    def apply(self):
        """Change the links of one page. Those to other files are downloads already."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            target = link["reftarget"]
            if link.get("refdomain") == "doc":
                link["reftarget"] = PAGES.get(os.path.relpath(DOCS / target, DOCS), target)
            elif link["reftype"] == "myst" and (folder := DOCS / target).is_dir():
                archive = shutil.make_archive(self.app.doctreedir / target, "zip", folder)
                link.replace_self(addnodes.download_reference("", "", *link.children, reftarget=f"/{archive}"))


def mathml(writer, node):
    """Write a formula as MathML, which browsers display without a script."""
    try:
        tex = ACCENTED.sub(r"\1{}", node.astext())
        writer.body.append(tex2mathml(tex, as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        logging.getLogger(__name__).warning(str(error), location=node)
    raise nodes.SkipNode


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", write_api)
    app.connect("autodoc-skip-member", is_alias)
    app.connect("autodoc-process-signature", shorten)
    app.connect("source-read", add_fields)
    app.add_transform(Outside)
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
