import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import loops


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 12, 100])
def test_batches_give_what_the_whole_gives(wrap, batch_size):
    x, y = jnp.arange(24.0).reshape(12, 2), jnp.arange(12.0)
    sizes = []

    def function(x, y):
        sizes.append(len(x))
        return {"total": (x.sum(1) * y).sum()}, {"each": x * y[:, None]}

    total, each = wrap(lambda x, y: loops.in_batches(function, batch_size, x, y))(x, y)
    np.testing.assert_allclose(total["total"], (x.sum(1) * y).sum(), rtol=1e-6)
    np.testing.assert_allclose(each["each"], x * y[:, None])
    assert max(sizes) <= batch_size


def test_an_absent_argument_stays_absent():
    seen = []
    loops.in_batches(lambda x, key: (seen.append(key), x), 2, jnp.ones((4, 1)), None)
    assert set(seen) == {None}


def test_traced_loops_are_compiled_loops():
    """The program does not grow with the number of batches or of repetitions."""
    total = lambda x: loops.in_batches(lambda x: (jnp.sin(x).sum(), x), 2, x)
    assert len(str(jax.make_jaxpr(total)(jnp.ones(10)))) > 0.8 * len(str(jax.make_jaxpr(total)(jnp.ones(100))))
    body = lambda x: jnp.sin(x) + x
    again = lambda count: str(jax.make_jaxpr(lambda x: loops.repeat(count, body, x))(1.0))
    assert len(again(3)) + 10 > len(again(300))
    assert jax.jit(lambda x: loops.repeat(5, body, x))(1.0) == pytest.approx(loops.repeat(5, body, 1.0))
