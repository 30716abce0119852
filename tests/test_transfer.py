import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
import sklearn.linear_model

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


def float64_fit(features, targets):
    """The smallest weights that fit best, and their error."""
    x, y = (np.float64(values) - np.float64(values).mean(0) for values in (features, targets))
    weights = np.linalg.lstsq(x, y, rcond=1e-6)[0]
    return weights, np.sqrt(((y - x @ weights) ** 2).sum(1).mean())


@pytest.mark.parametrize("count", [300, 5_000, 50_000])
@pytest.mark.parametrize("offset", [0, 3])
def test_features_of_any_scale_and_number_are_fitted_as_in_float64(count, offset):
    """The smallest varies 300 times less than the largest; it must count however many examples there are."""
    rng = np.random.default_rng(0)
    scales = np.logspace(0, -2.5, 16)
    x = np.float32(rng.normal(size=(count, 16)) * scales + offset)
    y = np.float32(np.float64(x) @ (rng.normal(size=(16, 3)) / scales[:, None]) + 1)
    weights, loss = float64_fit(x, y)
    assert transfer.transfer_loss(x, y) < max(2 * loss, 2e-6)
    head = transfer.fit_head(x, y)
    np.testing.assert_allclose(head.weights, weights, rtol=1e-3, atol=1e-2)
    left = np.float64(x) @ np.float64(head.weights) + np.float64(head.bias) - y
    assert np.sqrt((left**2).sum(1).mean()) < max(5 * loss, 2e-6)


@pytest.mark.parametrize("count", [30, 5_000, 50_000])
@pytest.mark.parametrize("kind", ["copies", "sums"])
def test_redundant_features_have_the_smallest_weights(count, kind):
    """Also where they are redundant but for their rounding to float32."""
    rng = np.random.default_rng(0)
    x = np.float32(1 / (1 + np.exp(-rng.normal(size=(count, 16)))) + 3)
    more = x[:, :9] if kind == "copies" else np.float32(np.float64(x) @ rng.normal(size=(16, 9)))
    x, y = np.c_[x, more], np.float32(rng.normal(size=(count, 4)))
    weights, loss = float64_fit(x, y)
    np.testing.assert_allclose(transfer.fit_head(x, y).weights, weights, rtol=1e-2, atol=1e-3)
    assert transfer.transfer_loss(x, y) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("feature_scale", "target_scale"), [(1e-30, 1), (1e30, 1), (1, 1e-30), (1, 1e30)])
def test_the_transfer_loss_scales_with_the_targets_alone(feature_scale, target_scale):
    h, y = problem()
    want = float64_fit(h, y)[1] * target_scale
    loss = transfer.transfer_loss(jnp.array(feature_scale * h, jnp.float32), jnp.array(target_scale * y, jnp.float32))
    np.testing.assert_allclose(np.float64(loss), want, rtol=1e-5)


def test_the_error_is_summed_over_outputs_and_averaged_over_examples():
    outputs = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    assert transfer.root_mean_squared_error(outputs, jnp.zeros((2, 2))) == pytest.approx(np.sqrt(12.5))


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-4])
def test_the_softmax_head_agrees_with_scikit_learn(weight_decay):
    digits = sklearn.datasets.load_digits()
    features, labels = digits.data[:600] / 16, digits.target[:600]
    head = transfer.fit_softmax_head(features, labels, 10, weight_decay=weight_decay)
    model = sklearn.linear_model.LogisticRegression(C=1 / (600 * weight_decay), tol=1e-8, max_iter=10_000)
    model.fit(features, labels)
    theirs = transfer.Head(model.coef_.T, model.intercept_)
    loss, accuracy = transfer.classification(head, features, labels)
    want, their_accuracy = transfer.classification(theirs, features, labels)
    assert loss == pytest.approx(want, abs=1e-4)
    assert accuracy == pytest.approx(their_accuracy, abs=2e-3)
    penalised = lambda h, loss: loss + weight_decay / 2 * np.square(h.weights).sum()
    assert penalised(head, loss) <= penalised(theirs, want) + 1e-9


def test_classification_of_chosen_logits():
    head = transfer.Head(np.eye(2), np.zeros(2))
    loss, accuracy = transfer.classification(head, np.log([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
    assert loss == pytest.approx(-(np.log(0.9) + np.log(0.4)) / 2)
    assert accuracy == 0.5


def test_no_weight_decay_is_refused():
    for weight_decay in (0, np.nan):
        with pytest.raises(ValueError, match=f"weight_decay: got {weight_decay}; it takes more than 0"):
            transfer.fit_softmax_head(np.eye(2), np.arange(2), 2, weight_decay=weight_decay)


def test_features_that_are_not_finite_are_refused():
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="features: got NaN or infinite values; all must be finite"):
            transfer.fit_softmax_head(np.array([[1.0, 0.0], [value, 1.0]]), np.arange(2), 2, weight_decay=0.1)
