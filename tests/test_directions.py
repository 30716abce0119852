import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import directions


def test_normalize_gives_unit_vectors_at_any_scale():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(5, 4, 3))
    scaled = v * np.array([1e-36, 1e-20, 1.0, 1e20, 1e36])[:, None, None]
    want = v.reshape(5, 12) / np.linalg.norm(v.reshape(5, 12), axis=1, keepdims=True)
    np.testing.assert_allclose(directions.normalize(jnp.array(scaled, jnp.float32)), want, atol=1e-6)


def test_normalize_gives_nan_where_there_is_no_direction():
    v = jnp.array([[0.0, 0.0], [1.0, jnp.nan], [1.0, jnp.inf], [1.0, 0.0]])
    assert np.isnan(directions.normalize(v)).any(axis=1).tolist() == [True, True, True, False]


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_loss_gradient_is_the_direction_of_the_cross_entropy_gradient(num_classes):
    rng = np.random.default_rng(num_classes)
    w, x = rng.normal(size=(num_classes, 12)), rng.normal(size=(6, 2, 6))
    y = rng.integers(num_classes, size=6)
    logits = x.reshape(6, 12) @ w.T
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    want = (probability - np.eye(num_classes)[y]) @ w

    f = lambda x: x.reshape(len(x), -1) @ jnp.array(w, jnp.float32).T
    got = directions.loss_gradient(f, jnp.array(x, jnp.float32), y)
    assert got.shape == x.shape
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(directions.normalize(got), want, atol=1e-5)


def test_loss_gradient_keeps_its_direction_for_a_confident_network():
    """Three classes and margins at which the float32 softmax of the label rounds to exactly 1."""
    w = np.array([[30.0, 0.0, 1.0], [-1.0, 2.0, 0.5], [-3.0, -1.0, 2.0]])
    x, y = np.array([[2.0, 0.3, -0.2]]), np.array([0])
    logits = x @ w.T
    others = np.exp(logits[:, 1:] - logits[:, 1:].max())
    want = (others / others.sum()) @ w[1:] - w[0]
    f = lambda x: x @ jnp.array(w, jnp.float32).T
    want /= np.linalg.norm(want)
    textbook = jax.grad(lambda x: -jax.nn.log_softmax(f(x))[0, 0])(jnp.array(x, jnp.float32))
    assert (directions.normalize(textbook) @ want.T).item() < 0.5  # more than 60 degrees off
    got = directions.normalize(directions.loss_gradient(f, jnp.array(x, jnp.float32), y))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("scale", [0.01, 1, 150])
def test_the_cotangent_times_the_other_probability_is_the_gradient_of_the_cross_entropy(scale):
    """Up to probabilities that no float32 holds."""
    rng = np.random.default_rng(0)
    logits = scale * rng.normal(size=(20, 5))
    y = np.where(np.arange(20) < 10, logits.argmax(1), rng.integers(5, size=20))
    others = np.exp(logits - logits.max(1, keepdims=True))
    others[np.arange(20), y] = 0
    want = others / np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)
    total = want.sum(1)
    want[np.arange(20), y] = -total
    log_size = directions.log_other_probability(jnp.array(logits, jnp.float32), y)
    np.testing.assert_allclose(log_size, np.log(total), rtol=1e-5, atol=1e-6)
    cotangent = np.float64(directions.loss_cotangent(jnp.array(logits, jnp.float32), y))
    got = cotangent * np.exp(np.float64(log_size))[:, None]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-30)
    assert scale < 150 or total.min() < 1e-45


def test_loss_gradient_can_be_differentiated_and_vmapped_over_networks():
    x, y = jax.random.normal(jax.random.key(0), (4, 5)), jnp.array([0, 1, 1, 0])

    def penalty(w):
        return jnp.sum(directions.loss_gradient(lambda x: jnp.tanh(x @ w), x, y) ** 2)

    w = jax.random.normal(jax.random.key(1), (3, 5, 2))
    gradients = jax.jit(jax.vmap(jax.grad(penalty)))(w)
    step = 1e-2 * gradients[0] / jnp.linalg.norm(gradients[0])
    difference = penalty(w[0] + step) - penalty(w[0] - step)
    np.testing.assert_allclose(difference, 2 * jnp.sum(gradients[0] * step), rtol=1e-2)


def test_one_class_has_no_cross_entropy():
    with pytest.raises(ValueError, match="2 or more"):
        directions.loss_gradient(lambda x: x[:, :1], jnp.ones((3, 4)), jnp.zeros(3, int))


def test_the_margin_gradient_points_from_the_label_to_the_nearest_other_class():
    w = jnp.array(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    x, y = jnp.array(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32), jnp.array([0, 1, 2, 3, 0])
    logits = np.array(x @ w.T)
    logits[np.arange(5), y] = -np.inf
    np.testing.assert_allclose(
        directions.margin_gradient(lambda x: x @ w.T, x, y), w[logits.argmax(1)] - w[y], atol=1e-6
    )


def test_for_two_classes_the_margin_and_the_loss_have_one_direction():
    f = lambda x: jnp.tanh(x @ jnp.array(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32))
    x, y = jax.random.normal(jax.random.key(0), (5, 6)), jnp.array([0, 1, 1, 0, 1])
    margin, loss = (directions.normalize(d(f, x, y)) for d in (directions.margin_gradient, directions.loss_gradient))
    np.testing.assert_allclose(margin, loss, atol=1e-5)


def test_random_directions_are_uniform_and_do_not_depend_on_the_batch():
    x = jnp.zeros((4000, 2, 2))
    got = directions.random(jax.random.key(0), x)
    assert got.shape == x.shape
    flat = got.reshape(4000, 4)
    np.testing.assert_allclose(jnp.linalg.norm(flat, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(flat.T @ flat / 4000, np.eye(4) / 4, atol=0.02)
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        np.testing.assert_allclose(directions.random(key, x[:3]), got[:3], atol=1e-6)
