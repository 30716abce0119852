"""Size and power of the tests of `jtrans.stats.correlation`, and coverage of its intervals, by simulation.

python benchmarks/power.py > docs/power.md

It takes about three minutes on one core. All seeds are fixed, so the page changes only with the code.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jtrans import stats
from jtrans.stats import correlations

REPETITIONS = 4000
GIVEN = 2000  # repetitions of a size given a covariate
POWER = 2000  # repetitions of a power
COVERAGE = 1000  # repetitions of a coverage, each with bootstrap samples of its own
RESAMPLES = 400
DRAWS = 1999  # permutations, where there are more than 9!
LARGE = 300_000  # sources, for the true correlation
HYPOTHESES = 4
AMONG = 0.7  # the correlation of the hypotheses' quantities among themselves
LEVEL = 0.05
RHO = (0.4, 0.6, 0.8)
STRATA = {12: (1, 3, 4, 3, 1), 20: (2, 5, 6, 5, 2), 24: (2, 6, 8, 6, 2), 30: (2, 8, 10, 8, 2)}
KINDS = {"Pearson": False, "Spearman": True}

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

# Each with variance 1.
LAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(size=shape) / np.sqrt(np.exp(2) - np.exp(1)),
    "t, 3 degrees of freedom": lambda rng, shape: rng.standard_t(3, size=shape) / np.sqrt(3),
    "five values": lambda rng, shape: rng.integers(5, size=shape) / np.sqrt(2),
}


class Row(NamedTuple):
    """A simulated setting; `held` are the numbers that a test holds to the bound, `shown` the others, by column."""

    setting: str
    sources: int
    held: dict[str, float]
    shown: dict[str, float]
    bound: float | None = None


def p_values(
    first: np.ndarray,
    second: np.ndarray,
    strata: np.ndarray | None = None,
    given: Sequence[np.ndarray] = (),
    ranks: bool = True,
) -> np.ndarray:
    """Of `[repetitions, S]`, whose tests share their random permutations."""
    strata = np.zeros(first.shape[1]) if strata is None else strata
    orders = correlations.permutations(strata, np.random.default_rng(1), DRAWS)
    residuals = correlations.residuals(np.stack([first, second, *given]), np.broadcast_to(strata, first.shape), ranks)
    repetitions = zip(residuals.first, residuals.second, residuals.controls.swapaxes(0, 1), strict=True)
    tested = (correlations.p_value(correlations.Residuals(*each), orders, not given) for each in repetitions)
    return np.fromiter(tested, float)


def rejected(p: np.ndarray) -> float:
    return float((p <= LEVEL).mean())


def adjusted(p: np.ndarray) -> np.ndarray:
    """Holm's adjustment of `[hypotheses, repetitions]`."""
    return np.apply_along_axis(stats.holm, 0, p)


def mixed(share: float, common: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The sum of two independent quantities of variance 1, again of variance 1: this share comes from the first."""
    return np.sqrt(share) * common + np.sqrt(1 - share) * own


def correlated(rho: float, first: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A quantity whose correlation with the first is `rho`."""
    return mixed(rho**2, first, own)


def in_strata(sources: int) -> tuple[np.ndarray, np.ndarray]:
    """The stratum of each source, and an effect of it, of variance 1."""
    strata = np.repeat(np.arange(5), STRATA[sources])
    return strata, (strata - strata.mean()) / strata.std()


def four(draw: Draw, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Four quantities `[4, repetitions, S]`, each pair with a correlation of 0.7."""
    return mixed(AMONG, draw(rng, shape), draw(rng, (HYPOTHESES, *shape)))


def single() -> Iterator[Row]:
    """Size: one hypothesis, unrelated quantities

    The share of simulations with p at most 5 %. With few sources the exact test has few possible p-values, by ranks
    and with ties the fewest, and its size is below 5 %. "five values": each equally likely, so that sources tie.
    """
    for (name, draw), sources in itertools.product(LAWS.items(), (5, 7, 12, 24)):
        first, second = draw(np.random.default_rng(0), (2, REPETITIONS, sources))
        held = {kind: rejected(p_values(first, second, ranks=ranks)) for kind, ranks in KINDS.items()}
        yield Row(name, sources, held, {}, LEVEL)


def family() -> Iterator[Row]:
    """Size: four hypotheses, four quantities that are unrelated to the second quantity

    Any two of the four have a correlation of 0.7. Spearman. "one": the first hypothesis is rejected, unadjusted. "any":
    at least one of the four is rejected, with Holm's adjustment, and without.
    """
    for name, sources in itertools.product(("normal", "lognormal"), STRATA):
        rng, shape, draw = np.random.default_rng(0), (REPETITIONS, sources), LAWS[name]
        first, second = four(draw, rng, shape), draw(rng, shape)
        p = np.array([p_values(each, second) for each in first])
        held = {"one": rejected(p[0]), "any, Holm": rejected(adjusted(p).min(0))}
        yield Row(name, sources, held, {"any, unadjusted": rejected(p.min(0))}, LEVEL)


def within_strata() -> Iterator[Row]:
    """Size: four hypotheses, all quantities depend on the stratum and on nothing else in common

    Half of the variance of each quantity comes from the stratum: five strata, such as sources with 0 to 4 vehicles
    among their classes. Any two of the four have a correlation of 0.7 within strata. Spearman. The tests without strata
    reject often: they find what the stratum does.
    """
    for sources, sizes in STRATA.items():
        rng, shape, (strata, effect) = np.random.default_rng(0), (REPETITIONS, sources), in_strata(sources)
        first = mixed(0.5, effect, four(LAWS["normal"], rng, shape))
        second = mixed(0.5, effect, rng.normal(size=shape))
        within, across = (np.array([p_values(each, second, labels) for each in first]) for labels in (strata, None))
        held = {"one": rejected(within[0]), "any, Holm": rejected(adjusted(within).min(0))}
        shown = {
            "one, without strata": rejected(across[0]),
            "any, Holm, without strata": rejected(adjusted(across).min(0)),
        }
        yield Row(f"strata of {', '.join(map(str, sizes))}", sources, held, shown, LEVEL)


def given_covariate() -> Iterator[Row]:
    """Size: one hypothesis, both quantities depend on a covariate and on nothing else in common

    Half of the variance of each quantity comes from the covariate; in the last row a third, and a third from the
    stratum. This test is approximate: the effect of a covariate on ranks is not linear, and slightly too many are
    rejected.

    "not given": the test without the covariate. "with error": given the covariate plus an error of the same variance;
    only a part of the covariate's effect is then removed. Both by ranks.
    """
    settings = [*itertools.product(("normal", "lognormal"), (8, 12, 24), (False,)), ("normal", 24, True)]
    for name, sources, stratified in settings:
        rng = np.random.default_rng(0)
        first, second, covariate, error = LAWS[name](rng, (4, GIVEN, sources))
        strata, effect = in_strata(sources) if stratified else (None, 0)
        first, second = (effect + covariate + each for each in (first, second))
        held = {kind: rejected(p_values(first, second, strata, [covariate], ranks)) for kind, ranks in KINDS.items()}
        shown = {
            "not given": rejected(p_values(first, second, strata)),
            "with error": rejected(p_values(first, second, strata, [covariate + error])),
        }
        yield Row(name + ", within strata" * stratified, sources, held, shown, 0.06)


def power() -> Iterator[Row]:
    """Power: quantities with a correlation of rho

    The share of simulations in which a hypothesis that is false is rejected. Spearman, normal quantities. "Holm, all
    four": adjusted for four hypotheses that are all false by the same rho. "Holm, this alone": the other three are
    true.
    """
    for sources, rho in itertools.product(STRATA, RHO):
        yield Row(f"rho {rho}", sources, {}, of_power(rho, sources, within=False))


def power_within_strata() -> Iterator[Row]:
    """Power: quantities with a correlation of rho within strata

    As above; half of the variance of each quantity comes from the stratum, of the sizes above.
    """
    for sources, rho in itertools.product(STRATA, RHO):
        yield Row(f"rho {rho}", sources, {}, of_power(rho, sources, within=True))


def of_power(rho: float, sources: int, within: bool) -> dict[str, float]:
    rng, shape = np.random.default_rng(0), (POWER, sources)
    second, common = rng.normal(size=(2, *shape))
    # Any two of the four have a correlation of 0.7, which the second quantity explains in part.
    rest = mixed((AMONG - rho**2) / (1 - rho**2), common, rng.normal(size=(HYPOTHESES, *shape)))
    first, unrelated = correlated(rho, second, rest), four(LAWS["normal"], rng, shape)
    strata = None
    if within:
        strata, effect = in_strata(sources)
        first, second, unrelated = (mixed(0.5, effect, each) for each in (first, second, unrelated))
    p, of_true = (np.array([p_values(each, second, strata) for each in group]) for group in (first, unrelated))
    return {
        "unadjusted": rejected(p),
        "Holm, all four": rejected(adjusted(p)),
        "Holm, this alone": rejected(adjusted(np.concatenate([p[:1], of_true[1:]]))[0]),
    }


Sample = Callable[[np.random.Generator, int], np.ndarray]  # quantities `[2 + covariates, S, R]` of S sources


def of_law(name: str, rho: float) -> Sample:
    """How to draw a quantity of this law, and a sum of a part of it and another of this law; one seed."""

    def draw(rng: np.random.Generator, sources: int) -> np.ndarray:
        first, own = LAWS[name](rng, (2, sources, 1))
        return np.stack([first, correlated(rho, first, own)])

    return draw


def of_seeds(rho: float, seeds: int) -> Sample:
    """How to draw normal quantities, half of whose variance, in the mean over seeds, is noise of each seed."""
    noise = lambda rng, sources: np.sqrt(seeds) * rng.normal(size=(2, sources, seeds))
    return lambda rng, sources: mixed(0.5, of_law("normal", rho)(rng, sources), noise(rng, sources))


def with_covariate(rho: float) -> Sample:
    """How to draw normal quantities to which a covariate is added, and that."""

    def draw(rng: np.random.Generator, sources: int) -> np.ndarray:
        covariate = rng.normal(size=(1, sources, 1))
        return np.concatenate([of_law("normal", rho)(rng, sources) + covariate, covariate])

    return draw


def coverage() -> Iterator[Row]:
    """Coverage: the intervals of normal quantities

    "width": the median. "none": the share without an interval, where all sources come in the same or in the opposite
    order; the coverage is that of the others. "percentiles": the interval between the 2.5th and the 97.5th percentile
    of the same bootstrap samples.

    The percentile intervals are too narrow for Pearson's correlation, also with 30 sources, and for five sources. So
    jtrans takes only the mean and the standard deviation of the correlation from the bootstrap, and the interval from
    Fisher's z. (The standard deviation of z itself would be infinite: a sample that draws two different sources has a
    correlation of 1 or -1.) The intervals of Spearman's correlation are wider than needed.
    """
    for (kind, ranks), rho, sources in itertools.product(KINDS.items(), (0, *RHO), (5, 12, 20, 24, 30)):
        yield of_intervals(f"{kind}, rho {rho}", of_law("normal", rho), sources, ranks, 0.94)


OTHER: dict[str, Sample] = {
    "lognormal": of_law("lognormal", 0.6),
    "t, 3 degrees of freedom": of_law("t, 3 degrees of freedom", 0.6),
    "half noise, 1 seed": of_seeds(0.8, 1),
    "half noise, 4 seeds": of_seeds(0.8, 4),
    "half noise, 16 seeds": of_seeds(0.8, 16),
    "given a covariate": with_covariate(0.6),
    "within strata": of_law("normal", 0.6),
}


def other_coverage() -> Iterator[Row]:
    """Coverage: other laws, several seeds, a covariate, strata

    "half noise": half of the variance of the means over seeds is noise of single seeds. The noise is scaled so that the
    correlation of the means is the same for any number of seeds. More sources make the interval narrower; more seeds do
    not. With several seeds it is wider than needed: the noise counts in the draws of the sources and in those of the
    seeds. That is the price of seeds drawn jointly, which also count what the sources share in a seed.
    """
    for (kind, ranks), (name, draw), sources in itertools.product(KINDS.items(), OTHER.items(), (12, 24)):
        yield of_intervals(f"{kind}, {name}", draw, sources, ranks, 0.9, name == "within strata")


def of_intervals(name: str, draw: Sample, sources: int, ranks: bool, least: float, stratified: bool = False) -> Row:
    strata, effect = in_strata(sources) if stratified else (np.zeros(sources), np.zeros(sources))
    measured = lambda rng, times: draw(rng, times * sources) + np.tile(effect, times)[:, None]
    times = LARGE // sources
    population = measured(np.random.default_rng(1), times).mean(-1)
    truth = correlations.residuals(population, np.tile(strata, times), ranks).correlation()
    rng, intervals, percentiles = np.random.default_rng(0), [], []
    for _ in range(COVERAGE):
        quantities = measured(rng, 1)
        bootstrap = correlations.resampled(quantities, strata, rng, ranks, RESAMPLES)
        observed = correlations.residuals(quantities.mean(-1), strata, ranks)
        intervals.append(correlations.interval(observed, bootstrap)[1:])
        percentiles.append(np.nanquantile(bootstrap, (0.025, 0.975)))
    (low, high), by_percentiles = np.transpose(intervals), np.transpose(percentiles)
    there = ~np.isnan(low)
    covers = lambda low, high: float(((low <= truth) & (truth <= high)).mean())
    shown = {
        "width": float(np.nanmedian(high - low)),
        "none": float(1 - there.mean()),
        "percentiles": covers(*by_percentiles),
        "their width": float(np.median(by_percentiles[1] - by_percentiles[0])),
    }
    return Row(name, sources, {"coverage": covers(low[there], high[there])}, shown, least)


# The repetitions of each table's rows, and the side of the bound on which they must be.
TABLES: dict[Callable[[], Iterator[Row]], tuple[int, str]] = {
    single: (REPETITIONS, "at most"),
    family: (REPETITIONS, "at most"),
    within_strata: (REPETITIONS, "at most"),
    given_covariate: (GIVEN, "at most"),
    power: (POWER, ""),
    power_within_strata: (POWER, ""),
    coverage: (COVERAGE, "at least"),
    other_coverage: (COVERAGE, "at least"),
}


def standard_error(share: float, repetitions: int) -> float:
    return float(np.sqrt(share * (1 - share) / repetitions))


ERRORS = {
    "size": standard_error(LEVEL, REPETITIONS),
    "given": standard_error(LEVEL, GIVEN),
    "power": standard_error(0.8, POWER),
    "coverage": standard_error(0.95, COVERAGE),
}
SAMPLES = inspect.signature(stats.correlation).parameters["resamples"].default
START = f"""# Power of the tests of correlations

How often `jtrans.stats.correlation` finds a correlation that is there (power) or that is not there (size), and how
often its 95 % intervals contain the truth (coverage), by simulation with fixed seeds.
`python benchmarks/power.py > docs/power.md` writes this page.

The samples are sources. More sources make a test more powerful and an interval narrower; more seeds of the same sources
only take noise out of their means.

Tests are two-sided, at 5 %. A row has {REPETITIONS:,} simulations for a size ({GIVEN:,} given a covariate), {POWER:,}
for a power and {COVERAGE:,} for a coverage. The standard error of a size of 0.05 is {ERRORS["size"]:.4f}
(given a covariate {ERRORS["given"]:.4f}), of a power of 0.8 {ERRORS["power"]:.4f},
of a coverage of 0.95 {ERRORS["coverage"]:.4f}. A slow test holds the columns to the left of "at most" or "at least"
to that bound, with a tolerance of three standard errors. Where there are more than 9! permutations, {DRAWS:,} are drawn
here and {correlations.PERMUTATIONS:,} by `stats.correlation`; bootstrap samples are {RESAMPLES} here and {SAMPLES:,}
there.
"""


def section(table: Callable[[], Iterator[Row]], rows: Sequence[Row]) -> str:
    """A table with its title and text, which are its function's docstring, in Markdown."""
    title, *text = inspect.cleandoc(table.__doc__).splitlines()
    _, side = TABLES[table]
    header = ["setting", "sources", *rows[0].held, *[side] * bool(side), *rows[0].shown]
    numbers = lambda columns: (f"{value:.3f}" for value in columns.values())
    bound = lambda row: [f"{row.bound:.2f}"] if side else []
    cells = [[r.setting, r.sources, *numbers(r.held), *bound(r), *numbers(r.shown)] for r in rows]
    lines = ("| " + " | ".join(map(str, line)) + " |" for line in (header, ["---"] * len(header), *cells))
    return "\n".join([f"## {title}", *text, "", *lines, ""])


def page(tables: Mapping[Callable[[], Iterator[Row]], Sequence[Row]]) -> str:
    return "\n".join([START, *(section(table, rows) for table, rows in tables.items())])


if __name__ == "__main__":
    print(page({table: list(table()) for table in TABLES}), end="")
