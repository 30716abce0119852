"""The synthetic experiment of Liang et al. (2021), over many seeds or on a given problem."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jtrans import cli, loops, plots, report, results, settings, synthetic, transfer_findings


def main(config: ConfigDict, workdir: Path) -> None:
    """The synthetic experiment: every transferability measure, both ways, as a source drifts away from its target."""
    settings.check_synthetic(config)
    given = synthetic.load(config.problem) if config.problem else None
    if given:
        settings.check_levels(config.levels, given.x.shape[1], given.y.shape[1])
    results.ensure(workdir, config, partial(measure, given=given))
    print(f"\n{report.tell(workdir)}\n\nresults: {workdir}, figure: {workdir / 'figure.png'}")


def measure(config: ConfigDict, workdir: Path, given: synthetic.Problem | None) -> None:
    """The given problem, or else those of the seeds: every measure, the table, the figure."""
    started = time.monotonic()
    problems = [(config.seed, given)] if given else generated(config)
    columns = table(problems, config.levels)
    results.write_config(workdir, config)
    results.write_table(workdir / results.SYNTHETIC_TABLE, columns)
    summary = transfer_findings.summarize_synthetic(columns)
    summary["seconds"] = time.monotonic() - started
    results.write_figure(workdir, plots.synthetic(workdir))
    results.write_summary(workdir, config, summary)


def generated(config: ConfigDict) -> Iterator[tuple[int, synthetic.Problem]]:
    """Problems from consecutive seeds, all fitted side by side."""
    seeds = jnp.arange(config.num_seeds, dtype=jnp.uint32) + jnp.uint32(config.seed)
    sizes = ("target_width", "num_points", "input_size", "output_size", "num_clusters")
    options = {name: config[name] for name in ("widths", *sizes)} | dict(config.fit)
    print(
        f"fitting {len({*config.widths, config.target_width})} networks for each of {config.num_seeds} seeds",
        flush=True,
    )
    problems = jax.jit(jax.vmap(partial(synthetic.generate, scales=np.array(config.scales), **options)))(seeds)
    yield from zip(seeds.tolist(), loops.unstack(problems), strict=True)


def table(problems, levels: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A row for each seed, width, level and scale."""
    measures = {
        level: jax.jit(jax.vmap(partial(synthetic.measure, level=level), (None, 0, None, None))) for level in levels
    }
    parts = []
    for seed, problem in problems:
        for width, sources in problem.sources.items():
            for level, measure in measures.items():
                got = jax.device_get(measure(problem.target, sources, problem.x, problem.y))
                same = {"seed": seed, "width": width, "level": level}
                count = len(problem.scales)
                got = {**{k: np.full(count, v) for k, v in same.items()}, "scale": np.asarray(problem.scales), **got}
                parts.append({name: got[name] for name in (*same, *synthetic.COLUMNS)})
        print(f"seed {seed}: measured", flush=True)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    sys.exit(cli.run(main))
