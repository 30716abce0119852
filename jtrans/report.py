"""One page of HTML from the folders of any finished runs, which loads nothing and can be mailed.

python -m jtrans.report runs/digits runs/matrix --out=report.html
"""

import argparse
import base64
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2

from jtrans import files
from jtrans.errors import InputError, one_line
from jtrans.experiments import early
from jtrans.harness import cli, experiment, fields, folder
from jtrans.harness.experiment import Experiment, Results

ENVIRONMENT = ("devices", "versions", "git_commit", "seconds")  # of a summary: what the numbers were made with


def find(folders: Sequence[Path]) -> list[Path]:
    """The folders of finished runs, each folder itself or at any depth below it; InputError if a folder holds none.

    Only runs with a figure: the networks that a run trains for itself have none.
    """
    runs = []
    for path in folders:
        inside = path.rglob(folder.SUMMARY) if os.path.isdir(path) else ()
        below = sorted(summary.parent for summary in inside if summary.is_file() and any(summary.parent.glob("*.png")))
        if not below:
            raise InputError(f"{path}: no finished run is there; name a run's folder, or one with such folders in it")
        runs += below
    return list(dict.fromkeys(runs))


def page(folders: Sequence[Path]) -> str:
    """All of the runs' figures, numbers, configs and environments in one page of HTML.

    The page can be mailed: it does not show where on the machine the folders lie. Raises InputError, which names the
    folder, if one is damaged or of an earlier version of jtrans.
    """
    absolute = [Path(os.path.abspath(path)) for path in folders]
    common = os.path.commonpath([path.parent for path in absolute])  # the nearest folder that holds them all
    sections = []
    early_runs: dict[str, Results] = {}
    alike = set()
    for path, label in zip(folders, (path.relative_to(common).as_posix() for path in absolute), strict=True):
        with _naming(path):
            maker, results = experiment.maker(path), experiment.read(path)
            sections.append(_section(path, label, maker, results))
            if maker.name == early.NAME:
                alike.add((results.summary["random"]["dimension"], results.summary["chance"]))
                if len(early_runs) < early.MOST_CURVES:
                    early_runs[label] = results
                    early.overlay({label: results})  # alone, so that an error names its folder
    overlay = {}
    if len(early_runs) > 1 and len(alike) == 1:
        overlay[f"{len(early_runs)} runs in one figure"] = _base64(folder.drawn(early.overlay(early_runs), "png"))
    loader = jinja2.PackageLoader("jtrans", "")
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    templates.filters["cell"] = _cell
    return templates.get_template("report.html.jinja").render(sections=sections, overlay=overlay)


def _section(path: Path, label: str, maker: Experiment, results: Results) -> dict[str, Any]:
    """What the page shows of a run: files in base64; of the config and the environment the values by dotted name."""
    names = {f"{stem}.csv": table for stem, table in results.tables.items()}
    environment = {name: results.summary[name] for name in ENVIRONMENT if name in results.summary}
    return {
        "label": label,
        "about": cli.about(maker),
        "figures": {f"{png.stem} of {path.name}": _base64(png.read_bytes()) for png in sorted(path.glob("*.png"))},
        "words": maker.tell(results),
        "tables": [(name, _base64((path / name).read_bytes()), table) for name, table in names.items()],
        "config": {name: _without_place(value) for name, value in fields.flat(results.config).items()},
        "environment": fields.flat(environment),
    }


def _without_place(value: Any) -> Any:
    """A value of a config; of an absolute path, or one after `ARCHITECTURE=`, the last part alone."""
    if isinstance(value, list):
        return list(map(_without_place, value))
    if not isinstance(value, str):
        return value
    head, equals, path = ("", "", value) if os.path.isabs(value) else value.partition("=")
    return f"{head}{equals}…/{Path(path).name}" if os.path.isabs(path) else value


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns the errors that a damaged folder causes into one line that names it."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise InputError(f"{path}: damaged, or another version of jtrans made it ({reason}); run it again") from error


def _cell(value: Any) -> str:
    """A value of a table, a config or an environment."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 2 after one line where a folder cannot be used."""
    parser = _Parser(prog="python -m jtrans.report", description="One page of HTML from the folders of finished runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="a run's folder, or one with such folders in it")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    given = parser.parse_args(argv)
    out = given.out
    if os.path.isdir(out):
        parser.error(f"--out: {out} is a directory; name a file, as {out / 'report.html'}")
    if os.path.exists(out) and not os.path.isfile(out):
        parser.error(f"--out: {out} is no regular file; name one, as report.html")
    if not os.path.isdir(out.parent):
        parser.error(f"--out: {out} cannot be written; there is no directory {out.parent}")
    try:
        folders = find(given.folders)
        content = page(folders).encode()
        files.write(Path(os.path.realpath(out)), content)  # a link stays one
    except InputError as error:
        parser.error(str(error).replace("--workdir", "--out", 1))
    print(f"{out}: {len(folders)} run{'s' * (len(folders) > 1)}, {len(content) / 1e6:.1f} MB, nothing to load")
    return 0


if __name__ == "__main__":
    sys.exit(main())
