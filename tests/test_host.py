"""A network written in NumPy, with derivatives in closed form, against the same network written in JAX."""

import gc
import re
import time
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtrans import attacks, directions, host, jacobian, metrics

N, SHAPE, HIDDEN = 5, (4, 3), 20


class Mlp:
    """`tanh(x W1) W2` in NumPy, as PyTorch or any other framework would be asked; it remembers what it was asked."""

    def __init__(self, outputs, seed=0):
        rng = np.random.default_rng(seed)
        self.weights = [rng.normal(size=size) / np.sqrt(size[0]) for size in ((12, HIDDEN), (HIDDEN, outputs))]
        self.calls = []

    def hidden(self, x):
        return np.tanh(x.reshape(len(x), -1) @ self.weights[0])

    def forward(self, x):
        self.calls.append(("forward", len(x)))
        return self.hidden(x) @ self.weights[1]

    def vjp(self, x, u):
        self.calls.append(("vjp", len(x)))
        return ((u @ self.weights[1].T * (1 - self.hidden(x) ** 2)) @ self.weights[0].T).reshape(x.shape)

    def jvp(self, x, v):
        self.calls.append(("jvp", len(x)))
        return (v.reshape(len(x), -1) @ self.weights[0] * (1 - self.hidden(x) ** 2)) @ self.weights[1]

    def on_host(self, with_jvp=True):
        return host.function(self.forward, self.vjp, self.jvp if with_jvp else None, self.weights[1].shape[1])

    def in_jax(self):
        first, second = self.weights
        return lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second


@pytest.fixture(autouse=True)
def _float64():
    """So that two ways to compute the same differ by nothing that a sign or an argmax could turn into more."""
    with jax.enable_x64(True):
        yield


def inputs(seed=7):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(N, *SHAPE)))


Y = np.arange(N) % 4
KEY = jax.random.key(0)
unsigned = lambda triple: (triple.s, triple.v * jnp.sign(triple.v[:, :1, :1]), triple.u * jnp.sign(triple.u[:, :1]))
matrix = lambda f, g, x, attack: metrics.success_matrix([f, g], [f, g], x, Y, attack, key=KEY, batch_size=3)
MEASURES = {
    "logits": lambda f, g, x: f(x),
    "loss_gradient": lambda f, g, x: directions.loss_gradient(f, x, Y),
    "margin_gradient": lambda f, g, x: directions.margin_gradient(f, x, Y),
    "jacobian": lambda f, g, x: jacobian.jacobian(f, x),
    "top_singular_triple": lambda f, g, x: unsigned(jacobian.top_singular_triple(f, x)),
    "level 1": lambda f, g, x: unsigned(jacobian.top_singular_triple(f, x, level=1)),
    "transferability": lambda f, g, x: metrics.transferability(f, g, x),
    "finite transferability": lambda f, g, x: metrics.transferability(f, g, x, attack=attacks.fgsm(0.1)),
    "gradient_matching_distance": lambda f, g, x: metrics.gradient_matching_distance(f, g, x, batch_size=2),
    "function_matching_distance": lambda f, g, x: metrics.function_matching_distance(f, g, x, batch_size=2),
    "success_matrix": lambda f, g, x: matrix(f, g, x, attacks.pgd(0.3, 3, 0.1)),
    "success_matrix, compiled": lambda f, g, x: matrix(
        f, g, x, jax.jit(attacks.mi_fgsm(0.3, 3, 0.1), static_argnums=0)
    ),
    "success_matrix, virtual": lambda f, g, x: matrix(f, g, x, attacks.virtual(0.5, bounds=(0, 1))),
}
WRAPS = {"as it is": lambda f: f, "jit": jax.jit, "in a lambda": lambda f: lambda x: 2 * f(x)}


def assert_close(ours, theirs, name=""):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_every_measure_agrees_with_the_same_network_in_jax(measure):
    one, other, x = Mlp(10), Mlp(10, seed=1), inputs()
    assert_close(measure(one.on_host(), other.on_host(), x), measure(one.in_jax(), other.in_jax(), x))


@pytest.mark.parametrize("with_jvp", [True, False], ids=["jvp", "vjp alone"])
def test_many_outputs(with_jvp):
    """More than `jacobian.DENSE_OUTPUTS`, by `J v` and `J^T u` in a compiled loop."""
    one, other, x = Mlp(1000), Mlp(1000, seed=1), inputs()
    ours = MEASURES["transferability"](one.on_host(with_jvp), other.on_host(with_jvp), x)
    assert_close(ours, MEASURES["transferability"](one.in_jax(), other.in_jax(), x))
    assert {name for name, _ in one.calls} == ({"forward", "vjp", "jvp"} if with_jvp else {"forward", "vjp"})
    assert {size for _, size in one.calls} == {N}
    # Where there is no `J v`, J itself: again where XLA runs the two networks in turns, but not at each of 12 steps.
    assert one.calls.count(("vjp", N)) < 6 * 1000


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_network_in_jit_or_in_a_lambda_stays_differentiable(wrap):
    network, x = Mlp(10), inputs()
    for name in ("loss_gradient", "jacobian", "top_singular_triple"):
        assert_close(*(MEASURES[name](wrap(f), None, x) for f in (network.on_host(), network.in_jax())))


@pytest.mark.parametrize("with_jvp", [True, False], ids=["jvp", "vjp alone"])
def test_derivatives_in_both_directions_under_every_transformation(with_jvp):
    network, x = Mlp(6), inputs()
    v, u = inputs(1), jnp.asarray(np.random.default_rng(2).normal(size=(N, 6)))
    push = lambda f, x, v: jax.jvp(f, (x,), (v,))[1]
    pull = lambda f, x, u: jax.vjp(f, x)[1](u)[0]
    one_by_one = lambda f, x, v: push(f, x[None], v[None])[0]
    transformed = {
        "J v": lambda f: push(f, x, v),
        "J v compiled": lambda f: jax.jit(lambda x, v: push(f, x, v))(x, v),
        "J v linearised": lambda f: jax.linearize(f, x)[1](v),
        "J^T u as the transpose of J v": lambda f: jax.linear_transpose(jax.linearize(f, x)[1], x)(u),
        "J v as the derivative of J^T u": lambda f: jax.vjp(lambda u: pull(f, x, u), u)[1](v),
        "columns": lambda f: jax.jacfwd(lambda one: f(one[None])[0])(x[0]),
        "mapped over examples": lambda f: jax.vmap(partial(one_by_one, f))(x, v),
        "mapped over inputs alone": lambda f: jax.vmap(partial(one_by_one, f), (0, None))(x, v[0]),
        "mapped over vectors alone": lambda f: jax.vmap(partial(one_by_one, f), (None, 0))(x[0], v),
        "mapped over both": lambda f: jax.vmap(jax.vmap(partial(one_by_one, f), (None, 0)), (0, None))(x, v),
        "the other way around": lambda f: jax.vmap(jax.vmap(partial(one_by_one, f), (0, None)), (None, 0))(x, v),
        "over another axis": lambda f: jax.vmap(partial(one_by_one, f), 1, 1)(x.swapaxes(0, 1), v.swapaxes(0, 1)),
        "the gradient of a mapped J v": lambda f: jax.grad(
            lambda v: (jax.vmap(partial(one_by_one, f), (0, None))(x, v) * u).sum()
        )(v[0]),
        "in a loop": lambda f: jax.lax.map(lambda a: one_by_one(f, *a), (x, v)),
        "of a sum": lambda f: jax.grad(lambda x: (f(x) * u + f(2 * x)).sum())(x),
        "recomputed": lambda f: jax.grad(lambda x: (jnp.sin(jax.checkpoint(f)(x)) * u).sum())(x),
    }
    for name, result in transformed.items():
        assert_close(result(network.on_host(with_jvp)), result(network.in_jax()), name)


@pytest.mark.parametrize("wrap", [WRAPS["as it is"], jax.jit], ids=["eager", "jit"])
def test_the_host_gets_whole_batches_and_computes_outputs_once(wrap):
    network, x = Mlp(10), inputs()
    jacobian.jacobian(wrap(network.on_host()), x)
    assert network.calls == [("forward", N)] + 10 * [("vjp", N)]
    network.calls.clear()
    directions.loss_gradient(wrap(network.on_host()), x, Y)
    assert network.calls == [("forward", N), ("vjp", N)]


def test_a_recorded_pass_is_used_for_its_own_inputs_alone():
    """Whatever was computed in between, and is freed with its function."""
    made = []

    class Graph:
        pass

    def recording(network):
        def record(x):
            made.append(graph := Graph())
            return network.forward(x), lambda u, graph=graph: network.vjp(x, u)

        return host.recording(network.forward, record, network.jvp, 10)

    one, other = Mlp(10), Mlp(10, seed=1)
    f, g, x = recording(one), recording(other), inputs()
    (logits, pull_back), (_, pull_other) = jax.vjp(f, x), jax.vjp(g, 2 * x)
    assert len(made) == 2
    assert_close(pull_back(logits), jax.vjp(one.in_jax(), x)[1](logits))
    assert_close(pull_back(2 * logits), jax.vjp(one.in_jax(), x)[1](2 * logits))
    assert len(made) == 3  # the pass of f was no longer the last, then it was
    assert_close(pull_other(logits), jax.vjp(other.in_jax(), 2 * x)[1](logits))
    graphs = [weakref.ref(graph) for graph in made]
    made.clear()
    f(x)
    gc.collect()
    assert not any(graph() for graph in graphs)
    jax.vjp(f, x)
    (graph,) = map(weakref.ref, made)
    made.clear()
    assert graph()
    del f, pull_back
    gc.collect()
    assert not graph()


def test_a_measure_called_again_compiles_nothing_and_sees_the_network_as_it_is(lowerings):
    network, other, x = Mlp(10), Mlp(10, seed=1).on_host(), inputs()
    f = network.on_host()
    metrics.transferability(f, other, x)
    before = lowerings()
    again = metrics.transferability(f, other, x)
    assert lowerings() == before
    network.weights[0][:] = Mlp(10, seed=2).weights[0]
    changed = metrics.transferability(f, other, x)
    assert lowerings() == before
    assert not np.allclose(again.tau1, changed.tau1)
    assert_close(changed, metrics.transferability(network.in_jax(), Mlp(10, seed=1).in_jax(), x))


def test_a_function_that_takes_another_network_is_measured_as_it_is():
    state = {"network": Mlp(10).on_host()}
    f, x = (lambda x: state["network"](x)), inputs()
    jacobian.top_singular_triple(f, x)
    state["network"] = (other := Mlp(10, seed=1)).on_host()
    assert_close(jacobian.top_singular_triple(f, x).s, jacobian.top_singular_triple(other.in_jax(), x).s)


def test_networks_are_not_kept_alive_by_what_was_compiled_of_them():
    network = Mlp(10)
    f, dead = network.on_host(), weakref.ref(network)
    jacobian.top_singular_triple(f, inputs())
    directions.loss_gradient(f, inputs(), Y)
    del f, network
    gc.collect()
    assert dead() is None


def test_results_have_the_type_of_the_inputs():
    network, x = Mlp(10), inputs()
    for dtype in (jnp.float32, jnp.float64):
        f = network.on_host()
        assert f(x.astype(dtype)).dtype == jax.jit(f)(x.astype(dtype)).dtype == dtype
        assert directions.loss_gradient(f, x.astype(dtype), Y).dtype == dtype
    with jax.enable_x64(False):
        assert network.on_host()(np.asarray(x)).dtype == jnp.float32


def test_large_arrays_pass_in_compiled_programs():
    f = jax.jit(host.function(lambda x: x[:, :2], lambda x, u: np.pad(u, ((0, 0), (0, x.shape[1] - 2))), None, 2))
    x = jnp.ones((8, 300_000), jnp.float32)
    for _ in range(3):
        assert jax.jit(jax.grad(lambda x: f(x).sum()))(x).sum() == 16


def test_a_call_waits_for_a_compiled_program_that_itself_calls_the_host():
    def forward(x):
        time.sleep(0.1)  # so that the program is still running when its result is handed over
        return 2 * x

    f = host.function(forward, lambda x, u: 2 * u, None, 3)
    assert f(jax.jit(f)(jnp.ones((1, 3)))).tolist() == [[4, 4, 4]]


def broken(forward=None, vjp=None):
    network = Mlp(10)
    return host.function(forward or network.forward, vjp or network.vjp, None, 10)


def fail(*_):
    raise RuntimeError("the sizes\n differ")


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (broken(vjp=fail), "vjp: raised RuntimeError: the sizes differ"),
        (broken(forward=fail), "forward: raised RuntimeError: the sizes differ"),
        (
            broken(forward=lambda x: np.zeros((len(x), 4))),
            r"forward: returned shape \(\d, 4\); it must return \(\d, 10\)",
        ),
        (broken(forward=lambda x: np.zeros(10)), r"forward: returned shape \(10,\); it must return \(\d, 10\)"),
        (broken(vjp=lambda x, u: x[:, 0]), r"vjp: returned shape \(\d, 3\); it must return \(\d, 4, 3\)"),
        (broken(vjp=lambda x, u: jnp.zeros(x.shape)), "vjp: returned an array of JAX; on the host it takes NumPy"),
    ],
)
def test_what_the_host_does_wrong_is_one_line(f, message):
    for measure in (MEASURES["loss_gradient"], MEASURES["top_singular_triple"], MEASURES["success_matrix"]):
        with pytest.raises(ValueError, match=message) as raised:
            measure(f, f, inputs())
        assert re.fullmatch(f"{message}.*", str(raised.value))
    compiled = jax.jit(lambda x: directions.loss_gradient(f, x, Y))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=message) as raised:
        compiled(inputs()).block_until_ready()
    assert re.search(message, str(raised.value).splitlines()[-1])


def test_what_a_function_of_the_host_cannot_take_is_one_line():
    f = Mlp(10).on_host()
    with pytest.raises(ValueError, match=r"x: got uint8 of shape \(5, 4, 3\); it takes floats"):
        f(inputs().astype(jnp.uint8))
    with pytest.raises(ValueError, match="first derivatives alone"):
        jax.hessian(lambda x: f(x).sum())(inputs())
