"""One page of HTML from the folders of any finished runs, which loads nothing and can be mailed.

python -m jtrans.report runs/digits runs/matrix --out=report.html
"""

import argparse
import base64
import contextlib
import html
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jtrans import findings, plots, results, settings, transfer_findings
from jtrans.errors import InputError, one_line

# What a run shows, in words, by a file that only its kind of run leaves; the first that is there decides.
TELLERS: dict[str, Callable[[Path], str]] = {
    results.TRAJECTORY: lambda folder: findings.describe(results.read_summary(folder)),
    results.CONTROL_TABLE: lambda folder: findings.describe_control(results.read_table(folder / results.CONTROL_TABLE)),
    results.DECOMPOSE_TABLE: lambda folder: findings.describe_decomposition(
        results.read_table(folder / results.DECOMPOSE_TABLE)
    ),
    results.UPDATES_TABLE: lambda folder: findings.describe_updates(
        results.read_table(folder / results.UPDATES_TABLE), results.read_summary(folder)
    ),
    results.TYPICAL_TABLE: lambda folder: findings.describe_random_angles(
        results.read_table(folder / results.TYPICAL_TABLE),
        results.read_table(folder / results.UNLIKELY_TABLE),
        results.read_summary(folder),
    ),
    results.SYNTHETIC_TABLE: lambda folder: transfer_findings.describe_synthetic(results.read_summary(folder)),
    results.PENALTY_TABLE: lambda folder: transfer_findings.describe_penalty(
        results.read_table(folder / results.PENALTY_TABLE)
    ),
    results.KNOWLEDGE_TABLE: lambda folder: "\n\n".join(
        [
            transfer_findings.describe_knowledge(results.read_summary(folder)),
            transfer_findings.describe_matrix(results.read_table(folder / results.MATRIX_TABLE)),
        ]
    ),
    results.MATRIX_TABLE: lambda folder: transfer_findings.describe_matrix(
        results.read_table(folder / results.MATRIX_TABLE)
    ),
}
ENVIRONMENT = ("devices", "versions", "git_commit", "seconds")  # of a summary: what the numbers were made with
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #222; }
h2 { border-top: 1px solid #ccc; padding-top: 1.5rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; margin: 1rem auto; }
pre, .table { overflow-x: auto; background: #f6f6f4; padding: 0.75rem; font-size: 0.8rem; line-height: 1.4; }
.table { max-height: 28rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: 0.1rem 0.75rem 0.1rem 0; white-space: nowrap; }
th { position: sticky; top: -0.75rem; background: #f6f6f4; }
summary { cursor: pointer; padding: 0.3rem 0; }
a { color: #0b57a4; overflow-wrap: anywhere; }
"""


def tell(folder: Path) -> str:
    """What a finished run shows, in words.

    Raises:
      InputError: the folder holds no such run.
    """
    for name, teller in TELLERS.items():
        if (folder / name).exists():
            try:
                return teller(folder)
            except KeyError as error:
                raise InputError(
                    f"{folder}: another version of jtrans made it, without {error}; run it again"
                ) from error
    raise InputError(f"{folder}: it holds no finished run; name a run's folder, or one with such folders in it")


def find(folders: Sequence[Path]) -> list[Path]:
    """The folders of the finished runs: each folder itself, or else the runs at any depth below it, by name.

    Raises:
      InputError: a folder holds none.
    """
    found = []
    for folder in folders:
        own = (
            [folder]
            if _is_run(folder)
            else sorted(p.parent for p in folder.rglob(results.SUMMARY) if _is_run(p.parent))
        )
        if not own:
            raise InputError(f"{folder}: no finished run is there; name a run's folder, or one with such folders in it")
        found += own
    return list(dict.fromkeys(found))


def _is_run(folder: Path) -> bool:
    """Whether it holds a finished run with a figure: the networks that a run trains for itself have none."""
    return (folder / results.SUMMARY).is_file() and (folder / "figure.png").is_file()


def page(folders: Sequence[Path]) -> str:
    """All of the runs' figures, numbers, configs and environments in one page of HTML.

    The page can be mailed: it does not show where on the machine the folders lie.

    Raises:
      InputError: names a folder that is damaged.
    """
    labels = _labels(folders)
    parts = []
    for i, (folder, label) in enumerate(zip(folders, labels, strict=True)):
        with _naming(folder):
            parts.append(_section(folder, label, f"run-{i}"))
    links = "".join(f'<li><a href="#run-{i}">{_text(label)}</a></li>' for i, label in enumerate(labels))
    together = _together(folders, labels)  # of a single run too, whose arrays are read for it
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Without an icon of its own a page makes browsers ask for one.
        f'<link rel="icon" href="data:,"><title>jtrans: {len(folders)} runs</title><style>{STYLE}</style></head><body>'
        f"<h1>jtrans: transfer of adversarial directions</h1>"
        + (f"<ul>{links}</ul>{together}" if len(folders) > 1 else "")
        + "".join(parts)
        + "</body></html>\n"
    )


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders relative to the nearest one that holds them all."""
    absolute = [Path(os.path.abspath(folder)) for folder in folders]
    common = os.path.commonpath([folder.parent for folder in absolute])
    return [folder.relative_to(common).as_posix() for folder in absolute]


def _section(folder: Path, label: str, anchor: str) -> str:
    summary = results.read_summary(folder)
    config = {name: _without_place(value) for name, value in settings.flat(results.read_config(folder)).items()}
    environment = settings.flat({name: summary[name] for name in ENVIRONMENT if name in summary})
    return "\n".join(
        [
            f'<section id="{anchor}"><h2>{_text(label)}</h2>',
            *(_image(path.read_bytes(), f"{path.stem} of {folder.name}") for path in sorted(folder.glob("*.png"))),
            f"<pre>{_text(tell(folder))}</pre>",
            *(_numbers(path) for path in sorted(folder.glob("*.csv"))),
            _details(f"config, {len(config)} fields", _table(("field", "value"), config.items())),
            _details("environment", _table(("", ""), environment.items())),
            "</section>",
        ]
    )


def _without_place(value: Any) -> Any:
    """A value of a config; of an absolute path, or one after `ARCHITECTURE=`, the last part alone."""
    if isinstance(value, list):
        return [_without_place(each) for each in value]
    if not isinstance(value, str):
        return value
    name, equals, path = value.partition("=")
    if os.path.isabs(value):
        return f"…/{Path(value).name}"
    return f"{name}{equals}…/{Path(path).name}" if os.path.isabs(path) else value


def _together(folders: Sequence[Path], labels: Sequence[str]) -> str:
    """Early runs that can be compared, in one figure."""
    runs, alike = {}, set()
    for folder, label in zip(folders, labels, strict=True):
        if (folder / results.TRAJECTORY).exists():
            with _naming(folder):
                runs[label] = _, _, summary = results.read(folder)
                alike.add((summary["random"]["dimension"], summary["chance"]))
                if len(runs) <= plots.MOST_CURVES:
                    plots.overlay({label: runs[label]})  # alone, so that an error names its folder
    if len(runs) < 2 or len(alike) > 1:
        return ""
    chosen = dict(list(runs.items())[: plots.MOST_CURVES])
    return _image(results.drawn(plots.overlay(chosen), "png"), f"{len(chosen)} runs in one figure")


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turns the errors that a damaged folder causes into one line that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise InputError(f"{folder}: damaged, or another version of jtrans made it ({reason}); run it again") from error


def _numbers(path: Path) -> str:
    content = path.read_bytes()
    columns = results.read_table(path)
    rows = list(zip(*(column.tolist() for column in columns.values()), strict=True))
    link = f'<a download="{_text(path.name)}" href="data:text/csv;base64,{_base64(content)}">the file</a>'
    title = f"{path.name}, {len(rows)} rows of {len(columns)} columns"
    return _details(title, link + _table(tuple(columns), rows))


def _image(content: bytes, alt: str) -> str:
    return f'<img alt="{_text(alt)}" src="data:image/png;base64,{_base64(content)}">'


def _details(title: str, inside: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{inside}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"
    body = "".join(line((_number(cell) for cell in row), "td") for row in rows)
    return f'<div class="table"><table>{line(head, "th")}{body}</table></div>'


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _text(value: Any) -> str:
    return html.escape(str(value))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 2 after one line where a folder cannot be used."""
    parser = _Parser(prog="python -m jtrans.report", description="One page of HTML from the folders of finished runs.")
    parser.add_argument("folders", nargs="+", type=Path, help="a run's folder, or one with such folders in it")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    given = parser.parse_args(argv)
    if given.out.exists() and not given.out.is_file() and not given.out.is_dir():
        parser.error(f"--out: {given.out} is no regular file; name one, as report.html")
    if given.out.is_dir():
        parser.error(f"--out: {given.out} is a directory; name a file, as {given.out / 'report.html'}")
    if not given.out.parent.is_dir():
        parser.error(f"--out: {given.out} cannot be written; there is no directory {given.out.parent}")
    try:
        folders = find(given.folders)
        content = page(folders).encode()
        results.write(given.out.resolve(), content)  # a link stays one
    except InputError as error:
        parser.error(str(error))
    print(f"{given.out}: {len(folders)} runs, {len(content) / 1e6:.1f} MB, nothing to load")
    return 0


if __name__ == "__main__":
    sys.exit(main())
