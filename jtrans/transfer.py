"""Knowledge transfer: a network's last layer refit to a new domain, on its frozen features."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its submodules load on first use, which saves `jtrans.metrics` 0.3 s


class Head(NamedTuple):
    """An affine map of features, `features @ weights + bias`: weights `[F, K]`, bias `[K]`."""

    weights: jax.Array
    bias: jax.Array


def fit_head(features: jax.Array, targets: jax.Array) -> Head:
    """The head of least squared error from features `[N, F]` to targets `[N, K]`, in closed form.

    If the features are linearly dependent, it is the solution of the smallest norm.
    """
    scale = power_of_two(features)
    weights = _least_squares(features / scale, targets)[0] / scale
    with jax.default_matmul_precision("highest"):
        return Head(weights, (targets - features @ weights).mean(0))


def _least_squares(features: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights of `fit_head`, and the residuals `[N, K]` with its bias."""
    with jax.default_matmul_precision("highest"):
        # Centring removes the bias from the system, which is then better conditioned.
        x, y = _centred(features), _centred(targets)
        left, singular, right = jnp.linalg.svd(x, full_matrices=False)
        # Rounding of the features makes a singular value of 0 at most this large, for any number of examples.
        rounding = jnp.finfo(features.dtype).eps * jnp.linalg.norm(features)
        divisors = jnp.where(singular > rounding, singular, jnp.inf)[:, None]
        solve = lambda targets: right.T @ ((left.T @ targets) / divisors)
        weights = solve(y)
        weights = weights + solve(y - x @ weights)  # iterative refinement removes the rounding error of the first solve
        return weights, y - x @ weights


def _centred(values: jax.Array) -> jax.Array:
    """The values minus their mean over examples; the second time removes the rounding error of the first."""
    values = values - values.mean(0)[None]
    return values - values.mean(0)[None]


def power_of_two(values: jax.Array) -> jax.Array:
    """The power of two near the largest absolute value, 1 if all values are 0.

    Division by it is exact, and the squares of the quotients neither underflow nor overflow in float32.
    """
    exponent = jnp.frexp(jax.lax.stop_gradient(jnp.abs(values).max()))[1]
    return jnp.ldexp(1.0, jnp.clip(exponent, -126, 126))  # a normal float32 itself


def fit_softmax_head(features: np.ndarray, labels: np.ndarray, num_classes: int, *, weight_decay: float) -> Head:
    """Softmax regression to convergence: minimises the mean cross entropy plus `weight_decay / 2 |weights|^2`.

    The optimum of a head trained by SGD with that weight decay, except that the bias is not decayed. L-BFGS in float64.

    Args:
      features: `[N, F]`.
      labels: `[N]` integers in `[0, num_classes)`.
      weight_decay: above 0, since separable classes have no minimum without it.

    Raises:
      ValueError: `features` are not finite, or `weight_decay` is not above 0.
      RuntimeError: the optimizer did not converge.
    """
    if not weight_decay > 0:
        raise ValueError(f"weight_decay: got {weight_decay}; it takes more than 0")
    if not np.isfinite(features).all():
        raise ValueError("features: got NaN or infinite values; all must be finite")
    design = np.c_[np.asarray(features, np.float64), np.ones(len(features))]
    indicators = np.eye(num_classes)[labels]
    decayed = np.r_[np.full(design.shape[1] - 1, weight_decay), 0.0][:, None]

    # In coordinates where the curvature at the start is about 1: features of very different variance would take
    # thousands of iterations.
    curvature = design.T @ design / len(design) / num_classes + np.diag(decayed[:, 0])
    variance, axes = np.linalg.eigh(curvature)
    scale = axes / np.sqrt(np.maximum(variance, variance.max() * np.finfo(float).eps))

    def at(rows: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = scipy.special.log_softmax(design @ rows, axis=1)
        loss = -(log_p * indicators).sum(1).mean() + (decayed * rows**2).sum() / 2
        return loss, design.T @ (np.exp(log_p) - indicators) / len(design) + decayed * rows

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = at(scale @ flat.reshape(-1, num_classes))
        return loss, (scale.T @ gradient).ravel()

    start = np.zeros(design.shape[1] * num_classes)
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-8, "maxcor": 30}
    fit = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    rows = scale @ fit.x.reshape(-1, num_classes)
    if not np.abs(at(rows)[1]).max() <= 1e-5:  # includes NaN, from an overflow
        raise RuntimeError(f"features: softmax regression did not converge in {fit.nit} iterations; scale them down")
    return Head(rows[:-1], rows[-1])


def classification(head: Head, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross entropy in nats and accuracy (NaN if the former is not finite) on features `[N, F]`, labels `[N]`."""
    logits = np.asarray(features, np.float64) @ head.weights + head.bias
    loss = -scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
    accuracy = (logits.argmax(1) == labels).mean() if np.isfinite(loss) else np.nan
    return float(loss), float(accuracy)


def root_mean_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The root of the squared error, summed over outputs and averaged over examples (Liang et al. 2021)."""
    scale = power_of_two(outputs - targets)
    return scale * jnp.sqrt(jnp.sum(((outputs - targets) / scale) ** 2, axis=1).mean())


def transfer_loss(features: jax.Array, targets: jax.Array) -> jax.Array:
    """The error on `targets [N, K]` of the best affine head on `features [N, F]`: low where the features transfer."""
    _, residuals = _least_squares(features / power_of_two(features), targets)
    return root_mean_squared_error(residuals, jnp.zeros_like(residuals))
