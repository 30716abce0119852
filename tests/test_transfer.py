import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import transfer


def problem(features=20, redundant=0):
    rng = np.random.default_rng(0)
    h = 1 / (1 + np.exp(-rng.normal(size=(200, features)))) + 3
    h = np.c_[h, h[:, :redundant]]
    return h, rng.normal(size=(200, 4))


@pytest.mark.parametrize("redundant", [0, 5])
def test_the_head_is_float64_least_squares_with_a_bias(redundant):
    h, y = problem(redundant=redundant)
    design = np.c_[h, np.ones(len(h))]
    want = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    head = transfer.fit_head(jnp.array(h, jnp.float32), jnp.array(y, jnp.float32))
    np.testing.assert_allclose(h @ np.float64(head.weights) + np.float64(head.bias), want, atol=1e-3)
    loss = transfer.transfer_loss(jnp.array(h, jnp.float32), jnp.array(y, jnp.float32))
    np.testing.assert_allclose(loss, np.sqrt(((want - y) ** 2).sum(1).mean()), rtol=1e-5)


def test_an_affine_target_is_fitted_wholly():
    h, _ = problem()
    y = h @ np.random.default_rng(1).normal(size=(20, 3)) - 5
    assert transfer.transfer_loss(jnp.array(h, jnp.float32), jnp.array(y, jnp.float32)) < 1e-4


def test_the_error_is_summed_over_outputs_and_averaged_over_examples():
    outputs = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    assert transfer.root_mean_squared_error(outputs, jnp.zeros((2, 2))) == pytest.approx(np.sqrt(12.5))
