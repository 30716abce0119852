import functools
from functools import partial

import jax
import numpy as np
import pandas
import pytest
import scipy.stats
from conftest import ROOT

from jtrans.errors import InputError
from jtrans.experiments import synthetic
from jtrans.experiments.synthetic import problem
from jtrans.harness import cli, experiment
from jtrans.harness.fields import defaults

SMALL = [
    "--config.num_seeds=3",
    "--config.num_points=200",
    "--config.scales=(0.0, 0.3, 0.9)",
    "--config.widths=(8, 12)",
    "--config.target_width=12",
    "--config.input_size=6",
    "--config.output_size=3",
    "--config.fit.num_steps=300",
]


def run(workdir, *arguments):
    return cli.run(synthetic.EXPERIMENT, ["synthetic.py", "--config=synthetic", f"--workdir={workdir}", *arguments])


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def rms(error):
    return np.sqrt((error**2).sum(1).mean())


def float64_row(target, source, x, y, level=0):
    """Every column from the definitions: dense SVDs and least squares in float64."""
    target, source = ([np.float64(a) for a in network] for network in (target, source))

    def jacobians(network):
        w1, b1, w2, _ = network
        h = sigmoid(x @ w1.T + b1)
        return (w2[None] * (h * (1 - h))[:, None]) @ w1, h

    (js, hidden), (jt, of_target) = jacobians(source), jacobians(target)
    svd_s, svd_t = (np.linalg.svd(j, full_matrices=False) for j in (js, jt))

    def taus(ja, jb, a, b):
        v = a.Vh[:, level]
        own, across = (np.einsum("nkd,nd->nk", j, v) for j in (ja, jb))
        ratios = np.linalg.norm(across, axis=1) / b.S[:, 0]
        own, across = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (own, across))
        combined = (ratios[:, None] * own).T @ across
        return ratios.mean(), np.linalg.norm(own.T @ across) / len(x), np.linalg.norm(combined) / len(x)

    flat_s, flat_t = (np.moveaxis(j, 1, 0).reshape(j.shape[1], -1) for j in (js, jt))
    a = np.linalg.lstsq(flat_s.T, flat_t.T, rcond=None)[0].T
    design = np.c_[hidden, np.ones(len(x))]
    refit = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    names = ("tau1", "tau2", "tau1tau2")
    return {
        **{f"{n}_S_T": v for n, v in zip(names, taus(js, jt, svd_s, svd_t), strict=True)},
        **{f"{n}_T_S": v for n, v in zip(names, taus(jt, js, svd_t, svd_s), strict=True)},
        "transfer_loss_S": rms(refit - y),
        "loss_T": rms(of_target @ target[2].T + target[3] - y),
        "gradient_matching_distance": np.sqrt(((flat_t - a @ flat_s) ** 2).sum() / len(x)),
    }


def generate(seed, num_steps=300):
    config = defaults(synthetic.FIELDS)
    config.update(scales=(0.0, 0.2, 0.6), widths=(8, 12), target_width=12, num_points=300, input_size=6)
    config.update(output_size=3, num_clusters=4, fit={"num_steps": num_steps, "batch_size": 50, "learning_rate": 1e-2})
    return problem.generate(seed, config)


@functools.cache
def small_problem(seed=0, num_steps=300):
    return jax.jit(partial(generate, num_steps=num_steps))(seed)


@pytest.mark.parametrize("level", [0, 1])
def test_every_column_agrees_with_float64(level):
    x, y, scales, target, of_width = small_problem()
    measure = jax.jit(partial(problem.measure, level=level))
    for width, sources in of_width.items():
        for s in range(len(scales)):
            source = jax.tree.map(lambda leaf, s=s: leaf[s], sources)
            got = measure(target, source, x, y)
            want = float64_row(target, source, np.float64(x), np.float64(y), level)
            assert got.keys() == want.keys()
            for name, value in want.items():
                assert got[name] == pytest.approx(value, abs=2e-5), (width, s, name)


def test_the_published_problem_gives_the_published_numbers(shared_data, tmp_path):
    assert run(tmp_path, f"--config.problem={shared_data / 'synthetic.npz'}", "--config.levels=(0,)") == 0
    table = experiment.read(tmp_path).tables["synthetic"]
    assert [key for key, _ in table.groupby(["width", "level"])] == [(50, 0), (100, 0), (200, 0)]
    rows = table[table["width"] == 100]
    published = pandas.read_csv(shared_data.parent / "reference" / "synthetic_m100_level0.csv")
    assert tuple(published) == problem.COLUMNS
    for name in problem.COLUMNS:
        np.testing.assert_allclose(rows[name], published[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_all_six_published_tables_agree_with_float64(shared_data, tmp_path):
    """By one command."""
    path = shared_data / "synthetic.npz"
    assert run(tmp_path, f"--config.problem={path}") == 0
    table = experiment.read(tmp_path).tables["synthetic"]
    assert [key for key, _ in table.groupby(["width", "level"])] == [(w, n) for w in (50, 100, 200) for n in (0, 1)]
    published = problem.load(str(path))
    x, y = np.float64(published.x), np.float64(published.y)
    for (width, level), rows in table.groupby(["width", "level"]):
        for s, (_, row) in enumerate(rows.iterrows()):
            source = jax.tree.map(lambda leaf, s=s: leaf[s], published.sources[width])
            for name, value in float64_row(published.target, source, x, y, level).items():
                assert row[name] == pytest.approx(value, abs=5e-5), (width, level, s, name)


def official_regression(rng, num_points, num_clusters, input_size, output_size, num_functions):
    """The regression problem as the paper's official code draws it, by NumPy."""
    uniform = partial(rng.uniform, -0.5, 0.5)
    centers = uniform((num_clusters, input_size))
    sizes = map(len, np.array_split(np.arange(num_points), num_clusters))
    x = np.concatenate([c + rng.normal(size=(size, input_size)) for c, size in zip(centers, sizes, strict=True)])
    means, scales = uniform((num_functions, input_size)), rng.uniform(0, 100, num_functions)
    basis = np.stack([np.exp(-((x - m) ** 2).sum(1) / s) for m, s in zip(means, scales, strict=True)], axis=1)
    return x, basis @ uniform((output_size, num_functions)).T + uniform(output_size)


def test_the_regression_problem_has_the_distribution_of_the_official_one():
    """Over many small problems; the spread over many outputs shows the basis functions without the noise of weights."""
    config, count = defaults(synthetic.FIELDS), 10_000
    sizes = {"num_points": 7, "num_clusters": 3, "input_size": 100, "output_size": 40, "num_basis_functions": 2}
    config.update(sizes)
    generated = jax.vmap(partial(problem.regression, config=config))(jax.random.split(jax.random.key(0), count))
    rng = np.random.default_rng(0)
    official = zip(*(official_regression(rng, *sizes.values()) for _ in range(count)), strict=True)
    generated, official = ([np.stack(arrays) for arrays in problems] for problems in (generated, official))
    statistics = {
        "a coordinate of x": lambda x, y: x[:, 0, 0],
        "the square of x": lambda x, y: (x**2).sum((1, 2)),
        "the last two points of a cluster": lambda x, y: (x[:, 1] * x[:, 2]).sum(1),
        "the first two points of a cluster": lambda x, y: (x[:, 3] * x[:, 4]).sum(1),
        "two points of two clusters": lambda x, y: (x[:, 2] * x[:, 3]).sum(1),
        "the mean of the values": lambda x, y: y.mean((1, 2)),
        "the spread of the values": lambda x, y: y.std((1, 2)),
        "the spread of how values change within a cluster": lambda x, y: (y[:, 1] - y[:, 2]).std(1),
        "the spread of how values change between clusters": lambda x, y: (y[:, 0] - y[:, 5]).std(1),
    }
    for name, statistic in statistics.items():
        assert scipy.stats.ks_2samp(statistic(*generated), statistic(*official)).pvalue > 1e-3, name


def problem_statistics(x, y):
    """How large x and y are, how they spread, and how much of that is between clusters of 500 points."""
    x, y = np.float64(x), np.float64(y)
    between = lambda values: values.reshape(10, 500, -1).mean(1).var(0).sum() / values.var(0).sum()
    return {
        "mean of x": x.mean(),
        "variance of x": x.var(0).mean(),
        "share of the variance of x between clusters": between(x),
        "root mean square of the means of y": np.sqrt((y.mean(0) ** 2).mean()),
        "spread of y": np.sqrt(y.var(0).sum()),
        "smallest spread of an output": y.std(0).min(),
        "largest spread of an output": y.std(0).max(),
        "share of the variance of y between clusters": between(y),
    }


def test_the_published_problem_is_one_as_generated(shared_data):
    config = defaults(synthetic.FIELDS)
    keys = jax.random.split(jax.random.key(0), 20)
    generated = zip(*jax.jit(jax.vmap(partial(problem.regression, config=config)))(keys), strict=True)
    generated = pandas.DataFrame([problem_statistics(x, y) for x, y in generated])
    published = problem.load(str(shared_data / "synthetic.npz"))
    for name, value in problem_statistics(published.x, published.y).items():
        assert value == pytest.approx(generated[name].mean(), abs=2.5 * generated[name].std()), name


def test_the_drift_adds_up_along_one_deviation():
    network = problem.initialize(jax.random.key(0), 6, 5, 3)
    drifted = problem.drift(jax.random.key(1), network, np.array([0.0, 0.1, 0.2, 0.3]))
    for start, moved in zip(network, drifted, strict=True):
        np.testing.assert_array_equal(moved[0], start)
        deviation = (np.float64(moved[3]) - start) / 0.6
        assert np.abs(deviation).max() <= 0.5 + 1e-5
        np.testing.assert_allclose(moved[2] - start, 0.3 * deviation, atol=1e-5)


def test_the_target_is_fitted_and_is_the_source_that_drifts():
    x, y, _, target, sources = small_problem(num_steps=5000)
    error = np.asarray(problem.apply(target, x) - y)
    assert (error**2).sum(1).mean() < 0.1 * np.var(y, axis=0).sum()
    for drifting, of_target in zip(sources[12], target, strict=True):
        np.testing.assert_array_equal(drifting[0], of_target)


def test_another_seed_is_another_problem_and_vmapped_equals_looped():
    one, other = small_problem(0), small_problem(1)
    assert not np.allclose(one.x, other.x)
    both = jax.jit(jax.vmap(generate))(np.arange(2, dtype=np.uint32))
    for leaf, first, second in zip(*(jax.tree.leaves(p) for p in (both, one, other)), strict=True):
        np.testing.assert_allclose(leaf[0], first, atol=1e-3)
        np.testing.assert_allclose(leaf[1], second, atol=1e-3)


def test_the_experiment_leaves_a_table_a_summary_and_a_figure(tmp_path, capsys):
    assert run(tmp_path, *SMALL) == 0
    results = experiment.read(tmp_path)
    table, summary = results.tables["synthetic"], results.summary
    assert tuple(table) == ("seed", "width", "level", *problem.COLUMNS)
    assert len(table) == 3 * 2 * 2 * 3
    assert sorted(set(table["seed"])) == [0, 1, 2]
    of_level_0 = {row["measure"]: row for row in summary["rows"] if row["width"] == 12 and row["level"] == 0}
    loss, distance = of_level_0["transfer_loss_S"], of_level_0["gradient_matching_distance"]
    rows = table[(table["width"] == 12) & (table["level"] == 0)]
    assert loss["last"]["mean"] == pytest.approx(rows["transfer_loss_S"][rows["scale"] > 0.5].mean())
    assert loss["first"]["low"] <= loss["first"]["mean"] < loss["last"]["mean"] <= loss["last"]["high"]
    ranks = [
        of_seed["scale"].corr(of_seed["transfer_loss_S"], method="spearman") for _, of_seed in rows.groupby("seed")
    ]
    assert loss["spearman"]["mean"] == pytest.approx(np.mean(ranks))
    assert distance["spearman"]["mean"] == distance["spearman"]["high"] == 1 > distance["spearman"]["low"]
    assert all(-1 <= row["spearman"]["low"] <= row["spearman"]["high"] <= 1 for row in summary["rows"])
    panels = synthetic.draw(results)["figure"].axes
    assert "drift" in panels[0].get_xlabel()
    assert "root mean squared" in panels[-3].get_ylabel()
    np.testing.assert_allclose(
        panels[-3].get_lines()[1].get_ydata(), rows.groupby("scale")["transfer_loss_S"].mean(), rtol=1e-12
    )
    texts = [text.get_text() for text in panels[-1].get_legend().get_texts()]
    assert "95 % interval over 3 seeds" in texts
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "rank correlation" in said
    assert synthetic.tell(results) in said


@pytest.mark.slow
def test_the_committed_results_are_the_programs(tmp_path):
    assert run(tmp_path, "--config.num_seeds=1") == 0
    rows = experiment.read(tmp_path).tables["synthetic"]
    committed = pandas.read_csv(ROOT / "docs" / "synthetic.csv")
    committed = committed[committed["seed"] == 0]
    assert tuple(rows) == tuple(committed)
    np.testing.assert_allclose(rows, committed, atol=0.01)


def write_problem(path, **changes):
    x, y, scales, target, sources = small_problem()
    arrays = {"X": x, "Y": y, "scales": scales}
    for name, network in (("target", target), ("source12", sources[12])):
        arrays |= {f"{name}_{part}": array for part, array in network._asdict().items()}
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_a_given_problem_is_measured(tmp_path):
    path = write_problem(tmp_path / "problem.npz", target_b1=np.asarray(small_problem().target.b1)[:, None])
    assert run(tmp_path / "run", f"--config.problem={path}") == 0
    results = experiment.read(tmp_path / "run")
    table = results.tables["synthetic"]
    assert set(table["width"]) == {12}
    assert table["tau1_S_T"][0] == pytest.approx(1, abs=1e-5)  # without drift the source is the target
    texts = [text.get_text() for text in synthetic.draw(results)["figure"].axes[-1].get_legend().get_texts()]
    assert not any("interval" in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Y": None}, "no array 'Y'"),
        ({"source12_b2": None}, "no array 'source12_b2'"),
        ({"source12_W1": None}, "has no sources"),
        ({"target_W2": np.ones((2, 2))}, "target_W2 has shape (2, 2); it takes (3, 12)"),
        ({"X": np.ones(300)}, "problem: X has shape (300,); it takes [N, D]"),
        ({"Y": np.ones(300)}, "problem: Y has shape (300,); it takes [N, K]"),
        ({"X": np.ones((0, 6))}, "problem: X has shape (0, 6)"),
        ({"Y": np.ones((299, 3))}, "problem: X has 300 points and Y has 299"),
        ({"scales": np.ones(())}, "problem: scales has shape (); it takes [S]"),
        ({"source²_W1": np.ones((3, 2, 6)), "source12_W1": None}, "has no sources"),
        ({"X": np.array([["a"] * 6] * 300)}, "holds 'X' of <U1; it takes arrays of real numbers"),
        ({"Y": np.full((300, 3), None)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_problem_of_another_form_is_named(tmp_path, changes, message):
    path = write_problem(tmp_path / "problem.npz", **changes)
    with pytest.raises(InputError) as error:
        problem.load(str(path))
    assert message in str(error.value)


def test_a_problem_of_whole_numbers_is_measured(tmp_path):
    points = np.arange(1800).reshape(300, 6) % 5
    x, y, _, target, sources = problem.load(str(write_problem(tmp_path / "problem.npz", X=points)))
    source = jax.tree.map(lambda leaf: leaf[1], sources[12])
    measured = problem.measure(target, source, x, y)
    for name, value in float64_row(target, source, np.float64(points), np.float64(y)).items():
        assert measured[name] == pytest.approx(value, abs=2e-5), name


def test_levels_are_checked_against_the_sizes_of_a_given_problem_before_anything_runs(tmp_path, capsys):
    path = write_problem(tmp_path / "problem.npz")
    assert run(tmp_path / "run", f"--config.problem={path}", "--config.levels=(3,)") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "levels: got 3; Jacobians of this size have levels 0 to 2" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.problem=nowhere.npz", "problem: 'nowhere.npz' is no npz file"),
        (f"--config.problem={ROOT / 'README.md'}", "is no npz file"),
        ("--config.levels=(3,)", "levels: got 3; Jacobians of this size have levels 0 to 2"),
        ("--config.levels=(-1,)", "levels: got (-1,)"),
        ("--config.target_width=1", "levels: got 1; Jacobians of this size have levels 0 to 0"),
        ("--config.scales=(0.3, 0.1)", "scales: got (0.0, 0.3, 0.9, 0.3, 0.1); it takes a tuple of numbers, 0 first"),
        ("--config.scales=(-1.0,)", "scales: got (0.0, 0.3, 0.9, -1.0)"),
        ("--config.fit.learning_rate=0", "fit.learning_rate: got 0.0"),
        ("--config.num_seed=3", "num_seed: unknown config field; did you mean num_seeds?"),
    ],
)
def test_bad_settings_are_one_line_and_status_2(tmp_path, capsys, flag, message):
    assert run(tmp_path / "run", *SMALL, flag) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
