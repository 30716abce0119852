"""The attacks that the literature compares on transfer, against a float64 NumPy loop with the same random draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.tree_util import Partial

from jtrans import attacks, directions, metrics

SIZE = 7
EPSILON, STEPS = 0.03, 3
# What the NumPy loop does for each name: copies, whether the inputs are diverse, the size of the kernel, whether the
# gradient is taken ahead, points around.
NAMES = {
    "mi_fgsm": (1, False, 1, False, 0),
    "di_fgsm": (1, True, 1, False, 0),
    "ti_fgsm": (1, False, 15, False, 0),
    "ni_fgsm": (1, False, 1, True, 0),
    "si_ni_fgsm": (5, False, 1, True, 0),
    "vmi_fgsm": (1, False, 1, False, 20),
    "vni_fgsm": (1, False, 1, True, 20),
    "si_ni_ti_di_fgsm": (5, True, 7, True, 0),
}


def apply(first, second, x):
    return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ first) @ second


class Network:
    """A network of one hidden layer: `f`, in float32, whose weights are arguments, and its gradient in float64."""

    def __init__(self, seed, scale=4.0, classes=4):
        rng = np.random.default_rng(seed)
        inputs = SIZE * SIZE * 3
        self.first = rng.normal(size=(inputs, 24)) / np.sqrt(inputs / 8)
        self.second = scale * rng.normal(size=(24, classes)) / np.sqrt(24)
        self.f = Partial(apply, *(jnp.asarray(w, jnp.float32) for w in (self.first, self.second)))

    def gradient(self, image, label):
        """Of the cross entropy at one image."""
        hidden = np.tanh((image.ravel() - 0.5) @ self.first)
        logits = hidden @ self.second
        probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        probability[label] = 0
        probability[label] = -probability.sum()  # not 1 - p, which rounds
        return (self.first @ ((self.second @ probability) * (1 - hidden**2))).reshape(image.shape)


def problem(count=2, seed=0):
    """Random images in [0, 1], many values of them at the bounds, and labels."""
    rng = np.random.default_rng(seed)
    x = np.clip(rng.uniform(-0.1, 1.1, size=(count, SIZE, SIZE, 3)), 0, 1)
    return jnp.array(x, jnp.float32), jnp.array(rng.integers(4, size=count))


def diverse_map(enlargement, place):
    """`[SIZE, SIZE]`: along an axis an image is enlarged, put into a frame of zeros, and reduced."""
    frame = round(SIZE * 330 / 299)
    enlarged = SIZE + int(enlargement * (frame - SIZE))
    before = int(place * (frame - enlarged + 1))
    columns = []
    for pixel in np.eye(SIZE):
        line = np.interp((np.arange(enlarged) + 0.5) * SIZE / enlarged - 0.5, np.arange(SIZE), pixel)
        line = np.pad(line, (before, frame - enlarged - before))
        columns.append(np.interp((np.arange(SIZE) + 0.5) * frame / SIZE - 0.5, np.arange(frame), line))
    return np.array(columns).T


def loop(networks, image, label, key, name, *, norm="linf", targeted=False, of="losses", epsilon=EPSILON):
    """One image attacked in float64."""
    copies, diverse, kernel_size, ahead, count = NAMES[name]
    points = np.linspace(-3, 3, kernel_size)
    kernel = np.exp(-(points[:, None] ** 2 + points**2) / 2)

    def gradient(point, key):
        rows = columns = np.eye(SIZE)
        if diverse:
            transformed, enlargement, top, left = np.float64(jax.random.uniform(key, (4,)))
            if transformed < 0.5:
                rows, columns = diverse_map(enlargement, top), diverse_map(enlargement, left)
        of_networks = []
        for network in networks:
            total = 0
            for i in range(copies):
                seen = np.einsum("hi,ijc,wj->hwc", rows, point, columns) / 2**i
                total += np.einsum("hi,hwc,wj->ijc", rows, network.gradient(seen, label), columns) / 2**i
            of_networks.append(total / np.abs(total).sum() if of == "gradients" else total)
        total = scipy.ndimage.convolve(sum(of_networks), kernel[:, :, None] / kernel.sum(), mode="constant")
        return -total if targeted else total

    def offset(key):
        if norm == "linf":
            return np.float64(jax.random.uniform(key, image.shape, minval=-1, maxval=1))
        direction, radius = jax.random.split(key)
        normal = np.float64(jax.random.normal(direction, image.shape))
        return normal / np.linalg.norm(normal) * float(jax.random.uniform(radius)) ** (1 / image.size)

    clean, adversarial = np.float64(image), np.float64(image)
    direction, variance, step_size = 0 * clean, 0, epsilon / STEPS
    reach = step_size * (image.size if norm == "linf" else np.sqrt(image.size))
    fold = jax.random.fold_in
    for step in range(STEPS):
        here = gradient(adversarial + ahead * reach * direction, fold(key, 2 * step))
        tuned = here + variance
        direction = direction + tuned / np.abs(tuned).sum()
        if count:
            near = fold(key, 2 * step + 1)
            of_points = [
                gradient(adversarial + 1.5 * epsilon * offset(fold(near, 2 * i)), fold(near, 2 * i + 1))
                for i in range(count)
            ]
            variance = np.mean(of_points, axis=0) - here
        if norm == "linf":
            moved = adversarial + step_size * np.sign(direction) - clean
            moved = np.clip(moved, -epsilon, epsilon)
        else:
            moved = adversarial + step_size * direction / np.linalg.norm(direction) - clean
            moved *= min(1, epsilon / np.linalg.norm(moved))
        adversarial = np.clip(clean + moved, 0, 1)
    return adversarial


@functools.cache
def compiled(name, **options):
    """The attack by its name, one program for all networks and images of the same shapes."""
    return jax.jit(attacks.BY_NAME[name](options.pop("epsilon", EPSILON), STEPS, 0, **options))


def check(name, f, networks, x, y, *, of="losses", **options):
    """Check the attack on f against the loop on its networks, and that it stays in ball and bounds to the last bit."""
    key, epsilon = jax.random.key(1), options.get("epsilon", EPSILON)
    adversarial = np.float64(compiled(name, **options)(f, x, y, key))
    arrays = np.float64(x), np.asarray(y), directions.example_keys(key, len(x))
    want = [loop(networks, *of_image, name, of=of, **options) for of_image in zip(*arrays, strict=True)]
    np.testing.assert_allclose(adversarial, want, atol=2e-6)
    order = 2 if options.get("norm") == "l2" else np.inf
    length = np.linalg.norm((adversarial - arrays[0]).reshape(len(x), -1), order, axis=1)
    assert length.max() <= epsilon
    assert length.min() > 0.8 * epsilon
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_attacks_by_name_equal_a_float64_loop(name):
    network, (x, y) = Network(0), problem()
    check(name, network.f, [network], x, y)


@pytest.mark.parametrize("name", ["mi_fgsm", "ni_fgsm", "vni_fgsm", "si_ni_ti_di_fgsm"])
def test_targeted_attacks_in_l2_equal_a_float64_loop(name):
    network, (x, y) = Network(0), problem()
    check(name, network.f, [network], x, y, norm="l2", targeted=True, epsilon=0.5)


@pytest.mark.parametrize("name", ["si_ni_fgsm", "vmi_fgsm"])
def test_gradients_of_a_confident_network_keep_their_direction_and_relative_size(name):
    """Where the network is so sure that the float32 gradient of the cross entropy is zero."""
    network, (x, _) = Network(0, scale=400.0), problem(40)
    logits = np.sort(network.f(x))
    margin = logits[:, -1] - logits[:, -2]
    x = x[np.flatnonzero((margin > 110) & (margin < 400))[:2]]
    y = attacks.own_prediction(network.f, x)
    assert not jax.grad(lambda x: jax.nn.log_softmax(network.f(x))[jnp.arange(2), y].sum())(x).any()
    check(name, network.f, [network], x, y)


@pytest.mark.parametrize(
    ("name", "of"), [("vmi_fgsm", "losses"), ("si_ni_fgsm", "losses"), ("si_ni_fgsm", "gradients")]
)
def test_ensembles_of_losses_and_of_gradients_equal_a_float64_loop(name, of):
    """The second network is surer than the first: of losses it counts less where it is right, else more."""
    networks, (x, y) = (Network(0), Network(1, scale=20.0)), problem()
    check(name, attacks.ensemble([n.f for n in networks], of=of), networks, x, y, of=of)


def test_an_ensemble_is_a_function_to_the_mean_of_logits():
    (first, second), (x, y) = (Network(0).f, Network(1).f), problem()
    mean = lambda x: (first(x) + second(x)) / 2
    for of in ("logits", "losses", "gradients"):
        np.testing.assert_allclose(attacks.ensemble([first, second], of=of)(x), mean(x), atol=1e-6)
    attack = jax.jit(attacks.mi_fgsm(0.03, 3, 0.01))
    got, want = (attack(f, x, y) for f in (attacks.ensemble([first, second]), Partial(mean)))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("of", ["logits", "losses", "gradients"])
def test_an_ensemble_of_one_network_is_the_network(of):
    f, (x, y), key = Network(0).f, problem(), jax.random.key(0)
    for attack in map(jax.jit, (attacks.pgd(0.5, 2, 0.2, norm="l2"), attacks.BY_NAME["di_fgsm"](0.03, 2, 0))):
        np.testing.assert_allclose(attack(attacks.ensemble([f], of=of), x, y, key), attack(f, x, y, key), atol=1e-6)


def test_an_ensemble_is_a_source_of_the_success_matrix():
    x, y = problem(32)
    first, second, third = (Network(seed).f for seed in range(3))
    both = attacks.ensemble([first, second], of="losses")
    attack = jax.jit(attacks.mi_fgsm(0.1, 3, 0.04))
    matrix = metrics.success_matrix([both], [third], x, y, attack, batch_size=16)
    seen = (third, attack(both, x, y, None)), (third, x), (both, x)
    want = attacks.success(*(attacks.right(f(images), y) for f, images in seen))
    np.testing.assert_allclose(matrix.rate[0, 0], want.rate)


@pytest.mark.parametrize("name", ["di_fgsm", "vni_fgsm", "si_ni_ti_di_fgsm"])
def test_random_attacks_are_the_same_eagerly_and_in_any_batch(name):
    f, (x, y), key = Network(0).f, problem(), jax.random.key(1)
    whole, other = (compiled(name)(f, x, y, k) for k in (key, jax.random.key(2)))
    assert (np.abs(other - whole).max((1, 2, 3)) > 1e-3).any()
    attack, keys = attacks.BY_NAME[name](EPSILON, STEPS, 0), directions.example_keys(key, 2)
    np.testing.assert_allclose(attack(f, x[:1], y[:1], key), whole[:1], atol=1e-6)
    np.testing.assert_allclose(attack(f, x[1:], y[1:], keys[1:]), whole[1:], atol=1e-6)


def test_diverse_inputs_are_images_in_a_frame_of_zeros():
    """Half of the images as they are; in the mean over draws the frame takes its share on every side."""
    view = attacks.diverse_inputs(probability=0.5, resize=1.5).view
    x = jnp.ones((4000, 8, 10, 1))
    seen = np.asarray(jax.jit(view)(x, directions.example_keys(jax.random.key(0), len(x)), 0))
    same = (seen == 1).all((1, 2, 3))
    np.testing.assert_allclose(same.mean(), 0.5, atol=0.03)
    diverse = seen[~same]
    # Sizes 8 to 11 of 12, and what is then left of 10 columns: the same draw, so 10, 11, 12, 13 of 15.
    want = np.mean([(8 + i) * (10 + int((i + 0.5) / 4 * 5)) / (12 * 15) for i in range(4)])
    np.testing.assert_allclose(diverse.mean(), want, atol=0.02)
    for flip in (diverse[:, ::-1], diverse[:, :, ::-1]):
        np.testing.assert_allclose(diverse.mean(0), flip.mean(0), atol=0.06)
    assert diverse.min() == 0
    np.testing.assert_allclose(diverse.max(), 1, atol=1e-6)


def test_targeted_attacks_reach_the_target():
    f, (x, _) = Network(0).f, problem(40)
    target = (attacks.own_prediction(f, x) + 1) % 4
    for attack in map(jax.jit, (attacks.fgsm(0.3, targeted=True), attacks.pgd(0.3, 5, 0.1, targeted=True))):
        assert (attacks.own_prediction(f, attack(f, x, target, jax.random.key(0))) == target).mean() > 0.9


@pytest.mark.parametrize("name", ["di_fgsm", "vni_fgsm", "si_ni_ti_di_fgsm"])
def test_an_image_without_a_direction_is_left_as_it_is(name):
    """At some images alone: where the network is not finite, or says the same whatever the input.

    Which images these are is the ratio of their channels, which no transform changes.
    """
    ratio = jnp.array([1, 0.1, 10, 1, 0.1, 1])[:, None, None]
    x = jnp.array(np.random.default_rng(0).uniform(0.05, 0.09, size=(6, SIZE, SIZE, 3)), jnp.float32)
    x, y = x.at[..., 0].set(x[..., 1] * ratio), jnp.zeros(6, int)

    def apply(f, ill, x):
        seen = jax.lax.stop_gradient(x[..., 0].mean((1, 2)) / x[..., 1].mean((1, 2)))[:, None]
        return jnp.where(ill, jnp.where(seen < 0.3, jnp.nan, jnp.where(seen > 3, 0.0, 1.0)), 1.0) * f(x)

    attack = compiled(name, epsilon=0.005)
    moved, want = (attack(Partial(apply, Network(0).f, ill), x, y, jax.random.key(1)) for ill in (True, False))
    assert (moved == x).all((1, 2, 3)).tolist() == [False, True, True, False, True, False]
    np.testing.assert_allclose(moved[::5], want[::5], atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rounding_to_8_bits_is_towards_the_clean_image(norm):
    epsilon = 8 / 255 if norm == "linf" else 0.3
    f, y = Network(0).f, problem(40)[1]
    x = jnp.array(np.random.default_rng(0).integers(256, size=(40, SIZE, SIZE, 3)), jnp.float32) / 255
    attack = attacks.mi_fgsm(epsilon, 5, epsilon / 4, norm=norm)
    free, rounded = (np.float64(jax.jit(a)(f, x, y, None)) for a in (attack, attacks.round_8bit(attack)))
    pixels, clean = 255 * rounded, np.rint(255 * np.float64(x))
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-4)
    moved, of_free = np.rint(pixels) - clean, 255 * free - clean
    assert (np.abs(moved) <= np.abs(of_free) + 1e-3).all()
    assert (np.abs(moved - of_free) < 1).all()
    assert (moved * of_free >= 0).all()
    assert rounded.min() >= 0
    assert rounded.max() <= 1
    if norm == "linf":
        assert np.abs(moved).max() == 8
        assert (np.abs(moved[np.abs(of_free) > 7.999]) == 8).all()
    else:
        assert np.linalg.norm((moved / 255).reshape(40, -1), axis=1).max() <= epsilon
    assert (moved == 0).any()
    np.testing.assert_array_equal(rounded[moved == 0], np.float64(x)[moved == 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.diverse_inputs(probability=1.5), "probability: got 1.5; it takes 0 to 1"),
        (lambda: attacks.diverse_inputs(resize=0.9), "resize: got 0.9; it takes more than 1"),
        (lambda: attacks.scale_copies(0), "views: got 0; it takes 1 or more"),
        (lambda: attacks.gaussian_smoothing(4), "size: got 4; it takes an odd number, 1 or more"),
        (lambda: attacks.variance_tuned(attacks.momentum(), count=0), "count: got 0; it takes 1 or more"),
        (lambda: attacks.variance_tuned(attacks.momentum(), radius=-1), "radius: got -1; it takes 0 or more"),
        (lambda: attacks.mi_fgsm(0.1, 3, 0.1, norm="l1"), "norm: got 'l1'; it takes linf or l2"),
        (lambda: attacks.ensemble([]), "functions: got none; an ensemble takes one or more"),
        (lambda: attacks.ensemble([Network(0).f], of="votes"), "of: got 'votes'; it takes logits, losses, gradients"),
        (
            lambda: attacks.ensemble([Network(0).f, Network(0, classes=3).f])(problem()[0]),
            r"functions: got networks of \[3, 4\] classes; an ensemble takes equal numbers",
        ),
        (lambda: compiled("di_fgsm")(Network(0).f, *problem(), None), "key: got None"),
        (lambda: compiled("vmi_fgsm")(Network(0).f, *problem(), None), "key: got None"),
        *[
            (
                lambda name=name: compiled(name)(
                    Partial(lambda x: x), jnp.ones((2, 5)), jnp.zeros(2, int), jax.random.key(0)
                ),
                rf"x: got shape \(2, 5\); {part} takes images \[N, H, W, C\]",
            )
            for name, part in (("di_fgsm", "diverse_inputs"), ("ti_fgsm", "gaussian_smoothing"))
        ],
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
