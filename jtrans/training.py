"""Training one network: the optimizer, the order of the batches, augmentation, one train step."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jtrans import loops
from jtrans.models import Model, Variables

# With PyTorch's default settings. For RMSprop optax's differ: a decay of 0.9, which makes the first step three times
# smaller, and epsilon inside the square root.
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=False),
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
}


@lru_cache  # the same object for the same settings, which compiled programs know it by
def cosine_sgd(
    learning_rate: float, num_steps: int, *, momentum: float = 0.9, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
    """SGD with momentum and a cosine learning rate schedule down to 0, as in Liang et al. (2021).

    Weight decay is added to the gradient, as in PyTorch. The learning rate is lowered after every step; in the official
    code, once per epoch.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum))


@lru_cache
def adjustable(name: str) -> optax.GradientTransformation:
    """The named optimizer with the learning rate in its state, so that each network can have its own."""
    return optax.inject_hyperparams(lambda learning_rate: OPTIMIZERS[name](learning_rate))(learning_rate=0.0)


# `(model, variables, images in [0, 1], labels, key) -> (loss, variables)`: the loss that training minimises.
Objective = Callable[[Model, Variables, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Variables]]


class Network(NamedTuple):
    """A network in training: its variables and optimizer state, pytrees of arrays."""

    variables: Variables
    optimizer_state: Any


def initialize(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> Network:
    """A network before training."""
    variables = model.init(key)
    return Network(variables, optimizer.init(variables["params"]))


def with_learning_rate(network: Network, learning_rate: jax.Array) -> Network:
    """The network with this learning rate; its optimizer must be `adjustable`."""
    state = network.optimizer_state
    return network._replace(optimizer_state=state._replace(hyperparams={"learning_rate": learning_rate}))


def epoch_order(key: jax.Array, epoch: jax.Array, num_examples: int) -> jax.Array:
    """The order `[num_examples]` in which a network is trained on its images in the given epoch."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def balanced_order(key: jax.Array, epoch: jax.Array, num_examples: int, *, num_classes: int) -> jax.Array:
    """An `epoch_order` in which the classes take turns, for images whose classes do, as `data.balanced` gives them."""
    keys = jax.random.split(jax.random.fold_in(key, epoch), num_classes)
    of_class = jax.vmap(partial(jax.random.permutation, x=num_examples // num_classes))(keys)
    return (of_class * num_classes + jnp.arange(num_classes)[:, None]).T.ravel()


def crop_and_flip(key: jax.Array, images: jax.Array, *, padding: int = 4) -> jax.Array:
    """Images `[B, H, W, C]`, each shifted at random by up to `padding` pixels along each axis, filled with black, and
    mirrored with probability 1/2: the usual augmentation for CIFAR.
    """
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * padding + 1)
    crop = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])
    cropped = jax.vmap(crop)(padded, corners)
    mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, cropped[:, :, ::-1], cropped)


def cross_entropy(
    model: Model, variables: Variables, images: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[jax.Array, Variables]:
    """The mean negative log-likelihood of a batch and the updated variables; the key draws the dropout, if any."""
    logits, updated = model.train(variables, images, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated


def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    network: Network,
    inputs: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    objective: Objective = cross_entropy,
) -> Network:
    """The network after one optimizer step on the objective of one batch: inputs as they are stored `[B, ...]`."""

    def gradient_of(variables: Variables, x: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[Any, Variables]:
        loss = lambda params: objective(model, {**variables, "params": params}, x, labels, key)
        return jax.grad(loss, has_aux=True)(variables["params"])

    params = network.variables["params"]
    gradient, variables = loops.alone(gradient_of)(network.variables, model.inputs.of(inputs), labels, key)
    updates, state = optimizer.update(gradient, network.optimizer_state, params)
    return Network({**variables, "params": optax.apply_updates(params, updates)}, state)
