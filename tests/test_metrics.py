import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import attacks, jacobian, metrics


def pair_at(degrees, dimension, seed=0):
    """Two float64 vectors at a chosen angle in a random plane, of random lengths."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(dimension, 2)))[0].T
    angle = np.deg2rad(degrees)
    return 3.7 * basis[0], 0.02 * (np.cos(angle) * basis[0] + np.sin(angle) * basis[1])


def exact(u, v):
    """The angle between float32 vectors, computed in float64."""
    u, v = (w.astype(np.float64) / np.linalg.norm(w.astype(np.float64)) for w in (u, v))
    return np.rad2deg(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))


@pytest.mark.parametrize("degrees", [0, 1e-3, 0.01, 0.1, 1, 30, 60, 89, 89.99, 90, 90.01, 120, 179, 179.99, 180])
@pytest.mark.parametrize("dimension", [2, 3072])
def test_angles_agree_with_float64(degrees, dimension):
    u, v = (w.astype(np.float32) for w in pair_at(degrees, dimension))
    want = exact(u, v)
    assert metrics.angles(u[None], v[None], fold=False)[0] == pytest.approx(want, abs=1e-3)
    assert metrics.angles(u[None], v[None])[0] == pytest.approx(min(want, 180 - want), abs=1e-3)


def test_angles_take_any_shape_and_scale():
    u = jax.random.normal(jax.random.key(0), (5, 4, 4, 3))
    v = jax.random.normal(jax.random.key(1), (5, 4, 4, 3))
    got = metrics.angles(u, v)
    assert got.shape == (5,)
    np.testing.assert_allclose(metrics.angles(1e-30 * u, -1e30 * v), got, rtol=1e-5)


def test_a_zero_or_non_finite_vector_has_no_angle():
    u = jnp.array([[0.0, 0.0], [1.0, jnp.inf], [1.0, 2.0]])
    assert np.isnan(metrics.angles(u, jnp.ones((3, 2)))).tolist() == [True, True, False]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        metrics.angles(jnp.ones((2, 3)), jnp.ones((2, 4)))


def test_importing_metrics_imports_no_flax_tfds_or_matplotlib():
    heavy = "{'flax', 'pandas', 'tensorflow_datasets', 'matplotlib', 'sklearn', 'scipy.optimize'}"
    code = f"import sys, jtrans.metrics; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def linear(matrix):
    return lambda x: x.reshape(len(x), -1) @ jnp.array(matrix, jnp.float32).T


def compiled(attack):
    """The attack as one program for each network and batch size, instead of one for each of its operations."""
    return jax.jit(attack, static_argnums=0)


def networks(seed=0, sizes=((12, 20, 5), (12, 30, 4)), count=30):
    """Two random tanh networks as float64 weights, and inputs."""
    rng = np.random.default_rng(seed)
    weights = [[rng.normal(size=(a, b)) / np.sqrt(a), rng.normal(size=(b, c)) / np.sqrt(b)] for a, b, c in sizes]
    return weights, rng.normal(size=(count, 3, 4))


def function(weights):
    first, second = (jnp.array(w, jnp.float32) for w in weights)
    return lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second


def float64_jacobian(weights, x):
    h = np.tanh(x.reshape(len(x), -1) @ weights[0])
    return np.einsum("hk,nh,dh->nkd", weights[1], 1 - h**2, weights[0])


def float64_taus(source, target, level=0):
    """The definitions, a loop over examples."""
    ratios, alike, combined = [], 0, 0
    for js, jt in zip(source, target, strict=True):
        v = np.linalg.svd(js)[2][level]
        own, across, best = js @ v, jt @ v, np.linalg.svd(jt)[1][0]
        ratio = np.linalg.norm(across) / best
        outer = np.outer(own / np.linalg.norm(own), across / np.linalg.norm(across))
        ratios.append(ratio)
        alike, combined = alike + outer, combined + ratio * outer
    return np.mean(ratios), *(np.linalg.norm(m) / len(source) for m in (alike, combined)), np.array(ratios)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_the_linearised_taus_agree_with_float64(level):
    (source, target), x = networks()
    for one, other in ((source, target), (target, source)):
        got = metrics.transferability(function(one), function(other), x.astype(np.float32), level=level)
        want = float64_taus(float64_jacobian(one, x), float64_jacobian(other, x), level)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        assert level or (got.tau1_per_example <= 1 + 1e-6).all()


def test_linear_networks_that_differ_by_a_rotation_of_outputs_transfer_wholly():
    rng = np.random.default_rng(0)
    w, rotation = rng.normal(size=(4, 9)), np.linalg.qr(rng.normal(size=(4, 4)))[0]
    got = metrics.transferability(linear(w), linear(rotation @ w), jnp.ones((6, 9)))
    np.testing.assert_allclose(got[:3], 1, atol=1e-5)


def test_taus_of_chosen_spectra_in_closed_form():
    """The source is most sensitive to e0, which the target answers with 2 of its best 5: tau1 = 0.4 and tau2 = 1."""
    source, target = np.diag([3.0, 1.0, 0.0]), np.diag([2.0, 5.0, 1.0])
    x = jnp.ones((4, 3))
    forth = metrics.transferability(linear(source), linear(target), x)
    back = metrics.transferability(linear(target), linear(source), x)
    np.testing.assert_allclose([forth.tau1, forth.tau2, forth.tau1_tau2], [0.4, 1, 0.4], rtol=1e-6)
    np.testing.assert_allclose([back.tau1, back.tau2, back.tau1_tau2], [1 / 3, 1, 1 / 3], rtol=1e-6)
    second = metrics.transferability(linear(source), linear(target), x, level=1)
    np.testing.assert_allclose(second.tau1, 1, rtol=1e-6)


def test_tau2_falls_where_the_outputs_move_in_unrelated_ways():
    """Half of the inputs move output 0, half output 1, and the target answers half of the time with a third one."""
    kinds = np.array([[[1, 0], [0, 0], [0, 0]], [[0, 0], [1, 0], [0, 0]]], np.float32)
    f = lambda x: jnp.einsum("nkd,nd->nk", jnp.asarray(kinds)[x[:, 1].astype(int)], x)
    g = lambda x: jnp.stack([x[:, 0], 0 * x[:, 0], 0 * x[:, 0]], 1)
    x = jnp.array([[1.0, 0.0], [1.0, 1.0]] * 4)
    got = metrics.transferability(f, g, x)
    np.testing.assert_allclose([got.tau1, got.tau2], [1, np.sqrt(0.5)], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_scaling_either_network_changes_nothing(scale):
    (source, target), x = networks()
    f, g = function(source), function(target)
    want = metrics.transferability(f, g, x.astype(np.float32))
    for one, other in ((lambda x: scale * f(x), g), (f, lambda x: scale * g(x))):
        for a, b in zip(metrics.transferability(one, other, x.astype(np.float32)), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_finite_attack_tends_to_the_linearised_one():
    (source, target), x = networks()
    x = x.astype(np.float32)
    want = metrics.transferability(function(source), function(target), x)
    errors = []
    for epsilon in (1.0, 0.1, 0.01):
        got = metrics.transferability(function(source), function(target), x, attack=attacks.virtual(epsilon))
        errors.append(np.abs(got.tau1_per_example - want.tau1_per_example).max())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.01


def test_finite_attacks_follow_the_definitions():
    (source, target), x = networks()
    f, g, x = function(source), function(target), jnp.array(x, jnp.float32)
    attack, key = attacks.pgd(0.1, 5, 0.04, bounds=None), jax.random.key(0)
    got = metrics.transferability(f, g, x, attack=attack, key=key)
    moved, own = (attack(h, x, h(x).argmax(1), key) for h in (f, g))
    ds, dt, best = (np.float64(a) for a in (f(moved) - f(x), g(moved) - g(x), g(own) - g(x)))
    ratio = np.linalg.norm(dt, axis=1) / np.linalg.norm(best, axis=1)
    outer = np.einsum("nk,nl->nkl", *(d / np.linalg.norm(d, axis=1, keepdims=True) for d in (ds, dt)))
    np.testing.assert_allclose(got.tau1, ratio.mean(), rtol=1e-4)
    np.testing.assert_allclose(got.tau2, np.linalg.norm(outer.mean(0)), rtol=1e-4)
    np.testing.assert_allclose(got.tau1_tau2, np.linalg.norm((ratio[:, None, None] * outer).mean(0)), rtol=1e-4)


@pytest.mark.parametrize("attack", [None, compiled(attacks.pgd(0.1, 3, 0.05, bounds=None))], ids=["linearised", "pgd"])
def test_the_batch_size_does_not_matter(attack):
    weights, x = networks()
    pair, x = [function(of_one) for of_one in weights], x.astype(np.float32)
    measure = partial(metrics.transferability, *pair, x, attack=attack, key=jax.random.key(0))
    whole = measure()
    for batch_size in (1, 7, 30):
        for a, b in zip(measure(batch_size=batch_size), whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)


def test_everything_can_be_jitted_and_vmapped_over_networks():
    x = jax.random.normal(jax.random.key(0), (10, 6))
    weights = jax.random.normal(jax.random.key(1), (3, 6, 4))
    target = jax.random.normal(jax.random.key(2), (6, 5))
    f = lambda w: lambda x: jnp.tanh(x @ w)

    def measure(w, x):
        return (
            metrics.transferability(f(w), f(target), x, batch_size=4).tau2,
            metrics.gradient_matching_distance(f(w), f(target), x, batch_size=4),
            metrics.function_matching_distance(f(w), f(target), x, batch_size=4),
        )

    together, alone = jax.jit(jax.vmap(measure, (0, None)))(weights, x), jax.jit(measure)
    for m in range(3):
        np.testing.assert_allclose([t[m] for t in together], alone(weights[m], x), rtol=1e-3)
    np.testing.assert_allclose([t[0] for t in together], measure(weights[0], x), rtol=1e-3)


def test_a_penalty_on_the_angle_can_be_differentiated():
    """What controlling transferability needs: a gradient, in the weights, of an angle between input gradients."""
    from jtrans import directions

    x, y = jax.random.normal(jax.random.key(0), (8, 6)), jnp.array([0, 1] * 4)
    surrogate, w = jax.random.normal(jax.random.key(1), (2, 6, 2))

    @jax.jit
    def penalty(w):
        mine, theirs = (directions.loss_gradient(lambda x, v=v: jnp.tanh(x @ v), x, y) for v in (w, surrogate))
        return metrics.angles(mine, theirs).mean()

    gradient = jax.grad(penalty)(w)
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    np.testing.assert_allclose(penalty(w + step) - penalty(w - step), 2 * jnp.sum(step * gradient), rtol=0.02)


def test_examples_without_an_effect_are_left_out():
    f = lambda x: jnp.where(x[:, :1] > 0, x, 0 * x)  # dead for half of the inputs
    x = jnp.array([[1.0, 2.0], [-1.0, 2.0], [3.0, 1.0]])
    for one, other in ((f, lambda x: 2 * x), (lambda x: 2 * x, f)):
        got = metrics.transferability(one, other, x)
        assert np.isnan(got.tau1_per_example).tolist() == [False, True, False]
        np.testing.assert_allclose(got.tau1, 1, rtol=1e-5)
    # A target that does not answer this attack, though it would another, is no missing value: it is a ratio of 0.
    blind = metrics.transferability(linear(np.diag([2.0, 1.0])), linear([[0.0, 1.0]]), jnp.ones((3, 2)))
    assert (blind.tau1, blind.tau2, blind.tau1_tau2) == (0, 0, 0)


def float64_matching_distance(source, target):
    """By least squares over all columns at once, rather than from moments."""
    s, t = (np.moveaxis(j, 1, 0).reshape(j.shape[1], -1) for j in (source, target))
    a = np.linalg.lstsq(s.T, t.T, rcond=None)[0].T
    return np.sqrt(((t - a @ s) ** 2).sum() / len(source))


@pytest.mark.parametrize("batch_size", [None, 7])
def test_the_gradient_matching_distance_agrees_with_float64_least_squares(batch_size):
    (source, target), x = networks()
    for one, other in ((source, target), (target, source)):
        want = float64_matching_distance(float64_jacobian(one, x), float64_jacobian(other, x))
        got = metrics.gradient_matching_distance(
            function(one), function(other), x.astype(np.float32), batch_size=batch_size
        )
        np.testing.assert_allclose(got, want, rtol=1e-5)
        jacobians = (jacobian.jacobian(function(w), jnp.array(x, jnp.float32)) for w in (one, other))
        np.testing.assert_allclose(metrics.jacobian_matching_distance(*jacobians), want, rtol=1e-5)


@pytest.mark.parametrize("redundant", [False, True])
def test_matching_distances_are_zero_where_a_map_exists(redundant):
    (source, _), x = networks()
    f, x = function(source), jnp.array(x, jnp.float32)
    twice = lambda x: jnp.concatenate([f(x), f(x)], axis=1)  # outputs of which half are redundant
    matrix = jnp.array(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    g = lambda x: f(x) @ matrix + 7
    own = twice if redundant else f
    assert metrics.gradient_matching_distance(own, g, x) < 1e-4
    assert metrics.function_matching_distance(own, g, x) < 1e-4
    assert metrics.gradient_matching_distance(g, f, x) > 0.1  # 3 outputs cannot give 5


@pytest.mark.parametrize(
    ("source_scale", "target_scale"), [(1e-30, 1), (1e30, 1), (1, 1e-30), (1, 1e30), (1e-30, 1e30), (1e-22, 1e-22)]
)
def test_the_gradient_matching_distance_scales_with_the_target_alone(source_scale, target_scale):
    (source, target), x = networks()
    want = float64_matching_distance(float64_jacobian(source, x), float64_jacobian(target, x))
    f, g, x = function(source), function(target), jnp.array(x, jnp.float32)
    scaled = lambda x: source_scale * f(x), lambda x: target_scale * g(x)
    got = metrics.gradient_matching_distance(*scaled, x, batch_size=10)
    np.testing.assert_allclose(np.float64(got), target_scale * want, rtol=1e-5)
    jacobians = (jacobian.jacobian(h, x) for h in scaled)
    np.testing.assert_allclose(np.float64(metrics.jacobian_matching_distance(*jacobians)), got, rtol=1e-5)


def test_outputs_of_very_different_scales_are_matched_wholly():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    f = lambda x: x @ jnp.array(q * 10 ** -np.linspace(0, 2.5, 16), jnp.float32)
    x = rng.normal(size=(40, 16)).astype(np.float32)
    assert float(metrics.gradient_matching_distance(f, lambda x: x, x)) < 1e-4


@pytest.mark.parametrize(("size", "power"), [(2, 0), (10, 1.5), (100, 1.5)])
def test_small_directions_of_the_source_are_matched(size, power):
    """Outputs nearly parallel, or of a falling spectrum that is not along single outputs: a network is itself."""
    rng = np.random.default_rng(0)
    rotate = np.linalg.qr(rng.normal(size=(size, size)))[0]
    spectrum = np.array([1, 1e-3]) if size == 2 else np.arange(1.0, size + 1) ** -power
    jacobians = (rotate * spectrum) @ rng.normal(size=(20, size, 2 * size))
    source = jnp.array(jacobians, jnp.float32)
    target = jnp.array(np.linalg.inv(rotate * spectrum)[-1:] @ jacobians, jnp.float32)  # the smallest, at full length
    own, smallest = (metrics.jacobian_matching_distance(source, each) for each in (source, target))
    length = lambda each: float(jnp.sqrt(jnp.square(each).sum() / len(each)))
    assert own < 0.01 * length(source)
    assert smallest < 0.2 * length(target)


@pytest.mark.parametrize(("size", "outputs", "values"), [(2, 4, 3072), (5, 10, 12), (10, 50, 100)])
def test_redundant_outputs_of_the_source_are_matched(size, outputs, values):
    """Rounding gives their moments directions that are not there, on every machine others."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        distinct = rng.normal(size=(30, size, values)) * rng.uniform(size=values) ** 2
        source, target = (np.einsum("kl,nld->nkd", rng.normal(size=(k, size)), distinct) for k in (outputs, 3))
        distance = metrics.jacobian_matching_distance(*(jnp.array(each, jnp.float32) for each in (source, target)))
        assert distance < 2e-3 * np.sqrt(np.square(target).sum() / len(target))


@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_matching_distances_of_constant_networks(scale):
    """A source without a Jacobian leaves all of the target's; a target without one is matched wholly."""
    (source, _), x = networks()
    f, x = (lambda x: scale * function(source)(x)), jnp.array(x, jnp.float32)
    nothing = lambda x: 0 * x.reshape(len(x), -1)[:, :2]
    whole = scale * np.sqrt(np.square(float64_jacobian(source, np.float64(x))).sum((1, 2)).mean())
    np.testing.assert_allclose(np.float64(metrics.gradient_matching_distance(nothing, f, x)), whole, rtol=1e-5)
    assert metrics.gradient_matching_distance(f, nothing, x) == 0
    assert metrics.gradient_matching_distance(nothing, nothing, x) == 0
    whole_jacobian, zero = jacobian.jacobian(f, x), jnp.zeros((len(x), 2, 12))
    np.testing.assert_allclose(np.float64(metrics.jacobian_matching_distance(zero, whole_jacobian)), whole, rtol=1e-5)
    assert metrics.jacobian_matching_distance(whole_jacobian, zero) == 0


def test_the_gradient_matching_distance_of_outputs_that_sum_to_a_constant():
    """Probabilities, whose Jacobians' rows add up to 0: in float64 too, so that the oracle cannot fit rounding."""
    weights, x = networks()

    def probabilities_jacobian(w):
        logits, of_logits = np.tanh(x.reshape(len(x), -1) @ w[0]) @ w[1], float64_jacobian(w, x)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return p[:, :, None] * (of_logits - np.einsum("nk,nkd->nd", p, of_logits)[:, None])

    f, g = (lambda x, w=w: 1e-25 * jax.nn.softmax(function(w)(x)) for w in weights)
    got = metrics.gradient_matching_distance(f, g, jnp.array(x, jnp.float32))
    want = float64_matching_distance(*map(probabilities_jacobian, weights))
    np.testing.assert_allclose(1e25 * np.float64(got), want, rtol=1e-5)


def test_the_function_matching_distance_agrees_with_float64_least_squares():
    (source, target), x = networks()
    f, g, x = function(source), function(target), x.astype(np.float32)
    outputs = np.c_[np.float64(f(x)), np.ones(len(x))]
    residual = np.float64(g(x)) - outputs @ np.linalg.lstsq(outputs, np.float64(g(x)), rcond=None)[0]
    want = np.sqrt((residual**2).sum(1).mean())
    for batch_size in (None, 7):
        np.testing.assert_allclose(metrics.function_matching_distance(f, g, x, batch_size=batch_size), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1, "attack": attacks.fgsm(0.1)}, "level: got 1 together with an attack"),
        ({"level": 4}, "level: got 4"),
        ({"attack": attacks.pgd(0.1, 2, 0.1)}, "key: got None"),
    ],
)
def test_bad_arguments_are_named(options, message):
    (source, _), x = networks()
    with pytest.raises(ValueError, match=message):
        metrics.transferability(lambda x: function(source)(x)[:, :4], function(source), x.astype(np.float32), **options)


def test_the_success_matrix_of_linear_networks_in_closed_form():
    """Margins w.x move by epsilon times the overlap of the target's weights with the signs of the source's."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 6))
    x, y = rng.uniform(0.3, 0.7, size=(50, 6)), rng.integers(2, size=50)
    networks = [lambda x, w=w: jnp.stack([-(x - 0.5) @ w, (x - 0.5) @ w], 1) for w in jnp.array(weights, jnp.float32)]
    fgsm = compiled(attacks.fgsm(0.05))
    got = metrics.success_matrix(networks, networks[:2], x, y, fgsm, batch_size=16)
    assert metrics.success_matrix([], networks[:2], x, y, fgsm).rate.shape == (0, 2, 3)
    assert got.count[0, 0].tolist()[0] == 50
    sign = 2 * y - 1
    margins = sign[:, None] * ((x - 0.5) @ weights.T)
    for s in range(3):
        for t in range(2):
            moved = margins[:, t] - 0.05 * np.sign(weights[s]) @ weights[t]
            for among, rate in zip(
                (slice(None), margins[:, t] > 0, (margins[:, [t, s]] > 0).all(1)), got.rate[s, t], strict=True
            ):
                assert rate == pytest.approx((moved < 0)[among].mean())


@pytest.mark.parametrize("attack", [attacks.fgsm(0.05), attacks.pgd(0.05, 3, 0.05), attacks.virtual(0.1)])
def test_lost_networks_neither_succeed_nor_are_fooled(attack):
    """A network that diverged, one that is dead, and one that is both for some images; beside a healthy one."""
    rng = np.random.default_rng(0)
    weights, x = jnp.array(rng.normal(size=(6, 3)), jnp.float32), jnp.array(rng.uniform(size=(40, 6)), jnp.float32)
    x = x.at[:, 0].set(jnp.where(jnp.arange(40) % 3 == 0, 0.8, 0.2))
    healthy = lambda x: x @ weights
    diverged, dead = lambda x: healthy(x) * jnp.nan, lambda x: healthy(x) * 0
    some = lambda x: jnp.where(x[:, :1] > 0.5, jnp.nan, healthy(x))
    networks, y, key = [healthy, diverged, dead, some], np.asarray(healthy(x).argmax(1)), jax.random.key(0)
    attack = compiled(attack)
    rate, count, unmoved = metrics.success_matrix(networks, networks, x, y, attack, key=key, batch_size=16)
    gone = int((x[:, 0] > 0.5).sum())
    assert unmoved.tolist() == [0, 40, 40, gone]
    assert (count[:, 1] == 0).all()
    assert np.isnan(rate[:, 1]).all()  # what predicts nothing is not fooled
    assert (count[0, 3, 0], count[3, 0, 0], count[0, 0, 0]) == (40 - gone, 40 - gone, 40)
    assert (rate[2, 0, 1], count[2, 0, 0]) == (0, 40)  # what has no gradient fools nothing
    assert (count[1] == 0).all()  # what predicts nothing makes no attack that could fail
    assert np.isnan(rate[1]).all()
    alone = metrics.success_matrix([healthy], [healthy], x, y, attack, key=key)
    np.testing.assert_allclose(rate[0, 0], alone.rate[0, 0])


def test_an_attack_of_the_users_own_that_gives_nan_moves_nothing():
    x, y = jnp.ones((5, 3)), np.arange(5) % 3
    spoil = lambda f, x, y, key: x.at[:2].set(jnp.nan) + 1.0
    found = metrics.success_matrix([lambda x: x], [lambda x: x], x, y, spoil)
    assert found.unmoved.tolist() == [2]
    assert found.count[0, 0, 0] == 5


def test_a_targeted_attack_succeeds_where_its_label_is_predicted():
    """Images are one-hot, before and under attack; one network predicts what it sees, another the mirror image."""
    x, y, target_labels = jnp.eye(3)[jnp.array([0, 1, 2, 0])], np.array([0, 1, 2, 1]), np.array([1, 2, 0, 2])
    reach, kept = lambda f, x, y, key: jax.nn.one_hot(y, 3), {}
    seen, mirror, lost = lambda x: x, lambda x: x[:, ::-1], lambda x: x.at[0].set(jnp.nan)
    options = {"target_labels": target_labels, "keep": kept.__setitem__}
    rate, count, _ = metrics.success_matrix([seen, mirror], [seen, mirror, lost], x, y, reach, **options)
    assert rate[0].tolist() == [[1, 1, 1], [1 / 4, 0, 0], [1, 1, 1]]
    assert count[0].tolist() == [[4, 3, 3], [4, 1, 1], [3, 2, 2]]
    assert [adversarial.argmax(1).tolist() for adversarial in kept.values()] == [target_labels.tolist()] * 2


def test_examples_that_are_not_finite_are_left_out_of_the_taus():
    (source, target), x = networks()
    f, g, x = function(source), function(target), jnp.asarray(x, jnp.float32)
    first = lambda x: x.reshape(len(x), -1)[:, :1]
    middle = np.median(first(x))
    ill = lambda x: jnp.where(first(x) > middle, jnp.nan, g(x))
    half = np.asarray(first(x) <= middle)[:, 0]
    moves = compiled(attacks.fgsm(1e-3, bounds=None))
    for options in ({}, {"attack": moves}):
        for pair, healthy in (((f, ill), (f, g)), ((ill, f), (g, f))):
            part = metrics.transferability(*pair, x, **options)
            np.testing.assert_array_equal(np.isnan(part.tau1_per_example), ~half)
            want = metrics.transferability(*healthy, x[half], **options)
            np.testing.assert_allclose(part[:3], want[:3], rtol=1e-3)


def test_the_success_matrix_does_not_depend_on_the_batch_size():
    rng = np.random.default_rng(0)
    weights = jnp.array(rng.normal(size=(2, 12, 3)), jnp.float32)
    networks = [lambda x, w=w: jnp.tanh(x.reshape(len(x), -1) @ w) for w in weights]
    x, y = rng.uniform(size=(30, 2, 2, 3)).astype(np.float32), rng.integers(3, size=30)
    attack, key = compiled(attacks.pgd(0.3, 3, 0.2)), jax.random.key(0)
    whole, parts = (
        metrics.success_matrix(networks, networks, x, y, attack, key=key, batch_size=b).rate for b in (30, 7)
    )
    np.testing.assert_array_equal(whole, parts)
    assert (whole >= 0).all()
    assert whole[0, 0, 0] > whole[0, 1, 0]  # an attack works best on its own network
    with pytest.raises(ValueError, match="key"):
        metrics.success_matrix(networks, networks, x, y, attack)
