"""The problem of the synthetic experiment (Liang et al. 2021): a target network and sources that drift away from it.

Networks have one hidden layer, `f(x) = W2 sigmoid(W1 x + b1) + b2`. All functions take one problem and are pure, to be
vmapped over seeds.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jtrans import files, jacobian, metrics, transfer
from jtrans.errors import InputError

TAUS = tuple(f"{tau}_{way}" for tau in ("tau1", "tau2", "tau1tau2") for way in ("S_T", "T_S"))
COLUMNS = ("scale", *TAUS, "transfer_loss_S", "loss_T", "gradient_matching_distance")


class Network(NamedTuple):
    """W1 `[H, D]`, b1 `[H]`, W2 `[K, H]`, b2 `[K]`."""

    W1: jax.Array
    b1: jax.Array
    W2: jax.Array
    b2: jax.Array


class Problem(NamedTuple):
    """Points `[N, D]`, their values `[N, K]`, the scales `[S]` of the drift, the target, and the sources `[S, ...]` of
    each width.
    """

    x: jax.Array
    y: jax.Array
    scales: np.ndarray
    target: Network
    sources: dict[int, Network]


def features(network: Network, x: jax.Array) -> jax.Array:
    """The hidden layer `[N, H]` at inputs `[N, D]`."""
    with jax.default_matmul_precision("highest"):
        return jax.nn.sigmoid(x @ network.W1.T + network.b1[None])


def apply(network: Network, x: jax.Array) -> jax.Array:
    """The outputs `[N, K]` at inputs `[N, D]`."""
    with jax.default_matmul_precision("highest"):
        return features(network, x) @ network.W2.T + network.b2[None]


def regression(key: jax.Array, config: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """A regression problem of radial basis functions: x `[N, D]` from a mixture of Gaussians, y `[N, K]`.

    The constants are those of the paper's official code: cluster centres uniform in [-0.5, 0.5]^D, points around them
    from N(0, I), equally many in each cluster and in the clusters' order; basis functions `phi_m(x) = exp(-|x -
    mu_m|^2 / s_m)` with mu uniform in [-0.5, 0.5]^D and s in [0, 100]; `y = A phi(x) + b` with A and b uniform in
    [-0.5, 0.5]. Where the clusters do not divide the points, cluster sizes differ by one.
    """
    center_key, point_key, mean_key, scale_key, weight_key, bias_key = jax.random.split(key, 6)
    num_points, input_size, output_size = config.num_points, config.input_size, config.output_size
    num_functions = config.num_basis_functions

    def uniform(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)

    cluster = np.arange(num_points) * config.num_clusters // num_points
    x = uniform(center_key, config.num_clusters, input_size)[cluster]
    x += jax.random.normal(point_key, (num_points, input_size))
    means = uniform(mean_key, num_functions, input_size)
    scales = jax.random.uniform(scale_key, (num_functions,), maxval=100)
    basis = jnp.exp(-((x[:, None] - means[None]) ** 2).sum(2) / scales[None])
    weights, bias = uniform(weight_key, num_functions, output_size), uniform(bias_key, output_size)
    return x, jnp.matmul(basis, weights, precision="highest") + bias[None]


def initialize(key: jax.Array, input_size: int, width: int, output_size: int) -> Network:
    """Uniform in +- 1 / sqrt(fan_in), PyTorch's default."""

    def layer(key: jax.Array, rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
        weight_key, bias_key = jax.random.split(key)
        bound = 1 / np.sqrt(columns)
        draw = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        return draw(weight_key, (rows, columns)), draw(bias_key, (rows,))

    first, second = jax.random.split(key)
    return Network(*layer(first, width, input_size), *layer(second, output_size, width))


def train(network: Network, key: jax.Array, x: jax.Array, y: jax.Array, fit: ConfigDict) -> Network:
    """The network after training on squared error by Adam, its learning rate decaying to 0 along a cosine."""
    optimizer = optax.adam(optax.cosine_decay_schedule(fit.learning_rate, fit.num_steps))

    def loss(network: Network, x: jax.Array, y: jax.Array) -> jax.Array:
        return ((apply(network, x) - y) ** 2).sum(1).mean()

    def step(carry, step_key: jax.Array):
        network, state = carry
        batch = jax.random.randint(step_key, (fit.batch_size,), 0, len(x))
        updates, state = optimizer.update(jax.grad(loss)(network, x[batch], y[batch]), state)
        return (optax.apply_updates(network, updates), state), None

    return jax.lax.scan(step, (network, optimizer.init(network)), jax.random.split(key, fit.num_steps))[0][0]


def drift(key: jax.Array, network: Network, scales: Sequence[float]) -> Network:
    """The network after each step of a drift along one random deviation: leading axis S.

    The deviation of each weight is uniform in [-0.5, 0.5]. A step adds `scale` times the deviation to the network as
    the step before left it, as in the official code.
    """
    leaves, structure = jax.tree.flatten(network)
    total = jnp.cumsum(jnp.asarray(scales, jnp.float32))

    def moved(key: jax.Array, leaf: jax.Array) -> jax.Array:
        deviation = jax.random.uniform(key, leaf.shape, minval=-0.5, maxval=0.5)
        return leaf[None] + total.reshape(-1, *[1] * leaf.ndim) * deviation[None]

    return jax.tree.unflatten(structure, map(moved, jax.random.split(key, len(leaves)), leaves))


def generate(seed: jax.Array | int, config: ConfigDict) -> Problem:
    """The problem of a seed: the points, the trained target, and for each width a trained network that drifts.

    The network of the target's width that drifts is the target itself, as in the published problem. Points and drift
    follow the official code. The networks do not: the official code drifts pretrained ones, and here `train` fits
    them, each from its own initial weights. The config has the fields of `configs/synthetic.py`.
    """
    data_key, *init_order_keys, drift_key = jax.random.split(jax.random.key(seed), 4)
    x, y = regression(data_key, config)

    def trained(width: int) -> Network:
        init_key, order_key = (jax.random.fold_in(key, width) for key in init_order_keys)
        start = initialize(init_key, config.input_size, width, config.output_size)
        return train(start, order_key, x, y, config.fit)

    networks = {width: trained(width) for width in sorted({*config.widths, config.target_width})}
    drifting = lambda width: drift(jax.random.fold_in(drift_key, width), networks[width], config.scales)
    sources = {width: drifting(width) for width in config.widths}
    return Problem(x, y, jnp.asarray(config.scales), networks[config.target_width], sources)


def measure(target: Network, source: Network, x: jax.Array, y: jax.Array, *, level: int = 0) -> dict[str, jax.Array]:
    """Every column but the scale, for one source: scalars. The attack is the singular vector `level`, 0 for the top.

    Each network's Jacobians are computed once and serve both directions and the matching distance.
    """
    networks = {"S": source, "T": target}
    jacobians = {name: jacobian.jacobian(partial(apply, network), x) for name, network in networks.items()}
    attack = {name: jacobian.triple_of(matrices, level) for name, matrices in jacobians.items()}
    best = attack if level == 0 else {name: jacobian.triple_of(matrices) for name, matrices in jacobians.items()}

    def taus(one: str, other: str) -> dict[str, jax.Array]:
        across = jnp.einsum("nkd,nd->nk", jacobians[other], attack[one].v, precision="highest")
        tau1, tau2, tau1_tau2, *_ = metrics.taus(attack[one].s[:, None] * attack[one].u, across, best[other].s)
        return {f"tau1_{one}_{other}": tau1, f"tau2_{one}_{other}": tau2, f"tau1tau2_{one}_{other}": tau1_tau2}

    return {
        **taus("S", "T"),
        **taus("T", "S"),
        "transfer_loss_S": transfer.transfer_loss(features(source, x), y),
        "loss_T": transfer.root_mean_squared_error(apply(target, x), y),
        "gradient_matching_distance": metrics.jacobian_matching_distance(jacobians["S"], jacobians["T"]),
    }


def are_scales(scales: Sequence[float]) -> bool:
    """Whether the scales begin without drift and grow, so that their order is that of the drift."""
    return scales[0] == 0 and all(earlier < later for earlier, later in itertools.pairwise(scales))


def load(path: str) -> Problem:
    """A problem from an npz file of real numbers; InputError if it is none, or an array is missing or of another shape.

    It holds `X [N, D]`, `Y [N, K]`, `scales [S]`, `target_W1 [H, D]`, `target_b1 [H]`, `target_W2 [K, H]`, `target_b2
    [K]`, and for each width H of the sources `sourceH_W1 [S, H, D]` and so on.
    """
    try:
        arrays = files.read_numbers(path)
        x, y, scales = (_array(arrays, name, shape) for name, shape in (("X", "ND"), ("Y", "NK"), ("scales", "S")))
        if not are_scales(scales):
            raise InputError(f"scales are {scales.tolist()}; it takes 0 first and each larger than the one before")
        if len(x) != len(y):
            raise InputError(f"X has {len(x)} points and Y has {len(y)}; it takes as many")
        names = [name[6:-3] for name in arrays if name.startswith("source") and name.endswith("_W1")]
        widths = sorted(int(name) for name in names if name.isdecimal())
        if not widths:
            raise InputError(f"{path!r} has no sources; it takes source<H>_W1, _b1, _W2, _b2 for some width H")
        sizes = x.shape[1], y.shape[1]
        target = _network(arrays, "target", (), *sizes)
        sources = {width: _network(arrays, f"source{width}", scales.shape, *sizes) for width in widths}
    except KeyError as error:
        what = "it takes X, Y, scales, target_* and source<H>_*"
        raise InputError(f"problem: {path!r} has no array {error}; {what}") from error
    except InputError as error:
        raise InputError(f"problem: {error}") from error
    return Problem(np.float32(x), np.float32(y), scales, target, sources)


def _array(arrays: Mapping[str, np.ndarray], name: str, axes: str) -> np.ndarray:
    array = arrays[name]
    if array.ndim != len(axes) or not array.size:
        raise InputError(f"{name} has shape {array.shape}; it takes [{', '.join(axes)}], all above 0")
    return array


def _network(
    arrays: Mapping[str, np.ndarray], name: str, lead: tuple[int, ...], input_size: int, output_size: int
) -> Network:
    """The network, or networks, of that name; an array may have another shape of the same size."""
    parts = Network(*(arrays[f"{name}_{part}"] for part in Network._fields))
    width = parts.W1.shape[-2] if parts.W1.ndim > 1 else 0
    shapes: tuple[tuple[int, ...], ...] = ((width, input_size), (width,), (output_size, width), (output_size,))
    for part, array, shape in zip(Network._fields, parts, shapes, strict=True):
        if array.size != math.prod(lead + shape):
            raise InputError(f"{name}_{part} has shape {array.shape}; it takes {lead + shape}")
    return Network(*(np.float32(array).reshape(lead + shape) for array, shape in zip(parts, shapes, strict=True)))
