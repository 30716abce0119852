import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import metrics


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
    heavy = "{'flax', 'tensorflow_datasets', 'matplotlib', 'sklearn'}"
    code = f"import sys, jtrans.metrics; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
