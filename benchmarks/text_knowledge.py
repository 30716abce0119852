"""Attacks and the transfer of knowledge on texts: the table and figures of docs/text.md.

    python benchmarks/text_knowledge.py DIRECTORY [--workdir=runs/text_knowledge] [--docs=docs/text]

DIRECTORY is that of `configs/text_knowledge.py`, which runs with the target amazon, and with movies, whose texts some
sources have trained on. The runs are kept and resumed. What the page shows of them is written to knowledge-TARGET.json
and a figure each in `--docs`; `--page` prints its tables from there.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jtrans.experiments.knowledge import words
from jtrans.experiments.reproduce import page
from jtrans.harness import folder

ROOT = Path(__file__).parent.parent
TARGETS = ("amazon", "movies")
KEPT = ("num_seeds", "attacked", "correlations", "test_in_training")
COLUMNS = ("measure", "Spearman", "p", "p within strata", "adjusted p", "adjusted, strata", "claim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--workdir", type=Path, default=Path("runs/text_knowledge"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "text")
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.page or arguments.directory):
        parser.error("it takes a DIRECTORY, or --page")
    arguments.docs.mkdir(parents=True, exist_ok=True)
    for target in TARGETS:
        file = arguments.docs / f"knowledge-{target}.json"
        if not arguments.page:
            run(arguments.directory, target, arguments.workdir / target)
            summary = folder.read_summary(arguments.workdir / target)
            losses = {row["source"]: row["target"]["transfer_loss"] for row in summary["sources"]}
            kept = {name: summary[name] for name in KEPT} | {"transfer_loss": losses}
            file.write_text(json.dumps(kept, indent=1) + "\n")
            shutil.copyfile(arguments.workdir / target / "figure.png", file.with_suffix(".png"))
        results = json.loads(file.read_text())
        print(f"{target}: {transferred(results)}; {leaked(results)}\n\n{page.markdown(shown(results))}\n")


def run(directory: Path, target: str, workdir: Path) -> None:
    config = ROOT / "configs" / "text_knowledge.py"
    flags = [f"--config.{section}.dir={directory}" for section in ("source", "target")]
    command = [sys.executable, "-m", "jtrans", "knowledge", f"--config={config}:{target}", *flags]
    subprocess.run([*command, f"--workdir={workdir}"], check=True)


def shown(results: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The table of every measure."""
    columns = words.columns(results["correlations"])
    for cells in zip(*(columns[name] for name in COLUMNS), strict=True):
        yield dict(zip(COLUMNS, cells, strict=True))


def leaked(results: Mapping[str, Any]) -> str:
    """How many of the target's test texts each source has trained on."""
    counts = sorted(results["test_in_training"].values(), reverse=True)
    if not counts:
        return "no source has trained on a test text of the target"
    return f"of its test texts, {len(counts)} sources have trained on {', '.join(map(str, counts))}"


def transferred(results: Mapping[str, Any]) -> str:
    """How good references are on the target, and how much of it the sources' features tell."""
    accuracies = results["attacked"]["target"]["references"]
    losses = [loss["mean"] for loss in results["transfer_loss"].values()]
    of_chance = f"chance {math.log(2):.3f}"
    references = f"the references' accuracy is {min(accuracies):.2f} to {max(accuracies):.2f}"
    return f"{references}, the sources' transfer loss {min(losses):.3f} to {max(losses):.3f} nats ({of_chance})"


if __name__ == "__main__":
    main()
