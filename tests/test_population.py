from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtrans import attacks, devices, metrics, models, population, training
from jtrans.data import Split

SHAPE, CLASSES, BATCH = (4, 4, 1), 3, 8


def images(count, seed):
    rng = np.random.default_rng(seed)
    return Split(
        rng.integers(256, size=(count, *SHAPE), dtype=np.uint8), rng.integers(CLASSES, size=count, dtype=np.int32)
    )


TRAIN, TEST = images(40, 0), images(12, 1)


def build(names, widths=(16, 8)):
    return [models.build(name, SHAPE, CLASSES, widths=widths) for name in names]


def place(models_, num_networks, size=0, on=1):
    """On the first `on` devices, `size` networks of each on a device at a time."""
    return [population.place(m, SHAPE, 12, num_networks, size=size, on=jax.devices()[:on]) for m in models_]


def run(
    seed=0,
    *,
    names=("mlp_deep",),
    num_networks=2,
    num_steps=7,
    measure_every=1,
    keys=None,
    size=0,
    on=1,
    host=False,
    epsilon=0.0,
    augment=None,
):
    keys = keys or population.keys(seed)
    built, optimizer = build(names), training.OPTIMIZERS["adam"](1e-2)
    placements = [p._replace(rest_on_host=host) for p in place(built, num_networks, size, on)]
    steps = population.trajectory(
        built,
        optimizer,
        population.initialize(built, optimizer, keys.init, placements),
        placements,
        keys,
        TRAIN,
        TEST,
        batch_size=BATCH,
        num_steps=num_steps,
        measure_every=measure_every,
        epsilon=epsilon,
        augment=augment,
        keep_examples=True,
    )
    measured = [(step, measurement) for step, _, measurement in steps if measurement]
    return population.collect(*zip(*measured, strict=True), len(built), len(TEST.labels))


def looped(seed, num_steps):
    """Two networks one after the other in plain Python: no vmap, no jit, nothing of population.py but the keys."""
    keys = population.keys(seed)
    (model,), optimizer = build(["mlp_deep"]), training.OPTIMIZERS["adam"](1e-2)
    order_keys, init_keys = (population.network_keys(key, 1, 2)[0] for key in (keys.order, keys.init))
    gradients, accuracies, losses = [], [], []
    for m in range(2):
        variables = model.init(init_keys[m])
        state = optimizer.init(variables["params"])
        history = []
        for step in range(num_steps + 1):
            x = jnp.array(TEST.images, jnp.float32) / 255
            log_p = lambda x, variables=variables: jax.nn.log_softmax(model.apply(variables, x))
            loss = lambda x, log_p=log_p: -log_p(x)[jnp.arange(len(TEST.labels)), TEST.labels]
            history.append(
                (
                    jax.grad(lambda x, loss=loss: loss(x).sum())(x),
                    (log_p(x).argmax(1) == TEST.labels).mean(),
                    loss(x).mean(),
                )
            )
            epoch, batch = divmod(step, len(TRAIN.labels) // BATCH)
            order = jax.random.permutation(jax.random.fold_in(order_keys[m], epoch), len(TRAIN.labels))
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            batch_images, batch_labels = jnp.array(TRAIN.images[chosen], jnp.float32) / 255, TRAIN.labels[chosen]

            def batch_loss(params, x=batch_images, y=batch_labels):
                return -jax.nn.log_softmax(model.apply({"params": params}, x))[jnp.arange(BATCH), y].mean()

            updates, state = optimizer.update(jax.grad(batch_loss)(variables["params"]), state)
            variables = {"params": optax.apply_updates(variables["params"], updates)}
        gradient, accuracy, loss = zip(*history, strict=True)
        gradients.append(gradient)
        accuracies.append(accuracy)
        losses.append(loss)
    angle = [metrics.angles(u, v).mean() for u, v in zip(*gradients, strict=True)]
    return np.array(angle), np.array(accuracies), np.array(losses)


def test_two_networks_equal_a_plain_loop():
    angle, accuracy, loss = looped(seed=3, num_steps=7)
    got = run(seed=3)
    assert got.step.tolist() == list(range(8))
    np.testing.assert_allclose(got.angle[0], angle, atol=0.02)
    np.testing.assert_allclose(got.accuracy, accuracy, atol=1e-6)
    np.testing.assert_allclose(got.loss, loss, rtol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, again, other = run(seed=0), run(seed=0), run(seed=1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(first.angle, other.angle)


def test_each_purpose_has_a_key_of_its_own():
    keys, others = population.keys(0), population.keys(1)
    base = run(keys=keys)
    new_order = run(keys=keys._replace(order=others.order))
    np.testing.assert_array_equal(base.angle[:, 0], new_order.angle[:, 0])
    assert not np.allclose(base.angle[:, 1:], new_order.angle[:, 1:])
    new_init = run(keys=keys._replace(init=others.init))
    assert not np.allclose(base.angle[:, 0], new_init.angle[:, 0])


def test_a_network_does_not_depend_on_how_many_there_are():
    few, many = run(num_networks=2), run(num_networks=5)
    np.testing.assert_allclose(few.loss, many.loss[:2], rtol=1e-4)
    np.testing.assert_allclose(few.angle[0], many.angle[0], atol=0.02)  # pair (0, 1) is the first of both


@pytest.mark.parametrize(("size", "host"), [(1, False), (2, False), (3, True)])
def test_groups_give_what_all_at_once_gives(size, host):
    whole, grouped = run(num_networks=5), run(num_networks=5, size=size, host=host)
    np.testing.assert_allclose(grouped.loss, whole.loss, rtol=1e-4)
    np.testing.assert_allclose(grouped.angle, whole.angle, atol=1e-3)


def test_augmentation_has_a_key_of_its_own_and_touches_training_alone():
    keys, others = population.keys(0), population.keys(1)
    plain, same = run(num_steps=2), run(num_steps=2, augment=lambda key, images: images)
    np.testing.assert_array_equal(plain.angle, same.angle)
    crop = partial(training.crop_and_flip, padding=1)
    cropped = run(num_steps=2, augment=crop)
    np.testing.assert_array_equal(cropped.angle[:, 0], plain.angle[:, 0])
    assert not np.allclose(cropped.loss[:, 1:], plain.loss[:, 1:])
    again = run(num_steps=2, augment=crop, keys=keys._replace(augment=others.augment))
    assert not np.allclose(cropped.loss[:, 1:], again.loss[:, 1:])


@pytest.mark.parametrize("names", [("mlp_deep",), ("mlp_shallow", "mlp_deep")])
@pytest.mark.parametrize(("on", "size"), [(1, 0), (2, 1)])
def test_success_rates_are_those_of_fgsm_network_by_network(names, on, size):
    got = run(names=names, num_networks=3, num_steps=1, epsilon=0.1, on=on, size=size)
    keys, x = population.keys(0), TEST.images / np.float32(255)
    built, count = build(names), len(TEST.labels)
    init_keys = population.network_keys(keys.init, len(names), 3)
    networks = [
        partial(model.apply, model.init(key)) for model, own in zip(built, init_keys, strict=True) for key in own
    ]
    right = np.array([f(x).argmax(1) == TEST.labels for f in networks])
    noise = [jax.random.normal(jax.random.fold_in(keys.attack, i), SHAPE) for i in range(count)]
    for target, source in population.attackers(len(names), 3):
        assert source == (target + 1) % 3 + 3 * (len(names) - 1)
        adversarial = [attacks.fgsm(0.1)(networks[n], x, TEST.labels) for n in (source, target)]
        adversarial.append(np.clip(x + 0.1 * np.sign(noise), 0, 1))
        for attack, images in enumerate(adversarial):
            wrong = networks[target](images).argmax(1) != TEST.labels
            rates = [wrong[among].mean() for among in (slice(None), right[target], right[target] & right[source])]
            np.testing.assert_allclose(got.success[target, 0, attack], rates, atol=1e-6)
    assert got.success.shape == (3, 2, 3, 3)


@pytest.mark.parametrize(("num_networks", "on", "size"), [(5, 2, 0), (5, 4, 0), (5, 4, 1), (3, 4, 0), (7, 2, 2)])
@pytest.mark.parametrize("names", [("mlp_deep",), ("mlp_shallow", "mlp_deep")])
def test_devices_give_what_one_gives(names, num_networks, on, size):
    one = run(names=names, num_networks=num_networks, num_steps=10)
    many = run(names=names, num_networks=num_networks, num_steps=10, on=on, size=size)
    for name, tolerance in (("angle", 1e-3), ("angle_examples", 0.05), ("loss", 1e-4), ("accuracy", 1e-6)):
        np.testing.assert_allclose(getattr(many, name), getattr(one, name), atol=tolerance)
    assert many.pair.tolist() == one.pair.tolist()


def test_a_group_fills_the_devices_and_follows_the_memory(monkeypatch):
    (model,) = build(["mlp_deep"])
    (placement,) = place([model], 12)
    assert (placement.size, placement.num_groups) == (12, 1)
    sizes = []
    for budget in (1, 2**16, 2**17, 2**21):
        monkeypatch.setattr(devices, "CPU_BYTES", budget)
        (placement,) = place([model], 12)
        assert placement.size * placement.num_groups == 12
        sizes.append(placement.size)
    assert sizes == sorted(sizes)
    assert [sizes[0], sizes[-1]] == [1, 12]
    assert len(set(sizes)) > 2
    assert [place([model], 13, on=on)[0].size for on in (1, 2, 4)] == [13, 7, 4]


def test_a_prime_number_of_networks_is_taken_in_few_groups():
    for count, fit, groups in ((13, 6, 3), (13, 12, 2), (101, 50, 3), (12, 6, 2), (7, 1, 7)):
        placement = devices.place(count, devices.CPU_BYTES // fit, 1, devices=jax.devices()[:1])
        assert placement.num_groups == groups
        assert placement.size <= fit


def test_of_very_many_pairs_the_same_sample_is_compared(monkeypatch):
    whole = run(num_networks=5, num_steps=1)
    monkeypatch.setattr(population, "MOST_PAIRS", 6)
    sampled = run(num_networks=5, num_steps=1)
    assert len(sampled.pair) == 6
    rows = [whole.pair.tolist().index(pair) for pair in sampled.pair.tolist()]
    np.testing.assert_array_equal(sampled.angle, whole.angle[rows])
    np.testing.assert_array_equal(population.pairs(1, 5)[0], sampled.pair)


def test_blocks_of_test_images_give_what_all_at_once_gives(monkeypatch):
    whole = run(num_networks=3)
    monkeypatch.setattr(population, "BLOCK", 5)  # 12 images: two blocks of 5, and one that overlaps
    blocks = run(num_networks=3)
    for name in ("angle", "angle_examples", "loss", "accuracy", "undirected"):
        np.testing.assert_allclose(getattr(blocks, name), getattr(whole, name), atol=1e-3)


def test_blocks_are_even_and_follow_the_memory():
    assert population.block_size(200, 16, 3072) == 200
    assert population.block_size(2000, 16, 3072) == 200
    assert population.block_size(2001, 16, 3072) == 182  # eleven of them
    assert population.block_size(100, 10**9, 3072) == 1


def test_what_was_collected_comes_apart_again():
    got = run(num_networks=3, num_steps=2)
    again = population.collect(got.step, population.measurements(got), 1, 12)
    for name, a, b in zip(got._fields, got, again, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_run_goes_on_from_any_step_to_the_same_bits():
    keys, optimizer = population.keys(0), training.OPTIMIZERS["adam"](1e-2)
    built = build(["mlp_deep"])
    for on in (1, 3):
        placements = place(built, 4, on=on)
        networks = population.initialize(built, optimizer, keys.init, placements)
        settings = {"batch_size": BATCH, "num_steps": 9, "measure_every": 2}
        whole, kept = {}, None
        for step, groups, measurement in population.trajectory(
            built, optimizer, networks, placements, keys, TRAIN, TEST, **settings
        ):
            whole[step] = measurement
            if step == 7:  # in the middle of an epoch
                kept = devices.merge(groups[0], placements[0])
        rest = population.trajectory(
            built,
            optimizer,
            [devices.split(kept, placements[0])],
            placements,
            keys,
            TRAIN,
            TEST,
            first_step=7,
            **settings,
        )
        for step, _, measurement in rest:
            jax.tree.map(np.testing.assert_array_equal, measurement, whole[step])
        assert step == 9


def test_batch_statistics_are_those_of_the_measured_images_held_constant():
    model = models.build("conv_b", (32, 32, 1), 2, widths=(4, 4, 4, 4, 4, 4, 4))
    optimizer = training.OPTIMIZERS["adam"](1e-2)
    group = jax.vmap(partial(training.initialize, model, optimizer))(jax.random.split(jax.random.key(0), 2))
    pictures = np.random.default_rng(0).integers(256, size=(6, 32, 32, 1), dtype=np.uint8)
    labels = jnp.arange(6) % 2
    got = population.observe(model, group, pictures, labels, batch_statistics=True)
    x = jnp.float32(pictures) / 255
    for m in range(2):
        variables = jax.tree.map(lambda leaf, m=m: leaf[m], group.variables)
        logits, _ = model.train(variables, x, jax.random.key(0))  # normalises by the batch, in training mode
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        np.testing.assert_allclose(got.loss[m], loss, rtol=1e-5)
        fixed = model.calibrate(variables, x)
        margin = lambda x, v=fixed: (model.apply(v, x) @ jnp.array([1.0, -1.0])) * (2 * labels - 1)
        gradient = jax.grad(lambda x, margin=margin: margin(x).sum())(x)
        angle = metrics.angles(gradient, got.unit[m].reshape(x.shape))
        np.testing.assert_allclose(angle, 0, atol=0.05)
    running = population.observe(model, group, pictures, labels)
    assert not np.allclose(running.loss, got.loss)


def test_measuring_less_often_measures_the_same():
    every, third = run(), run(measure_every=3)
    assert third.step.tolist() == [0, 3, 6, 7]
    np.testing.assert_allclose(third.angle, every.angle[:, third.step], atol=1e-3)


def test_two_architectures_give_the_pairs_across():
    got = run(names=("mlp_shallow", "mlp_deep"), num_networks=3)
    assert got.model.tolist() == [0, 0, 0, 1, 1, 1]
    assert got.pair.tolist() == [[a, b] for a in range(3) for b in range(3, 6)]
    assert got.angle.shape == (9, 8)
    assert got.accuracy.shape == (6, 8)
    # Two groups of one architecture are as independent as one group is.
    assert not np.allclose(*run(names=("mlp_deep", "mlp_deep"), num_networks=1).loss)


def measure(built, groups, num_networks):
    """Of groups `[1, M, ...]`, on one device."""
    placements = place(built, num_networks)

    def observed(groups):
        seen = [[population.observe(m, g, TEST.images, TEST.labels)] for m, g in zip(built, groups, strict=True)]
        return population.compare(seen, placements, population.pairs(len(built), num_networks)[0])

    return devices.program(observed, placements[0].devices, out_axes=None)(groups)


@pytest.mark.parametrize("names", [("mlp_deep",), ("mlp_deep", "mlp_deep")])
def test_population_angles_agree_with_float64(names):
    built = build(names)
    optimizer = training.OPTIMIZERS["sgd"](0.1)
    networks = [group for (group,) in population.initialize(built, optimizer, jax.random.key(0), place(built, 3))]
    # Pull one network towards another, so that the angles range from small to near 90 degrees.
    nearer = lambda last, first: last.at[:, 1].set(first[:, 0] + 0.1 * last[:, 1])
    networks[-1] = jax.tree.map(nearer, networks[-1], networks[0])
    got, *_ = measure(built, networks, 3)

    gradients = []
    x = jnp.array(TEST.images, jnp.float32) / 255
    for model, group in zip(built, networks, strict=True):
        for m in range(3):
            variables = jax.tree.map(lambda leaf, m=m: leaf[0, m], group.variables)
            loss = lambda x, model=model, variables=variables: (
                -jnp.sum(jax.nn.log_softmax(model.apply(variables, x))[jnp.arange(len(x)), TEST.labels])
            )
            gradients.append(np.float64(jax.grad(loss)(x)).reshape(len(x), -1))
    pair, _ = population.pairs(len(built), 3)
    for (a, b), angle in zip(pair, got, strict=True):
        u, v = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in (gradients[a], gradients[b]))
        want = np.rad2deg(2 * np.arctan2(np.linalg.norm(u - v, axis=1), np.linalg.norm(u + v, axis=1)))
        want = np.minimum(want, 180 - want)
        assert (want > 1).all()
        np.testing.assert_allclose(angle, want, atol=1e-3)
    assert got.min() < 20
    assert got.max() > 80


def test_a_dead_network_has_no_direction_and_is_left_out_and_counted():
    built, optimizer = build(["mlp_deep"]), training.OPTIMIZERS["sgd"](0.0)
    placements, keys = place(built, 3), population.keys(0)
    ((group,),) = population.initialize(built, optimizer, keys.init, placements)
    dead = group._replace(variables=jax.tree.map(lambda leaf: leaf.at[:, 2].set(0), group.variables))
    run = population.trajectory(
        built, optimizer, [[dead]], placements, keys, TRAIN, TEST, batch_size=BATCH, num_steps=0
    )
    ((_, _, got),) = run
    assert got.undirected.tolist() == [0, 0, 12]
    assert np.isnan(got.angle).tolist() == [False, True, True]


def test_step_and_measurement_are_traced_once():
    traces = []
    (model,) = build(["mlp_deep"])

    def apply(variables, x):
        traces.append(x.shape)
        return model.apply(variables, x)

    def train(variables, x, key):
        traces.append(x.shape)
        return model.train(variables, x, key)

    optimizer = training.OPTIMIZERS["adam"](1e-2)
    keys = population.keys(0)
    placements = place([model], 2)
    networks = population.initialize([model], optimizer, keys.init, placements)
    settings = {"batch_size": BATCH, "num_steps": 11}
    counted = model._replace(apply=apply, train=train)
    for _ in population.trajectory([counted], optimizer, networks, placements, keys, TRAIN, TEST, **settings):
        pass
    assert sorted(set(traces)) == [(BATCH, *SHAPE), (12, *SHAPE)]
    assert len(traces) <= 3  # the measurement evaluates and differentiates


def test_images_are_arguments_of_the_compiled_step_not_constants():
    (model,), optimizer = build(["mlp_deep"]), training.OPTIMIZERS["adam"](1e-2)
    network = training.initialize(model, optimizer, jax.random.key(0))
    step = partial(training.train_step, model, optimizer)
    step = jax.make_jaxpr(step)(network, TRAIN.images, TRAIN.labels, jax.random.key(0))
    assert sum(np.size(c) for c in step.consts) < 100
    group = jax.tree.map(lambda leaf: leaf[None], network)
    measured = jax.make_jaxpr(partial(population.observe, model))(group, TEST.images, TEST.labels)
    assert all(np.size(c) < TEST.images.size for c in measured.consts)


def test_every_network_has_its_own_batches():
    overlap = population.batch_overlap(jax.random.key(0), 1, 12, num_images=400, batch_size=40)
    assert overlap == pytest.approx(0.1, abs=0.03)  # what independent orders give
    assert population.batch_overlap(jax.random.key(0), 2, 2, num_images=40, batch_size=40) == 1


@pytest.mark.parametrize("num_models", [1, 2])
def test_the_overlap_of_batches_is_that_of_every_pair(num_models):
    key, count, images, size = jax.random.key(3), 4, 60, 25
    keys = [k for own in population.network_keys(key, num_models, count) for k in own]
    batches = [set(np.asarray(training.epoch_order(k, 0, images))[:size].tolist()) for k in keys]
    pair, _ = population.pairs(num_models, count)
    want = np.mean([len(batches[a] & batches[b]) / size for a, b in pair])
    assert population.batch_overlap(key, num_models, count, images, size) == pytest.approx(want)


def test_the_angles_of_single_images_are_given_where_they_are_asked_for():
    built, optimizer, keys = build(["mlp_deep"]), training.OPTIMIZERS["sgd"](0.1), population.keys(0)
    placements = place(built, 3)
    means = []
    for keep in (True, False):
        networks = population.initialize(built, optimizer, keys.init, placements)
        options = {"batch_size": BATCH, "num_steps": 0, "keep_examples": keep}
        ((_, _, measurement),) = population.trajectory(
            built, optimizer, networks, placements, keys, TRAIN, TEST, **options
        )
        means.append(measurement.angle)
        assert (measurement.angle_examples is not None) == keep
        if keep:
            want = np.mean(measurement.angle_examples, axis=1, dtype=np.float64)
            np.testing.assert_allclose(measurement.angle, want, atol=1e-6)
    np.testing.assert_array_equal(*means)


def test_three_architectures_are_refused():
    with pytest.raises(ValueError, match="1 or 2"):
        population.pairs(3, 2)
