import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import jacobian


def spectrum(outputs, values, singular, seed=0):
    """A float64 matrix with chosen singular values, and its singular vectors."""
    rng = np.random.default_rng(seed)
    size = len(singular)
    u = np.linalg.qr(rng.normal(size=(outputs, size)))[0]
    v = np.linalg.qr(rng.normal(size=(values, size)))[0]
    return u * np.array(singular) @ v.T, u, v


def linear(matrix):
    """The function whose Jacobian is the matrix everywhere."""
    return lambda x: x.reshape(len(x), -1) @ jnp.array(matrix, jnp.float32).T


def alike(a, b):
    """|cosine|, example by example, whatever the signs."""
    a, b = np.float64(a).reshape(len(a), -1), np.float64(b).reshape(len(b), -1)
    return np.abs((a * b).sum(1)) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def mlp(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(a, b)) / np.sqrt(a) for a, b in itertools.pairwise(sizes)]


def forward(weights, x):
    h = x.reshape(len(x), -1)
    for w in weights[:-1]:
        h = jnp.tanh(h @ jnp.asarray(w, h.dtype))
    return h @ jnp.asarray(weights[-1], h.dtype)


def float64_jacobians(weights, x):
    """By hand: the product of the layers' derivatives, in NumPy."""
    h, product = np.float64(x).reshape(len(x), -1), None
    for w in weights[:-1]:
        h = np.tanh(h @ w)
        layer = w.T[None] * (1 - h**2)[:, :, None]
        product = layer if product is None else layer @ product
    return weights[-1].T[None] @ product


@pytest.mark.parametrize("outputs", [1, 2, 10, 96, 97, 300])
@pytest.mark.parametrize("level", [0, 1])
def test_triples_agree_with_a_dense_float64_svd(outputs, level):
    if level >= outputs:
        pytest.skip("no such level")
    weights, x = mlp((60, 80, outputs)), np.random.default_rng(1).normal(size=(4, 5, 4, 3))
    u, s, vt = np.linalg.svd(float64_jacobians(weights, x))
    got = jacobian.top_singular_triple(lambda x: forward(weights, x), jnp.array(x, jnp.float32), level=level)
    assert got.u.shape == (4, outputs)
    assert got.v.shape == x.shape
    np.testing.assert_allclose(got.s, s[:, level], rtol=1e-5)
    np.testing.assert_allclose(alike(got.v, vt[:, level]), 1, atol=1e-4)
    np.testing.assert_allclose(alike(got.u, u[:, :, level]), 1, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(got.v.reshape(4, -1), axis=1), 1, rtol=1e-5)
    assert (got.residual < 1e-3 * got.s).all()


def test_the_jacobian_agrees_with_float64():
    weights, x = mlp((12, 20, 7)), np.random.default_rng(1).normal(size=(4, 3, 4))
    got = jacobian.jacobian(lambda x: forward(weights, x), jnp.array(x, jnp.float32))
    np.testing.assert_allclose(got, float64_jacobians(weights, x), atol=1e-5)


@pytest.mark.parametrize(("outputs", "values"), [(10, 50), (50, 10), (300, 40), (120, 500)])
def test_triples_of_matrices_with_chosen_spectra(outputs, values):
    matrix, u, v = spectrum(outputs, values, [5.0, 3.0, 1.0, 0.5])
    x = jnp.ones((2, values))
    for level, s in enumerate([5.0, 3.0, 1.0, 0.5]):
        got = jacobian.top_singular_triple(linear(matrix), x, level=level)
        np.testing.assert_allclose(got.s, s, rtol=2e-5)
        np.testing.assert_allclose(alike(got.v, np.stack([v[:, level]] * 2)), 1, atol=1e-4)
        np.testing.assert_allclose(alike(got.u, np.stack([u[:, level]] * 2)), 1, atol=1e-4)


@pytest.mark.parametrize("outputs", [10, 200])
def test_the_two_methods_agree(outputs, monkeypatch):
    weights, x = mlp((60, 80, outputs)), jax.random.normal(jax.random.key(0), (3, 60))
    f = lambda x: forward(weights, x)
    one = jacobian.top_singular_triple(f, x)
    monkeypatch.setattr(jacobian, "DENSE_OUTPUTS", 1000 if outputs == 200 else 1)
    other = jacobian.top_singular_triple(f, x)
    np.testing.assert_allclose(one.s, other.s, rtol=1e-5)
    np.testing.assert_allclose(alike(one.v, other.v), 1, atol=1e-5)


@pytest.mark.parametrize("outputs", [20, 200])
def test_near_degenerate_values_give_a_vector_of_their_joint_space(outputs):
    """The vectors of 2 and 2 (1 - 1e-9) cannot be told apart in float32; their plane can."""
    matrix, _, v = spectrum(outputs, 64, [2.0, 2.0 * (1 - 1e-9), 0.3])
    got = jacobian.top_singular_triple(linear(matrix), jnp.ones((1, 64)))
    np.testing.assert_allclose(got.s, 2, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(np.float64(got.v[0]) @ v[:, :2]), 1, atol=1e-5)
    assert got.residual < 1e-4


@pytest.mark.parametrize("outputs", [20, 200])
@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10])
def test_triples_hold_at_any_scale(outputs, scale):
    matrix, _, v = spectrum(outputs, 64, [2.0, 1.0])
    got = jacobian.top_singular_triple(linear(scale * matrix), jnp.ones((1, 64)))
    np.testing.assert_allclose(got.s, 2 * scale, rtol=1e-5)
    np.testing.assert_allclose(alike(got.v, v[None, :, 0]), 1, atol=1e-5)


@pytest.mark.parametrize("outputs", [20, 200])
def test_low_rank_and_zero_jacobians(outputs):
    matrix = np.zeros((outputs, 64))
    x = jnp.ones((1, 64))
    zero = jacobian.top_singular_triple(linear(matrix), x)
    assert zero.s == 0
    assert np.isnan(zero.v).all()
    matrix[7, 5] = 3.0
    got = jacobian.top_singular_triple(linear(matrix), x)
    np.testing.assert_allclose(got.s, 3, rtol=1e-6)
    np.testing.assert_allclose(np.abs(got.v[0]), np.eye(64)[5], atol=1e-6)
    assert jacobian.top_singular_triple(linear(matrix), x, level=1).s == 0


def test_slow_convergence_shows_in_the_residual():
    """A flat spectrum of 600 values is beyond 48 steps: the residual bounds the distance to a singular value."""
    singular = np.linspace(1, 0.9, 600)
    matrix, _, _ = spectrum(700, 700, singular)
    got = jacobian.top_singular_triple(linear(matrix), jnp.ones((1, 700)))
    assert got.residual > 1e-4
    assert np.abs(singular - float(got.s[0])).min() <= got.residual


def test_triples_can_be_jitted_vmapped_over_networks_and_batched(monkeypatch):
    weights = jax.random.normal(jax.random.key(0), (3, 20, 5))
    x = jax.random.normal(jax.random.key(1), (7, 20))
    triple = lambda w, x: jacobian.top_singular_triple(lambda x: jnp.tanh(x @ w), x)
    together = jax.jit(jax.vmap(triple, (0, None)))(weights, x)
    monkeypatch.setitem(jacobian.BATCH_VALUES, "cpu", 2 * 5 * 20)
    for m in range(3):
        alone = triple(weights[m], x)
        np.testing.assert_allclose(together.s[m], alone.s, rtol=1e-5)
        np.testing.assert_allclose(alike(together.v[m], alone.v), 1, atol=1e-5)


@pytest.mark.parametrize("level", [-1, 3, 50])
def test_a_level_that_does_not_exist_is_named(level):
    with pytest.raises(ValueError, match=rf"level: got {level}; a Jacobian of 3 x 8 has levels 0 to 2"):
        jacobian.top_singular_triple(linear(np.ones((3, 8))), jnp.ones((2, 8)), level=level)


def test_a_function_of_another_shape_is_named():
    with pytest.raises(ValueError, match="must return"):
        jacobian.top_singular_triple(lambda x: x.sum(), jnp.ones((2, 8)))
