import gc
import weakref
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import jacobian, loops, metrics


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


def network(seed, outputs=4):
    weights = jax.random.normal(jax.random.key(seed), (6, outputs))
    return lambda x: jnp.tanh(x @ weights)


X = jax.random.normal(jax.random.key(0), (25, 6))
MEASURES = {
    "top_singular_triple": lambda f, g: jacobian.top_singular_triple(f, X),
    "transferability": lambda f, g: metrics.transferability(f, g, X),
    "transferability in batches": lambda f, g: metrics.transferability(f, g, X, batch_size=10),
    "gradient_matching_distance": lambda f, g: metrics.gradient_matching_distance(f, g, X, batch_size=10),
    "function_matching_distance": lambda f, g: metrics.function_matching_distance(f, g, X, batch_size=10),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_measure_called_again_with_the_same_networks_compiles_nothing(measure, lowerings):
    f, g = network(1), network(2)
    first, before = measure(f, g), lowerings()
    again = measure(f, g)
    assert lowerings() == before
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_networks_are_not_kept_alive_by_what_was_compiled_of_them(measure):
    f, g = network(1), network(2)
    measure(f, g)
    dead = [weakref.ref(f), weakref.ref(g), weakref.ref(f.__closure__[0].cell_contents)]
    programs = len(loops._programs)
    del f, g
    gc.collect()
    assert [reference() for reference in dead] == [None] * 3
    assert len(loops._programs) < programs


class InPlace:
    """A network whose weights change in place, as of NNX or of NumPy."""

    def __init__(self, convert, inner):
        self.weights, self.inner, self.scale = convert(np.eye(6, dtype=np.float32)), inner, 1.0

    def __call__(self, x):
        return self.scale * self.inner(lambda x: x @ self.weights)(x)


@pytest.mark.parametrize("convert", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
@pytest.mark.parametrize("inner", [lambda f: f, lambda f: jax.jit(f), jax.checkpoint], ids=["plain", "jit", "remat"])
def test_a_network_that_was_changed_in_place_is_measured_as_it_is(convert, inner):
    f = InPlace(convert, inner)
    size = lambda: float(jacobian.top_singular_triple(f, X).s[0])
    assert size() == pytest.approx(1)
    f.weights = convert(2 * np.eye(6, dtype=np.float32))
    assert size() == pytest.approx(2)
    if convert is np.asarray:
        f.weights *= 2
        assert size() == pytest.approx(4)
    f.scale = 10.0
    assert size() == pytest.approx(40 if convert is np.asarray else 20)


def test_rules_and_host_functions_that_were_changed_are_used_as_they_are():
    state = {"host": 1.0, "tangent": 1.0, "backward": 1.0}
    weights = jnp.eye(6)
    host = lambda x: jax.pure_callback(lambda x: np.float32(state["host"] * np.asarray(x)), x, x)

    @jax.custom_jvp
    def forward(x):
        return x @ weights

    forward.defjvp(lambda primals, tangents: (forward(*primals), state["tangent"] * tangents[0]))

    @jax.custom_vjp
    def backward(x):
        return x @ weights

    backward.defvjp(lambda x: (x, None), lambda _, cotangent: (state["backward"] * cotangent,))
    distance = lambda: float(metrics.function_matching_distance(lambda x: x[:, :1], host, X))
    size = lambda f: float(jacobian.top_singular_triple(f, X).s[0])
    before = distance(), size(forward), size(backward)
    assert before[1:] == pytest.approx((1, 1))
    state.update(host=2.0, tangent=3.0, backward=5.0)
    assert (distance(), size(forward), size(backward)) == pytest.approx((2 * before[0], 3, 5), rel=1e-4)


def test_networks_that_take_no_weak_references_are_measured():
    class Net(NamedTuple):
        factor: float

        def __call__(self, x):
            return self.factor * x

    assert float(jacobian.top_singular_triple(Net(3.0), X).s[0]) == pytest.approx(3)


def test_few_programs_are_held_however_many_pairs_are_measured():
    networks = [network(seed) for seed in range(4)]
    for f in networks:
        for g in networks:
            metrics.transferability(f, g, X)
    assert len(loops._programs) <= loops.PROGRAMS


def test_no_examples_are_named():
    with pytest.raises(ValueError, match="x: got no examples"):
        metrics.transferability(network(1), network(2), X[:0])


def test_networks_that_are_transformed_are_measured_as_without_it():
    """Their weights are traced while the inputs are not."""
    weights = jax.random.normal(jax.random.key(1), (3, 6, 4))
    tau = lambda w: metrics.transferability(lambda x: jnp.tanh(x @ w), network(2), X, batch_size=10).tau1
    np.testing.assert_allclose(jax.vmap(tau)(weights), [tau(w) for w in weights], rtol=1e-5)


@pytest.mark.parametrize("sizes", [(1,), (3,), (1, 1), (1, 3), (3, 1)])
def test_a_function_that_is_alone_gives_what_vmap_gives(sizes):
    x, shared = jax.random.normal(jax.random.key(0), (*sizes, 4, 5)), jnp.arange(5.0)
    function = lambda tree, y: {"product": tree["x"] @ y, "shared": y.sum()}
    vmapped, expected = loops.alone(function), function
    for _ in sizes:
        vmapped, expected = (jax.vmap(f, ({"x": 0}, None)) for f in (vmapped, expected))
    found, expected = jax.jit(vmapped)({"x": x}, shared), expected({"x": x}, shared)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_a_function_that_is_alone_has_no_batch_of_one():
    function = loops.alone(lambda x, y: x @ y)
    batch = jax.make_jaxpr(jax.vmap(jax.vmap(function)))(jnp.zeros((1, 1, 2, 3)), jnp.zeros((1, 1, 3, 2)))
    assert "f32[2,2] = dot_general" in str(batch)
