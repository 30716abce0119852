"""Adversarial directions: the directions in input space along which a network is easiest to fool.

The length and overall sign of a direction carry no meaning; `normalize` gives the unit vector. Every `f` is a pure
function from inputs `x` `[N, ...]` to logits `[N, K]`, whose row i depends on input i alone; labels `y` are `[N]`
integers in `[0, K)`.
"""

import jax
import jax.numpy as jnp

from jtrans import jacobian
from jtrans.jacobian import Function


def normalize(vectors: jax.Array) -> jax.Array:
    """Each example's vector, scaled to unit length: `[N, ...]` to `[N, D]`.

    Its largest entry may be from 1.2e-38 to 8e37. NaN where the vector is zero or not finite and so has no direction.
    """
    flat = vectors.reshape(len(vectors), -1)
    # Squares of small gradients underflow in float32: scale the largest entry to 1 before taking the norm.
    flat = flat / jnp.max(jnp.abs(flat), axis=1, keepdims=True)
    return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)


def loss_cotangent(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The direction in logit space along which each example's cross entropy grows.

    The gradient of the cross entropy is `softmax(logits) - onehot(label)`. Divided by the total probability of the
    other classes, it is `softmax over the other classes - onehot(label)`: the same direction, but without the float32
    cancellation that destroys it for a confident network. For two classes it is the gradient of the margin. From
    logits `[N, K]` and labels `[N]` to `[N, K]`; raises ValueError if K is less than 2.
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"logits: got {logits.shape[-1]} class; a cross entropy takes 2 or more")
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jax.nn.softmax(jnp.where(is_label, -jnp.inf, logits)) - is_label


def log_other_probability(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The log of the total probability of all classes but the label's: `[N, K]` and `[N]` to `[N]`.

    The gradient of the cross entropy is `loss_cotangent` times this probability. It is precise for confident networks
    too, where `1 - softmax` rounds to 0.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return others - jax.nn.logsumexp(logits, axis=-1)


def loss_gradient(f: Function, x: jax.Array, y: jax.Array) -> jax.Array:
    """The direction of each example's input gradient, that is, of the gradient of its cross entropy.

    This is the adversarial direction of BenShmuel (2022), section 3.1, up to a positive factor per example: shaped like
    the inputs `x`, for logits `f(x)` `[N, K]` and labels `y` `[N]`.

    The loss rises where the label's logit falls and the other rises:

    >>> import jax.numpy as jnp
    >>> jnp.sign(loss_gradient(lambda x: x, jnp.zeros((1, 2)), jnp.array([0]))).tolist()
    [[-1.0, 1.0]]
    """
    logits, pull_back = jax.vjp(f, x)
    (gradient,) = pull_back(loss_cotangent(logits, y))
    return gradient


def margin_gradient(f: Function, x: jax.Array, y: jax.Array) -> jax.Array:
    """The input gradient of the logit margin, the largest other logit minus the label's logit.

    For two classes it has the direction of `loss_gradient`; for more it depends on the likeliest other class alone.
    """
    logits, pull_back = jax.vjp(f, x)
    is_label = jax.nn.one_hot(y, logits.shape[-1])
    is_likeliest_other = jax.nn.one_hot(jnp.where(is_label == 1, -jnp.inf, logits).argmax(-1), logits.shape[-1])
    (gradient,) = pull_back(is_likeliest_other - is_label)
    return gradient


def singular_vector(f: Function, x: jax.Array, *, level: int = 0) -> jax.Array:
    """The Jacobian's right singular vector: the virtual adversarial attack in the limit of small perturbations.

    Liang et al. (2021). Unit vectors of arbitrary sign, shaped like `x`; NaN where the singular value is 0. For their
    accuracy and for `level` see `jacobian.top_singular_triple`.
    """
    return jacobian.top_singular_triple(f, x, level=level).v


def project_off(vectors: jax.Array, basis: jax.Array) -> jax.Array:
    """Each example's vector, `[N, ...]` of D values, without its component in a subspace; not rescaled.

    The rows of `basis` `[K, D]` are orthonormal and span the subspace, in the order of the flattened vectors.
    """
    flat = vectors.reshape(len(vectors), -1)
    component = jnp.matmul(jnp.matmul(flat, basis.T, precision="highest"), basis, precision="highest")
    return (flat - component).reshape(vectors.shape)


def example_keys(key: jax.Array, count: int) -> jax.Array:
    """The key of each of `count` examples, `fold_in(key, i)`, so that random draws do not depend on the batch size.

    If `key` holds one key per example, it is returned as it is; if it is None, ValueError is raised.
    """
    if key is None:
        raise ValueError("key: got None; random draws take a key, such as jax.random.key(0)")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # made by jax.random.PRNGKey
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def random(key: jax.Array, x: jax.Array) -> jax.Array:
    """Uniformly random unit vectors, shaped like `x`: the baseline for all other directions. Keys as `example_keys`."""
    draw = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))
    return normalize(draw(example_keys(key, len(x)))).reshape(x.shape)
