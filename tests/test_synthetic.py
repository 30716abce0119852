import csv
import functools
from functools import partial

import jax
import numpy as np
import pytest
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


def float64_row(target, source, x, y, level=0):
    """Every column from the definitions: loops, dense SVDs and least squares in float64."""
    target, source = ([np.float64(a) for a in network] for network in (target, source))

    def jacobians(network):
        w1, b1, w2, _ = network
        h = sigmoid(x @ w1.T + b1)
        return np.einsum("kh,nh,hd->nkd", w2, h * (1 - h), w1), h

    (js, hidden), (jt, of_target) = jacobians(source), jacobians(target)

    def taus(a, b):
        ratios, alike, combined = [], 0, 0
        for ja, jb in zip(a, b, strict=True):
            v = np.linalg.svd(ja)[2][level]
            own, across = ja @ v, jb @ v
            ratios.append(np.linalg.norm(across) / np.linalg.svd(jb)[1][0])
            outer = np.outer(own, across) / np.linalg.norm(own) / np.linalg.norm(across)
            alike, combined = alike + outer, combined + ratios[-1] * outer
        return np.mean(ratios), np.linalg.norm(alike) / len(a), np.linalg.norm(combined) / len(a)

    def rms(error):
        return np.sqrt((error**2).sum(1).mean())

    columns = (np.moveaxis(j, 1, 0).reshape(j.shape[1], -1) for j in (js, jt))
    flat_s, flat_t = columns
    a = np.linalg.lstsq(flat_s.T, flat_t.T, rcond=None)[0].T
    design = np.c_[hidden, np.ones(len(x))]
    refit = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    names = ("tau1", "tau2", "tau1tau2")
    return {
        **{f"{n}_S_T": v for n, v in zip(names, taus(js, jt), strict=True)},
        **{f"{n}_T_S": v for n, v in zip(names, taus(jt, js), strict=True)},
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


def published_table(shared_data, width, level):
    """The published problem, and the table of its sources of one width."""
    published = problem.load(str(shared_data / "synthetic.npz"))
    return published, synthetic.measured([(0, published._replace(sources={width: published.sources[width]}))], (level,))


def test_the_published_problem_gives_the_published_numbers(shared_data):
    _, table = published_table(shared_data, 100, 0)
    rows = list(csv.DictReader((shared_data.parent / "reference" / "synthetic_m100_level0.csv").open()))
    assert tuple(rows[0]) == problem.COLUMNS
    for name in problem.COLUMNS:
        np.testing.assert_allclose(table[name], [float(row[name]) for row in rows], atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "level"), [(50, 0), (50, 1), (100, 1), (200, 0), (200, 1)])
def test_the_published_problems_other_sources_agree_with_float64(shared_data, width, level):
    published, table = published_table(shared_data, width, level)
    for s in (0, 3, 9):
        source = jax.tree.map(lambda leaf, s=s: leaf[s], published.sources[width])
        want = float64_row(published.target, source, np.float64(published.x), np.float64(published.y), level)
        for name, value in want.items():
            assert table[name][s] == pytest.approx(value, abs=5e-5), (s, name)


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
    assert run(tmp_path, *SMALL, "--config.levels=(0, 1)") == 0
    results = experiment.read(tmp_path)
    table, summary = results.tables["synthetic"], results.summary
    assert tuple(table) == ("seed", "width", "level", *problem.COLUMNS)
    assert len(table) == 3 * 2 * 2 * 3
    assert sorted(set(table["seed"])) == [0, 1, 2]
    loss = next(row for row in summary["rows"] if row["width"] == 12 and row["measure"] == "transfer_loss_S")
    rows = table[(table["width"] == 12) & (table["level"] == 0)]
    assert loss["last"]["mean"] == pytest.approx(rows["transfer_loss_S"][rows["scale"] > 0.5].mean())
    assert loss["first"]["low"] <= loss["first"]["mean"] < loss["last"]["mean"] <= loss["last"]["high"]
    assert loss["spearman"]["mean"] == 1
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
