import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from jtrans import stats


def sampled_angles(dimension, count, seed=0):
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, count, dimension))
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    return np.rad2deg(np.arccos(np.abs(cosine)))


@pytest.mark.parametrize(
    ("dimension", "mean"),
    [(2, 45.0), (3, np.rad2deg(1.0)), (4, np.rad2deg(np.pi / 4 + 1 / np.pi)), (3072, 89.175)],
)
def test_the_mean_random_angle_in_closed_form(dimension, mean):
    """In 2 dimensions the angle is uniform, in 3 its density is the sine, in 4 it is 4/pi sin^2."""
    assert stats.random_angle(dimension).mean() == pytest.approx(mean, abs=1e-3)


def test_the_law_in_two_and_three_dimensions_in_closed_form():
    angle = np.linspace(0, 90, 10)
    np.testing.assert_allclose(stats.random_angle(2).cdf(angle), angle / 90, atol=1e-12)
    np.testing.assert_allclose(stats.random_angle(3).cdf(angle), 1 - np.cos(np.deg2rad(angle)), atol=1e-12)


@pytest.mark.parametrize("dimension", [5, 100])
def test_the_law_agrees_with_sampling(dimension):
    law, sample = stats.random_angle(dimension), sampled_angles(dimension, 20_000)
    assert scipy.stats.kstest(sample, law.cdf).pvalue > 0.001
    assert law.mean() == pytest.approx(sample.mean(), abs=5 * sample.std() / np.sqrt(len(sample)))


@pytest.mark.parametrize("dimension", [2, 50, 150_528])
def test_quantiles_invert_the_cdf(dimension):
    law, probability = stats.random_angle(dimension), np.array([1e-4, 0.01, 0.5, 0.99])
    np.testing.assert_allclose(law.cdf(law.quantile(probability)), probability, rtol=1e-6)


def test_the_papers_approximations():
    law = stats.random_angle(3072)
    assert law.typical() == pytest.approx(88.97, abs=0.005)
    k = np.array([1, 2, 3, 10])
    angle = np.rad2deg(np.arccos(k / np.sqrt(3072)))
    np.testing.assert_allclose(law.markov_bound(angle), 1 / k**2)
    assert (law.cdf(angle) <= law.markov_bound(angle)).all()
    assert law.markov_bound(90.0) == 1


def test_the_least_of_many_angles_in_closed_form():
    """In 2 dimensions angles are uniform: the median of the least of n is 90 (1 - 2^(-1/n)) degrees."""
    law = stats.random_angle(2)
    for count in (1, 7, 10**6):
        assert law.least(count) == pytest.approx(90 * -np.expm1(-np.log(2) / count), rel=1e-4)
    assert law.least(3, 0.975) == pytest.approx(90 * (1 - 0.025 ** (1 / 3)))


def test_one_dimension_has_no_angles():
    with pytest.raises(ValueError, match="2 or more"):
        stats.random_angle(1)


def test_mean_ci_is_students_interval():
    values = np.random.default_rng(0).normal(size=(7, 3))
    got = stats.mean_ci(values)
    want = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([got.low, got.high], want)
    np.testing.assert_allclose(stats.mean_ci(values.T, axis=1).mean, got.mean)


def test_one_value_has_no_interval():
    got = stats.mean_ci(np.ones((1, 2)))
    assert got.mean.tolist() == [1, 1]
    assert np.isnan([got.low, got.high]).all()


def test_missing_values_are_left_out_of_the_mean_and_its_interval():
    values = np.random.default_rng(0).normal(size=(6, 5))
    values[[0, 3], 1] = np.nan
    values[1:5, 2], values[1:, 3], values[:, 4] = np.nan, np.nan, np.nan
    for got in (stats.mean_ci(values), stats.mean_ci(values.T, axis=1), stats.mean_ci(values[:, None], axis=0)):
        mean, low, high = (np.ravel(bound) for bound in got)
        for column in range(3):
            left = values[~np.isnan(values[:, column]), column]
            want = left.mean(), *scipy.stats.ttest_1samp(left, 0).confidence_interval(0.95)
            np.testing.assert_allclose([b[column] for b in (mean, low, high)], want, rtol=1e-12)
        assert mean[3] == values[0, 3]
        assert np.isnan([low[3], high[3], mean[4], low[4], high[4]]).all()


def pairs_of(networks, across):
    if across:
        pair = [(a, networks + b) for a in range(networks) for b in range(networks)]
        return np.array(pair), np.repeat([0, 1], networks)
    return np.array([(a, b) for b in range(networks) for a in range(b)]), np.zeros(networks, int)


def test_the_jackknife_of_additive_effects_in_closed_form():
    """Where a pair's value is the sum of its networks' effects, the error is twice that of the mean effect."""
    effects = np.random.default_rng(0).normal(size=9)
    pair, model = pairs_of(9, across=False)
    got = stats.pair_mean_ci(effects[pair].sum(1), pair, model)
    want = stats.mean_ci(2 * effects)
    np.testing.assert_allclose(got, want)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("networks", [4, 12])
def test_the_jackknife_covers_the_truth(networks, across):
    rng = np.random.default_rng(0)
    pair, model = pairs_of(networks, across)
    effects = rng.normal(size=(2 * networks, 2000))
    values = effects[pair].sum(1) + effects[pair].prod(1) / 2 + rng.normal(size=(len(pair), 2000))
    got = stats.pair_mean_ci(values, pair, model)
    covered = ((got.low <= 0) & (got.high >= 0)).mean()
    assert 0.93 < covered < 0.98
    naive = stats.mean_ci(values)  # pairs taken for independent
    assert ((naive.low <= 0) & (naive.high >= 0)).mean() < 0.85


def test_a_single_pair_has_no_interval_and_a_missing_pair_is_left_out():
    pair, model = pairs_of(2, across=False)
    got = stats.pair_mean_ci(np.array([5.0]), pair, model)
    assert got.mean == 5
    assert np.isnan([got.low, got.high]).all()
    pair, model = pairs_of(3, across=False)
    assert stats.pair_mean_ci(np.array([1.0, np.nan, 3.0]), pair, model).mean == 2


def one_by_one(values, pair, model):
    """The definition of `pair_mean_ci` for `values [P]`: every network that has a value left out in turn."""
    valid = ~np.isnan(values)
    networks = np.unique(pair[valid])
    if not len(networks):
        return np.full(3, np.nan)
    values, pair = values[valid], np.searchsorted(networks, pair[valid])

    def mean(included):
        rows = included[pair].all(1)
        return values[rows].mean() if rows.any() else np.nan

    return stats.jackknife_ci(mean, model[networks])


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("networks", [2, 3, 7])
@pytest.mark.parametrize("offset", [0, 1e6])
def test_the_jackknife_over_pairs_leaves_every_network_out_in_turn(networks, across, offset):
    rng = np.random.default_rng(0)
    pair, model = pairs_of(networks, across)
    values = offset + rng.normal(size=(len(pair), 5, 2))
    values[rng.random(values.shape) < 0.2], values[:, 0, 0] = np.nan, np.nan
    got = stats.pair_mean_ci(values, pair, model)
    for index in np.ndindex(5, 2):
        want = one_by_one(values[:, *index], pair, model)
        np.testing.assert_allclose([bound[index] for bound in got], want, rtol=1e-10)
    np.testing.assert_allclose(stats.pair_mean_ci(values[:, 1, 1], pair, model), [bound[1, 1] for bound in got])
    assert np.isfinite(got.low).any() or networks < 3


def test_pairs_of_the_same_network_are_left_out_with_it():
    pair, model = np.array([[0, 0], [0, 1], [1, 2], [2, 2], [1, 1]]), np.zeros(3)
    values = np.array([1.0, 5.0, 2.0, 8.0, 3.0])
    np.testing.assert_allclose(stats.pair_mean_ci(values, pair, model), one_by_one(values, pair, model))


def test_a_network_that_all_pairs_share_leaves_no_interval():
    values, pair = np.random.default_rng(0).normal(size=(6, 20)), np.array([[0, i] for i in range(1, 7)])
    got = stats.pair_mean_ci(values, pair, np.zeros(7))
    np.testing.assert_allclose(got.mean, values.mean(0))
    assert np.isnan([got.low, got.high]).all()


def test_wilsons_interval_is_that_of_scipy():
    count = np.array([[1], [2], [30], [10_000]])
    successes = np.array([0, 1, 2, 17, 9_999, 10_000])
    got = stats.wilson(np.minimum(successes, count), count)
    for index in np.ndindex(4, 6):
        test = scipy.stats.binomtest(min(successes[index[1]], count[index[0], 0]), count[index[0], 0])
        want = test.proportion_ci(method="wilson")
        np.testing.assert_allclose([bound[index] for bound in got], [test.statistic, *want], rtol=1e-12, atol=1e-15)
    assert np.isnan(stats.wilson(0, 0)).all()


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=(9, 2))
    got = stats.jackknife_ci(lambda kept: values[kept].mean(0), np.zeros(9))
    np.testing.assert_allclose(got, stats.mean_ci(values))


def two_groups(rng, counts=(5, 12), spread=(1, 6)):
    group = np.repeat([0, 1], counts)
    return rng.normal(size=len(group)) * np.take(spread, group), group


def difference(values, group):
    return lambda included: values[included & (group == 1)].mean() - values[included & (group == 0)].mean()


def test_the_jackknife_of_a_difference_of_means_is_welchs_interval():
    for seed, spread in enumerate([(1, 6), (6, 1), (1, 1), (1, 1e-9)]):
        values, group = two_groups(np.random.default_rng(seed), spread=spread)
        welch = scipy.stats.ttest_ind(values[group == 1], values[group == 0], equal_var=False)
        got = stats.jackknife(difference(values, group), group)
        np.testing.assert_allclose(got.freedom, welch.df, rtol=1e-8)
        np.testing.assert_allclose(got.interval()[1:], welch.confidence_interval(0.95), rtol=1e-8)
        assert 2 * min(got.p_above(0), got.p_below(0)) == pytest.approx(welch.pvalue, rel=1e-6)
        assert stats.jackknife_ci(difference(values, group), group) == got.interval()


def test_groups_without_spread_have_an_interval_of_no_width():
    group = np.repeat([0, 1], [3, 4])
    assert stats.jackknife_ci(difference(group + 1.0, group), group) == (1, 1, 1)
    pair, model = pairs_of(4, across=True)
    assert np.array(stats.pair_mean_ci(np.full((16, 2), 7.0), pair, model)).tolist() == [[7, 7]] * 3
    # One group has none: the other alone gives the degrees of freedom.
    values = np.where(group == 0, 0, np.arange(7.0))
    assert stats.jackknife(difference(values, group), group).freedom == 3


def test_a_group_of_one_network_leaves_no_interval():
    group = np.array([0, 0, 0, 1])
    got = stats.jackknife_ci(lambda included: np.array([1.0, 2, 4, 9])[included].mean(), group)
    assert got.mean == 4
    assert np.isnan([got.low, got.high]).all()


def test_the_mean_over_networks_is_of_strata():
    """Of one architecture Student's; of two as Welch's test takes each group's own variance."""
    rng = np.random.default_rng(0)
    values, group = two_groups(rng)
    for mine, students in zip(stats.network_mean(values, np.zeros(17)), stats.mean(values), strict=True):
        np.testing.assert_allclose(mine, students)
    of_groups = [values[group == g] for g in (0, 1)]
    parts = [(len(v) / 17) ** 2 * v.var(ddof=1) / len(v) for v in of_groups]
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, of_groups, strict=True))
    got = stats.network_mean(values, group)
    np.testing.assert_allclose(got, (values.mean(), np.sqrt(sum(parts)), freedom))
    np.testing.assert_allclose(stats.network_mean(values + 100 * group, group)[1:], got[1:])  # no spread of networks


def test_the_mean_over_networks_of_which_some_are_lost():
    group, nan = np.repeat([0, 1], [3, 2]), np.nan
    values = np.array([[1, 1, 1, 0], [2, 2, nan, 0], [4, nan, nan, 0], [7, nan, nan, nan], [9, nan, 5, nan]])
    got = stats.network_mean(values, group)
    np.testing.assert_allclose(got.mean, [4.6, 1.5, 3, 0])
    assert np.isnan(got.standard_error).tolist() == [False, False, True, False]
    for alone, column in ((stats.mean([1.0, 2]), 1), (stats.mean([0.0, 0, 0]), 3)):  # one architecture is left
        np.testing.assert_allclose([part[column] for part in got], alone)
    assert np.isnan(stats.network_mean(np.full(5, nan), group)[:2]).all()


def test_the_mean_over_two_architectures_covers_the_truth():
    rng, group = np.random.default_rng(0), np.repeat([0, 1], [6, 3])
    values = rng.normal(size=(9, 20_000)) * np.where(group == 0, 1, 3)[:, None] + 50 * group[:, None]
    _, low, high = stats.network_mean(values, group).interval()
    assert 0.94 < ((low <= 50 / 3) & (high >= 50 / 3)).mean() < 0.97


def test_a_lost_network_is_no_sample():
    pair, model = pairs_of(6, across=False)
    values = np.random.default_rng(0).normal(size=(len(pair), 2))
    values[(pair == 2).any(1), 1] = np.nan  # the measurements of network 2 are lost at the second step
    got, left = stats.pair_mean(values, pair, model), ~(pair == 2).any(1)
    assert got.freedom.tolist() == [5, 4]
    smaller = stats.pair_mean(values[left, 1], pair[left] - (pair[left] > 2), model[1:])
    np.testing.assert_allclose([part[1] for part in got], smaller, rtol=1e-12)


def test_p_values_are_those_of_scipys_one_sided_tests():
    values = np.random.default_rng(0).normal(size=(9, 50))
    estimate = stats.mean(values)
    for bound in (-0.5, 0.0, 0.3):
        above, below = (scipy.stats.ttest_1samp(values, bound, alternative=side).pvalue for side in ("greater", "less"))
        np.testing.assert_allclose(estimate.p_above(bound), above, rtol=1e-9)
        np.testing.assert_allclose(estimate.p_below(bound), below, rtol=1e-9)
    above = scipy.stats.ttest_1samp(values, -0.5, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(values, 0.7, alternative="less").pvalue
    np.testing.assert_allclose(estimate.p_inside(-0.5, 0.7), np.maximum(above, below), rtol=1e-9)


def test_tests_at_two_and_a_half_percent_agree_with_the_interval():
    rng = np.random.default_rng(0)
    estimate = stats.mean(rng.normal(size=(4, 500)) / 3)
    _, low, high = estimate.interval()
    np.testing.assert_array_equal(estimate.p_inside(-0.4, 0.5) < 0.025, (low > -0.4) & (high < 0.5))
    np.testing.assert_array_equal(estimate.p_outside(-0.1, 0.1) < 0.025, (high < -0.1) | (low > 0.1))
    np.testing.assert_array_equal(estimate.p_inside(-np.inf, 0.5), estimate.p_below(0.5))
    saved = stats.from_interval(estimate.interval(), 3)
    np.testing.assert_allclose(saved.p_inside(-0.4, 0.5), estimate.p_inside(-0.4, 0.5))
    # With fewer degrees of freedom than there were, the decision stays, and a small p-value does not get smaller.
    fewer = stats.from_interval(estimate.interval(), 2).p_above(0)
    np.testing.assert_array_equal(fewer < 0.025, estimate.p_above(0) < 0.025)
    small = fewer < 0.025
    assert (fewer >= estimate.p_above(0))[small].all()


def test_p_values_without_spread_or_without_an_interval():
    certain = stats.Estimate(np.array([1.0, 2.0, 3.0]), np.zeros(3), 4)
    assert certain.p_above(2).tolist() == [1, 0.5, 0]
    assert certain.p_inside(0, 2.5).tolist() == [0, 0, 1]
    single = stats.mean(np.ones(1))
    assert np.isnan([single.p_above(0), single.p_inside(0, 2), single.p_outside(0, 2)]).all()


def test_holms_adjustment_in_a_worked_example():
    """Sorted: 0.01 times 4 tests, 0.02 times 3, 0.03 times 2 (no less than the one before), 0.9 alone."""
    assert stats.holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert stats.holm([0.2]) == pytest.approx([0.2])
    assert stats.holm([0.5, 0.6]).tolist() == [1, 1]
    np.testing.assert_allclose(stats.holm([np.nan, 0.01, 0.04]), [np.nan, 0.02, 0.04])
    assert stats.holm([]).tolist() == []


def test_holms_rejections_are_those_of_the_step_down_procedure():
    rng = np.random.default_rng(0)
    for _ in range(100):
        p_values = rng.random(8) ** 4
        adjusted, order = stats.holm(p_values), np.argsort(p_values)
        assert (adjusted >= p_values).all()
        assert (np.diff(adjusted[order]) >= 0).all()
        passed = p_values[order] <= 0.05 / np.arange(8, 0, -1)
        rejected = order[: 8 if passed.all() else np.argmin(passed)]
        assert sorted(np.flatnonzero(adjusted <= 0.05)) == sorted(rejected)


def test_the_interval_of_a_share_is_wilsons_with_the_quantile_of_students_t():
    """Samples of 0 and 1 are worth one trial less than there are, since the variance is of n - 1."""
    values = np.repeat([0.0, 1.0], [9, 4])
    p, n, t = 4 / 13, 12, scipy.stats.t.ppf(0.975, 12)
    centre, margin = p + t**2 / n / 2, t * np.sqrt(p * (1 - p) / n + t**2 / n**2 / 4)
    want = np.array([centre - margin, centre + margin]) / (1 + t**2 / n)
    np.testing.assert_allclose(stats.share_ci(values), [p, *want])


def test_shares_stay_in_their_range_and_equal_ones_are_not_certain():
    rng = np.random.default_rng(0)
    mean, low, high = stats.share_ci(rng.beta(0.1, 0.2, size=(5, 1000)) ** 8)
    assert ((low >= 0) & (low <= mean) & (mean <= high) & (high <= 1)).all()
    none, every = stats.share_ci(np.zeros((8, 2))), stats.share_ci(np.ones((2, 8)), axis=1)
    t = scipy.stats.t.ppf(0.975, 7)
    np.testing.assert_allclose(none, [[0, 0], [0, 0], [t**2 / (7 + t**2)] * 2])
    np.testing.assert_allclose([1 - every.mean, 1 - every.high, 1 - every.low], none)
    np.testing.assert_allclose(stats.share_ci(np.full(4, 0.25)), [0.25] * 3)
    single = stats.share_ci(np.zeros(1))
    assert single.mean == 0
    assert np.isnan([single.low, single.high]).all()
    # Far from 0 and 1 and with many samples it is Student's.
    values = 0.5 + rng.normal(size=400) / 50
    np.testing.assert_allclose(stats.share_ci(values), stats.mean_ci(values), atol=1e-6)


@pytest.mark.parametrize("across", [False, True])
def test_each_half_chooses_the_step_at_which_the_other_is_measured(across):
    pair, model = pairs_of(9, across)
    values = np.random.default_rng(0).normal(size=(len(pair), 6))
    estimate, chosen = stats.selected_minimum(values, pair, model)
    odd, means, errors = np.concatenate([np.arange(9) % 2] * 2) == 1, [], []
    halves = [(~odd)[pair].all(1), odd[pair].all(1)]
    assert chosen.tolist() == [values[half].mean(0).argmin() for half in halves]
    for half, step in zip(halves, chosen[::-1], strict=True):
        networks, renumbered = np.unique(pair[half], return_inverse=True)
        got = stats.pair_mean(values[half, step], renumbered.reshape(-1, 2), model[networks])
        means.append(got.mean)
        errors.append(got.standard_error)
    assert estimate.mean == pytest.approx(np.mean(means))
    first, second = errors
    variance = (first**2 + second**2 + 2 * 9 / (8 * np.pi) * first * second) / 4
    assert estimate.standard_error == pytest.approx(np.sqrt(variance))
    assert np.isfinite(estimate.interval()).all()


def test_both_halves_choose_from_the_steps_that_both_may_take():
    pair, model = pairs_of(8, across=False)
    values = np.tile([5.0, 4.0, 3.0, 2.0, 1.0], (len(pair), 1))
    asked = []
    steps = lambda networks: asked.append(networks) or (2 if networks[0] else 4)
    estimate, chosen = stats.selected_minimum(values, pair, model, steps)
    np.testing.assert_array_equal(asked, [np.arange(8) % 2 == 0, np.arange(8) % 2 == 1])
    assert chosen.tolist() == [1, 1]
    assert estimate.interval() == (4, 4, 4)
    values[(pair % 2 == 1).all(1), :4] = np.nan  # the odd half has no value to choose from
    estimate, chosen = stats.selected_minimum(values, pair, model, steps)
    assert chosen.tolist() == [1, -1]
    assert np.isnan([estimate.mean, *estimate.interval()]).all()


@pytest.mark.parametrize("across", [False, True])
def test_halves_of_fewer_than_four_networks_have_no_interval(across):
    pair, model = pairs_of(7, across)
    estimate, _ = stats.selected_minimum(np.random.default_rng(0).normal(size=(len(pair), 3)), pair, model)
    assert np.isfinite(estimate.mean)
    assert np.isnan(estimate.interval()[1:]).all()


def test_a_share_without_a_standard_error_has_no_interval():
    single = stats.pair_mean(np.array([1.0]), np.array([[0, 1]]), np.zeros(2, int)).share_interval()
    assert single.mean == 1
    assert np.isnan(single[1:]).all()
    assert np.isnan(stats.share_ci(np.array([0.0]))[1:]).all()


def test_the_correlation_of_the_halves_errors_in_a_flat_curve():
    """At most `HALVES_CORRELATION`, and equal to it with three independent steps."""
    rng = np.random.default_rng(0)
    for steps in (2, 3, 8):
        halves = rng.normal(size=(2, 200_000, steps))
        chosen = halves.argmin(-1)
        errors = np.take_along_axis(halves, chosen[::-1, :, None], -1)[..., 0]
        correlation = np.corrcoef(errors)[0, 1]
        assert correlation < stats.HALVES_CORRELATION + 0.01
        assert np.abs(errors.mean(1)).max() < 0.01
        if steps == 3:
            assert correlation == pytest.approx(stats.HALVES_CORRELATION, abs=0.01)


@pytest.mark.slow
def test_every_interval_covers_what_the_page_on_coverage_says():
    root = Path(__file__).parents[1]
    script = runpy.run_path(root / "benchmarks" / "coverage.py")
    tables = {table: list(table()) for table in script["TABLES"]}
    for table, rows in tables.items():
        repetitions = script[{"selected": "CURVES", "of_scores": "DATA_SETS"}.get(table.__name__, "REPETITIONS")]
        for row in rows:
            least = row.least - 3 * script["standard_error"](row.least, repetitions)
            assert row.columns["coverage"] >= least, (table.__name__, row)
    for row in tables[script["selected"]]:
        assert abs(row.columns["bias"]) < 0.1  # the naive one is below -0.25 in every flat curve
    assert script["page"](tables) == (root / "docs" / "coverage.md").read_text()


def test_correlations_of_chosen_sources():
    x = np.array([[1.0], [2.0], [3.0], [4.0], [10.0]])
    rng = np.random.default_rng(0)
    monotone = stats.correlation(x, x**3, rng, ranks=True)
    assert monotone.statistic.mean == pytest.approx(1)
    assert monotone.p_value == pytest.approx(2 / 120)  # of all 5! orders, the same and the opposite one
    assert np.isnan(monotone.statistic[1:]).all()  # bootstrap samples come in the same order
    linear = stats.correlation(x, -2 * x + 1, rng)
    assert linear.statistic.mean == pytest.approx(-1)
    assert linear.p_value == pytest.approx(1 / 120)  # unequal steps: no other order comes as far
    assert np.isnan(linear.statistic[1:]).all()


@pytest.mark.parametrize("ranks", [False, True])
def test_correlations_are_those_of_scipy(ranks):
    rng = np.random.default_rng(1)
    x, y = rng.integers(4, size=(2, 5, 3)).astype(float)  # with ties
    of_scipy = scipy.stats.spearmanr if ranks else scipy.stats.pearsonr
    exact = stats.correlation(x, y, rng, ranks=ranks)
    want = of_scipy(x.mean(1), y.mean(1)).statistic
    assert exact.statistic.mean == pytest.approx(want)
    orders = [abs(of_scipy(x.mean(1)[list(p)], y.mean(1)).statistic) for p in itertools.permutations(range(5))]
    assert exact.p_value == pytest.approx(np.mean(np.array(orders) >= abs(want) - 1e-9))


@pytest.mark.parametrize(("sources", "covariance"), [(9, 0.7), (12, 0.5), (24, 0.3)])
def test_many_sources_are_tested_by_random_permutations(sources, covariance):
    """Of normal quantities nearly at the level of Student's t for r; nine sources, exactly, all the same."""
    x, y = np.random.default_rng(3).multivariate_normal([0, 0], [[1, covariance], [covariance, 1]], size=sources).T
    tested = stats.correlation(x[:, None], y[:, None], np.random.default_rng(0))
    assert tested.p_value == pytest.approx(scipy.stats.pearsonr(x, y).pvalue, rel=0.2)
    again = stats.correlation(x[:, None], y[:, None], np.random.default_rng(1))
    assert (again.p_value == tested.p_value) == (sources == 9)
    if sources > 9:
        test = {"permutation_type": "pairings", "alternative": "greater", "n_resamples": 19_999, "vectorized": True}
        distance = lambda x, axis: np.abs(((x - x.mean(axis, keepdims=True)) * (y - y.mean())).sum(axis))
        of_scipy = scipy.stats.permutation_test((x,), distance, **test, rng=2)
        error = np.sqrt(2 * of_scipy.pvalue / 20_000)
        assert tested.p_value == pytest.approx(of_scipy.pvalue, abs=4 * error)
        assert (
            stats.correlation(x[:, None], x[:, None] ** 3, np.random.default_rng(0), ranks=True).p_value == 1 / 20_000
        )


def test_the_interval_of_a_correlation_comes_from_the_sources():
    """With many normal sources it is Fisher's, of standard error 1 / sqrt(S - 3) on his scale; seeds add nothing."""
    rng, widths = np.random.default_rng(0), {}
    for sources in (100, 200):
        x, noise = rng.normal(size=(2, sources, 1))
        for seeds in (1, 3):
            repeated = (np.repeat(each, seeds, axis=1) for each in (x, 0.6 * x + 0.8 * noise))
            mean, low, high = stats.correlation(*repeated, rng, resamples=1000).statistic
            assert low < mean < high
            widths[sources, seeds] = np.arctanh(high) - np.arctanh(low)
            assert widths[sources, seeds] == pytest.approx(2 * 1.96 / np.sqrt(sources - 3), rel=0.2)
        assert widths[sources, 3] == pytest.approx(widths[sources, 1], rel=0.1)
    few = stats.correlation(x[:12], (0.6 * x + 0.8 * noise)[:12], rng).statistic
    assert np.arctanh(few.high) - np.arctanh(few.low) > 2 * widths[100, 1]


@pytest.mark.parametrize("partial", [False, True])
def test_an_interval_is_that_of_a_loop_over_bootstrap_samples(partial):
    """With the degrees of freedom of seven sources, of which a covariate takes one."""
    x, y, z = np.random.default_rng(1).normal(size=(3, 7, 3))
    options = {"given": z} if partial else {}
    mean, low, high = stats.correlation(x, y, np.random.default_rng(0), resamples=20_000, **options).statistic

    def of(sources, seeds):
        (_, xy, xz), (_, _, yz), _ = np.corrcoef([values[sources][:, seeds].mean(1) for values in (x, y, z)])
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)) if partial else xy

    rng = np.random.default_rng(1)
    drawn = ((rng.integers(7, size=7), rng.integers(3, size=3)) for _ in range(4000))
    bootstrap = [of(*sample) for sample in drawn if len(set(sample[0])) > 1 + partial]
    z_of_mean, quantile = np.arctanh(mean), scipy.stats.t.ppf(0.975, 4 if partial else 5)
    margin = quantile * np.std(bootstrap) / (1 - mean**2)
    np.testing.assert_allclose(np.arctanh([low, high]), [z_of_mean - margin, z_of_mean + margin], atol=0.05 * margin)


def test_seeds_are_drawn_jointly_for_all_sources():
    """What a seed's reference adds to every source then leaves the correlation in each bootstrap sample."""
    x, y = np.random.default_rng(1).normal(size=(2, 10, 3))
    of_reference = np.array([0.0, 100.0, -30.0])
    alone, shifted = (stats.correlation(x + shift, y, np.random.default_rng(0)) for shift in (0, of_reference))
    np.testing.assert_allclose(shifted.statistic, alone.statistic, rtol=1e-9)


@pytest.mark.parametrize("ranks", [False, True])
def test_permutations_within_strata_against_a_loop(ranks):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 1)) + 3 * (np.arange(9) % 4)[:, None]
    strata = np.array(["a", "b", "c", "alone"])[np.arange(9) % 4]
    strata[7] = "b"
    members = [np.flatnonzero(strata == label) for label in np.unique(strata)]
    assert sorted(map(len, members)) == [1, 2, 3, 3]
    first, second = (scipy.stats.rankdata(v) if ranks else v[:, 0] for v in (x, y))
    within = lambda v: v - np.array([v[strata == label].mean() for label in strata])
    statistics = []
    for orders in itertools.product(*(itertools.permutations(sources) for sources in members)):
        permuted = first.copy()
        for sources, order in zip(members, orders, strict=True):
            permuted[sources] = first[list(order)]
        statistics.append(np.corrcoef(within(permuted), within(second))[0, 1])
    tested = stats.correlation(x, y, rng, ranks=ranks, strata=strata)
    assert tested.statistic.mean == pytest.approx(statistics[0])
    assert tested.p_value == pytest.approx(np.mean(np.abs(statistics) >= abs(statistics[0]) - 1e-9))


def test_many_sources_are_exchanged_within_strata_alone():
    """Whatever the strata do, only what differs within them counts; as numbers or as names, in any order."""
    rng = np.random.default_rng(0)
    strata = rng.permutation(np.repeat(range(5), (2, 6, 8, 6, 2)))
    x, y = rng.normal(size=(2, 24, 2))
    alone = stats.correlation(x, x + y, np.random.default_rng(0), strata=strata)
    moved = stats.correlation(
        x + 10 * strata[:, None], x + y - 7 * strata[:, None], np.random.default_rng(0), strata=strata
    )
    np.testing.assert_allclose(moved.statistic, alone.statistic, rtol=1e-6)
    assert moved.p_value == alone.p_value
    named = stats.correlation(x, x + y, np.random.default_rng(0), strata=np.array(["p", "q", "r", "s", "t"])[strata])
    assert named == alone
    assert stats.correlation(x, y, np.random.default_rng(0), strata=np.ones(24)) == stats.correlation(
        x, y, np.random.default_rng(0)
    )


def test_random_permutations_within_strata_that_differ_in_spread():
    """Permutations across strata would give another p-value."""
    rng = np.random.default_rng(0)
    strata = rng.permutation(np.repeat([0, 1], [16, 8]))
    scale = np.array([1, 20])[strata]
    x, own = rng.normal(size=(2, 24))
    x, y = x * scale, (0.7 * x + own) * scale
    centred = lambda v: v - np.array([v[strata == stratum].mean() for stratum in strata])
    first, second = centred(x), centred(y)
    by_chance = {"within": np.tile(first, (20_000, 1)), "across": rng.permuted(np.tile(first, (20_000, 1)), axis=1)}
    for stratum in (0, 1):
        members = np.flatnonzero(strata == stratum)
        by_chance["within"][:, members] = rng.permuted(by_chance["within"][:, members], axis=1)
    want = {name: np.mean(np.abs(values @ second) >= abs(first @ second)) for name, values in by_chance.items()}
    error = 4 * np.sqrt(2 * want["within"] / 20_000)
    assert abs(want["across"] - want["within"]) > 2 * error
    tested = stats.correlation(x[:, None], y[:, None], rng, strata=strata)
    assert tested.p_value == pytest.approx(want["within"], abs=error)


def test_what_strata_do_is_no_correlation_within_them():
    strata = np.repeat(range(5), (2, 6, 8, 6, 2))
    rng = np.random.default_rng(0)
    first, second = strata[:, None] + 0.1 * rng.normal(size=(2, 24, 1))
    assert stats.correlation(first, second, rng, ranks=True).p_value < 0.001
    assert stats.correlation(first, second, rng, ranks=True, strata=strata).p_value > 0.05


def test_strata_that_leave_nothing_to_exchange_leave_no_correlation():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 2))
    (mean, low, high), p_value = stats.correlation(x, y, np.random.default_rng(0), strata=np.arange(6))
    assert np.isnan([mean, low, high, p_value]).all()
    # A single pair differs, in one dimension; two pairs have four orders, which come as far from 0 two by two.
    pair = stats.correlation(x, y, np.random.default_rng(0), strata=[0, 0, 1, 2, 3, 4])
    assert np.isnan([*pair.statistic, pair.p_value]).all()
    pairs = stats.correlation(x, y, np.random.default_rng(0), strata=[0, 0, 1, 1, 2, 3])
    assert pairs.p_value in (0.5, 1)


@pytest.mark.parametrize("ranks", [False, True])
def test_partial_correlations_are_those_of_textbooks(ranks):
    """For one covariate by its formula, for two from the inverse of the correlation matrix."""
    rng = np.random.default_rng(0)
    x, y, z, w = rng.normal(size=(4, 12)) + rng.normal(size=12)
    r = (scipy.stats.spearmanr([x, y, z, w], axis=1).statistic if ranks else np.corrcoef([x, y, z, w])).tolist()
    first, second = x[:, None], y[:, None]
    one = stats.correlation(first, second, rng, ranks=ranks, given=z).statistic.mean
    assert one == pytest.approx((r[0][1] - r[0][2] * r[1][2]) / np.sqrt((1 - r[0][2] ** 2) * (1 - r[1][2] ** 2)))
    inverse = np.linalg.inv(r)
    two = stats.correlation(first, second, rng, ranks=ranks, given=[z, w]).statistic.mean
    assert two == pytest.approx(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))
    # Of several seeds the means count, and what the others explain adds nothing.
    seeds = z[:, None] + np.array([-1.0, 0, 1])
    again = stats.correlation(
        *(np.tile(v, 3) for v in (first, second)), rng, ranks=ranks, given=(seeds, w, z, 2 * z + 1)
    )
    assert again.statistic.mean == pytest.approx(two)


def test_the_test_given_a_covariate_against_a_loop_of_regressions():
    """Freedman and Lane's permutations, of a coefficient over its standard error by White (1980)."""
    rng = np.random.default_rng(5)
    x, y, z = rng.normal(size=(3, 8)) + rng.normal(size=8)
    strata = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    reduced = np.c_[strata == 0, strata == 1, z].astype(float)
    full = np.c_[reduced, x]

    def t_of(y):
        inverse = np.linalg.inv(full.T @ full)
        coefficients = inverse @ full.T @ y
        covariance = inverse @ full.T @ np.diag((y - full @ coefficients) ** 2) @ full @ inverse
        return coefficients[-1] / np.sqrt(covariance[-1, -1])

    fit = reduced @ np.linalg.lstsq(reduced, y)[0]
    orders = itertools.product(itertools.permutations(range(5)), itertools.permutations(range(5, 8)))
    statistics = np.abs([t_of(fit + (y - fit)[list(one + other)]) for one, other in orders])
    tested = stats.correlation(x[:, None], y[:, None], rng, strata=strata, given=z)
    assert tested.p_value == pytest.approx(np.mean(statistics >= statistics[0] - 1e-9))
    assert 0.1 < tested.p_value < 0.9


def test_what_a_covariate_does_is_removed():
    x, y, z = np.random.default_rng(0).normal(size=(3, 20, 1))
    alone = stats.correlation(x, y, np.random.default_rng(0), given=z)
    moved = stats.correlation(x + 9 * z, y - 5 * z, np.random.default_rng(0), given=z)
    np.testing.assert_allclose(moved.statistic, alone.statistic, rtol=1e-6)
    assert moved.p_value == alone.p_value
    for covariate in (x, 3 * y + 1):  # it explains everything
        (mean, low, high), p_value = stats.correlation(x, y, np.random.default_rng(0), given=covariate)
        assert np.isnan([mean, low, high, p_value]).all()


@pytest.mark.parametrize("ranks", [False, True])
def test_missing_values_are_left_out_of_a_correlation(ranks):
    x, y, z = np.random.default_rng(1).normal(size=(3, 7, 3))
    gaps_x, gaps_y, gaps_z = x.copy(), y.copy(), z.copy()
    gaps_x[1, 0], gaps_y[3, 1:], gaps_z[2, 2] = np.nan, np.nan, np.nan  # left out of their sources' means
    gaps_x[0], gaps_y[4] = np.nan, np.nan  # their sources are left out
    left = [1, 2, 3, 5, 6]
    strata = np.array([0, 0, 0, 0, 1, 1, 1])
    for options in ({}, {"strata": strata}, {"given": gaps_z}):
        measured = np.stack([gaps_x, gaps_y, *([gaps_z] if "given" in options else [])])
        means = np.nanmean(np.where(np.isnan(measured).any(0), np.nan, measured)[:, left], axis=2, keepdims=True)
        of_left = {"strata": {"strata": strata[left]}, "given": {"given": means[-1]}}
        whole = next((of_left[name] for name in options), {})
        with_gaps = stats.correlation(gaps_x, gaps_y, np.random.default_rng(0), ranks=ranks, **options)
        of_means = stats.correlation(*means[:2], np.random.default_rng(0), ranks=ranks, **whole)
        assert with_gaps.statistic.mean == pytest.approx(of_means.statistic.mean)
        assert with_gaps.p_value == of_means.p_value
        assert with_gaps.statistic.low < with_gaps.statistic.mean < with_gaps.statistic.high
    # Without gaps, a source more that has no value changes nothing at all.
    more = [np.r_[values, np.full((1, 3), np.nan)] for values in (x, y)]
    want = stats.correlation(x, y, np.random.default_rng(0), ranks=ranks)
    assert stats.correlation(*more, np.random.default_rng(0), ranks=ranks) == want


@pytest.mark.parametrize("ranks", [False, True])
def test_there_is_no_correlation_of_two_sources_or_of_a_constant(ranks):
    x, y = np.random.default_rng(1).normal(size=(2, 4, 3))
    gaps = np.where(np.arange(4)[:, None] < 2, np.nan, x)
    tenths = np.full((4, 3), 0.1)
    tenths[0, 0] = np.nan  # the mean of three tenths is not that of two in floating point
    for first, second in ((gaps, y), (y, gaps), (tenths, y), (y, tenths), (np.full((4, 3), np.nan), y)):
        (mean, low, high), p_value = stats.correlation(first, second, np.random.default_rng(0), ranks=ranks)
        assert np.isnan([mean, low, high, p_value]).all()


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 3), (2, 3)), {}, "first: got 2 sources; a correlation takes 3 or more"),
        (((3, 3), (3, 2)), {}, "second: got the shape"),
        (((4, 3), (4, 3)), {"strata": np.zeros(3)}, "strata: got the shape"),
        (((4, 3), (4, 3)), {"strata": [0, 0, np.nan, 1]}, "strata: got NaN"),
        (((4, 3), (4, 3)), {"given": np.zeros((4, 2))}, "given: got the shape"),
        (((4, 3), (4, 3)), {"given": [np.zeros(4), np.zeros(3)]}, "given: got the shape"),
    ],
)
def test_what_has_no_correlation_is_refused(shapes, options, message):
    first, second = map(np.ones, shapes)
    with pytest.raises(ValueError, match=message):
        stats.correlation(first, second, np.random.default_rng(0), **options)


@pytest.mark.slow
def test_sizes_powers_and_coverage_are_what_the_page_on_power_says():
    root = Path(__file__).parents[1]
    script = runpy.run_path(root / "benchmarks" / "power.py")
    tables = {table: list(table()) for table in script["TABLES"]}
    for table, rows in tables.items():
        repetitions, side = script["TABLES"][table]
        for row in rows:
            for column, value in row.held.items():
                beyond = {"at most": value - row.bound, "at least": row.bound - value}[side]
                error = np.sqrt(row.bound * (1 - row.bound) / repetitions)
                assert beyond <= 3 * error, (table.__name__, row.setting, row.sources, column)
    twenty = {row.setting: row.shown["unadjusted"] for row in tables[script["power"]] if row.sources == 20}
    assert twenty["rho 0.6"] == pytest.approx(0.77, abs=0.03)
    assert twenty["rho 0.8"] == pytest.approx(0.99, abs=0.01)
    assert script["page"](tables) == (root / "docs" / "power.md").read_text()
