from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import attacks, directions

LINF = {
    "fgsm": attacks.fgsm(0.03, random_start=True),
    "pgd": attacks.pgd(0.03, 7, 0.01),
    "mi_fgsm": attacks.mi_fgsm(0.03, 7, 0.01),
}
L2 = {"pgd": attacks.pgd(0.5, 7, 0.2, norm="l2"), "virtual": attacks.virtual(0.5, bounds=(0, 1))}


def problem(classes=5, count=16, seed=0):
    """A random network and inputs in [0, 1], many of them at the bounds."""
    rng = np.random.default_rng(seed)
    weights = [jnp.array(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32) for s in ((48, 32), (32, classes))]
    f = lambda x: 4 * jnp.tanh(x.reshape(len(x), -1) @ weights[0]) @ weights[1]
    x = jnp.array(np.clip(rng.uniform(-0.1, 1.1, size=(count, 4, 4, 3)), 0, 1), jnp.float32)
    return f, x, jnp.array(rng.integers(classes, size=count))


COMPILED = pytest.mark.parametrize("compiled", [lambda attack: attack, jax.jit], ids=["eager", "jit"])


@COMPILED
@pytest.mark.parametrize("name", LINF)
def test_linf_bounds_hold_to_the_last_bit(name, compiled):
    f, x, y = problem(count=200)
    adversarial = compiled(partial(LINF[name], f))(x, y, jax.random.key(0))
    difference = np.float64(adversarial) - np.float64(x)
    assert np.abs(difference).max() <= 0.03
    assert np.abs(difference).max() > 0.0299
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert adversarial.dtype == jnp.float32


@COMPILED
@pytest.mark.parametrize("name", L2)
def test_l2_bounds_hold_to_the_last_bit(name, compiled):
    f, x, y = problem(count=200)
    adversarial = compiled(partial(L2[name], f))(x, y, jax.random.key(0))
    length = np.linalg.norm((np.float64(adversarial) - np.float64(x)).reshape(200, -1), axis=1)
    assert length.max() <= 0.5
    assert length.max() > 0.499
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def dongs_mi_fgsm(foolbox):
    """Foolbox's MI-FGSM adds up the signs of the gradients; Dong et al. (2018), equation 6, the gradients over their L1
    norms. With its own function for that in place of the sign, the rest of Foolbox's loop is the paper's."""
    from foolbox.attacks.gradient_descent_base import normalize_lp_norms

    class Dongs(foolbox.attacks.MIFGSM):
        def normalize(self, gradients, *, x, bounds):
            return normalize_lp_norms(gradients, p=1)

    return Dongs


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_l2", "mi_fgsm"])
@pytest.mark.parametrize("target", ["label", "own"])
def test_attacks_agree_with_foolbox(name, target):
    """An independent implementation on the same weights, deterministic start."""
    foolbox = pytest.importorskip("foolbox")
    ours, theirs = {
        "fgsm": (attacks.fgsm(0.05), foolbox.attacks.LinfFastGradientAttack(random_start=False)),
        "pgd": (
            attacks.pgd(0.05, 10, 0.01, random_start=False),
            foolbox.attacks.LinfProjectedGradientDescentAttack(abs_stepsize=0.01, steps=10, random_start=False),
        ),
        "pgd_l2": (
            attacks.pgd(0.05, 10, 0.01, norm="l2", random_start=False),
            foolbox.attacks.L2ProjectedGradientDescentAttack(abs_stepsize=0.01, steps=10, random_start=False),
        ),
        "mi_fgsm": (
            attacks.mi_fgsm(0.05, 10, 0.01, decay=0.9),
            dongs_mi_fgsm(foolbox)(abs_stepsize=0.01, steps=10, momentum=0.9, random_start=False),
        ),
    }[name]
    f, x, y = problem()
    y = y if target == "label" else attacks.own_prediction(f, x)
    _, want, _ = theirs(
        foolbox.models.JAXModel(f, bounds=(0, 1)), x, foolbox.criteria.Misclassification(y), epsilons=0.05
    )
    np.testing.assert_allclose(ours(f, x, y, None), want, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_finds_the_best_point_of_the_ball_of_a_linear_network(norm):
    """For two classes the loss grows with the margin, whose maximum over the ball is known."""
    w = np.random.default_rng(0).normal(size=(12, 2))
    f = lambda x: x @ jnp.array(w, jnp.float32)
    x, y = jnp.zeros((3, 12)), jnp.array([0, 1, 0])
    got = attacks.pgd(0.3, 30, 0.1, norm=norm, bounds=None)(f, x, y, jax.random.key(0))
    margin = np.outer(np.where(y == 0, 1, -1), w[:, 1] - w[:, 0])
    best = 0.3 * (np.sign(margin) if norm == "linf" else margin / np.linalg.norm(margin, axis=1, keepdims=True))
    np.testing.assert_allclose(got, best, atol=1e-4)


def test_a_random_start_is_uniform_in_the_ball_and_does_not_depend_on_the_batch():
    x = jnp.full((2000, 3), 0.5)
    f, y, key = lambda x: x[:, :2], jnp.zeros(2000, int), jax.random.key(0)
    start = attacks.pgd(0.1, 1, 0.0)  # steps of no length: the start stays
    cube = start(f, x, y, key) - x
    ball = jnp.linalg.norm(attacks.pgd(0.1, 1, 0.0, norm="l2")(f, x, y, key) - x, axis=1)
    for sample in ((cube.ravel() + 0.1) / 0.2, (ball / 0.1) ** 3):
        np.testing.assert_allclose(np.quantile(sample, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    np.testing.assert_array_equal(start(f, x[:5], y[:5], key) - x[:5], cube[:5])
    keys = directions.example_keys(key, 2000)
    np.testing.assert_array_equal(start(f, x[7:9], y[7:9], keys[7:9]) - x[7:9], cube[7:9])


def test_attacks_are_the_same_compiled_and_vmapped_over_networks():
    _, x, y = problem()
    weights = jax.random.normal(jax.random.key(0), (3, 48, 5))
    run = lambda w, x: attacks.pgd(0.05, 5, 0.02)(
        lambda x: jnp.tanh(x.reshape(len(x), -1) @ w), x, y, jax.random.key(1)
    )
    together = jax.jit(jax.vmap(run, (0, None)))(weights, x)
    for m in range(3):
        # A gradient near 0 may change its sign with rounding, and move one input value by a step.
        assert (np.abs(together[m] - run(weights[m], x)) > 1e-6).mean() < 1e-3


def test_a_network_without_gradient_is_left_alone():
    x = jnp.full((2, 4), 0.5)
    for attack in (
        attacks.fgsm(0.1),
        attacks.pgd(0.1, 3, 0.1, norm="l2", random_start=False),
        attacks.mi_fgsm(0.1, 3, 0.1),
    ):
        np.testing.assert_array_equal(attack(lambda x: 0 * x[:, :2], x, jnp.zeros(2, int), None), x)


def test_the_virtual_attack_is_epsilon_along_the_singular_vector():
    f, x, y = problem()
    moved = attacks.virtual(0.01)(f, x, y) - x
    np.testing.assert_allclose(moved, 0.01 * directions.singular_vector(f, x), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.pgd(0.1, 3, 0.1, norm="l1"), "norm: got 'l1'; it takes linf or l2"),
        (lambda: attacks.fgsm(-0.1), "epsilon: got -0.1"),
        (lambda: attacks.pgd(0.1, 3, 0.1)(*problem(), None), "key: got None"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


ATTACKS = {
    "fgsm": attacks.fgsm(0.1),
    "fgsm, random start": attacks.fgsm(0.1, random_start=True),
    "pgd": attacks.pgd(0.1, 3, 0.05),
    "pgd in L2": attacks.pgd(0.1, 3, 0.05, norm="l2"),
    "mi_fgsm": attacks.mi_fgsm(0.1, 3, 0.05),
    "virtual": attacks.virtual(0.1, bounds=(0, 1)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_without_a_direction_leaves_the_image_as_it_is(name):
    """At some images alone: where the network is not finite, or says the same whatever the input."""
    x, y, key = jax.random.uniform(jax.random.key(0), (6, 5)), jnp.zeros(6, int), jax.random.key(1)
    x = x.at[:, 0].set(jnp.array([0.5, 0.1, 0.9, 0.5, 0.1, 0.5]))
    weights = jax.random.normal(jax.random.key(2), (5, 3))
    healthy = lambda x: x @ weights
    ill = lambda x: jnp.where(x[:, :1] < 0.3, jnp.nan, jnp.where(x[:, :1] > 0.7, 0.0, 1.0)) * healthy(x)
    moved = ATTACKS[name](ill, x, y, key)
    assert (moved == x).all(1).tolist() == [False, True, True, False, True, False]
    np.testing.assert_allclose(moved[::5], ATTACKS[name](healthy, x, y, key)[::5], atol=1e-6)
    assert jnp.isfinite(moved).all()


def test_what_is_not_finite_is_neither_right_nor_wrong():
    logits, labels = jnp.array([[1.0, 2.0], [2.0, 1.0], [jnp.nan, 1.0], [jnp.inf, 1.0]]), jnp.array([1, 1, 0, 0])
    np.testing.assert_array_equal(attacks.right(logits, labels), [1, 0, np.nan, np.nan])
    attacked = np.array([0, 0, 1, 0, np.nan])
    clean_target, clean_source = np.array([1, 1, 1, np.nan, 1]), np.array([1, np.nan, 0, 1, 1])
    rate, count = attacks.success(attacked, clean_target, clean_source)
    assert count.tolist() == [3, 3, 1]
    np.testing.assert_allclose(rate, [2 / 3, 2 / 3, 1])
