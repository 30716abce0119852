from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from jtrans import attacks, metrics, models, training
from jtrans.data import Split
from jtrans.errors import InputError
from jtrans.population import devices, engine, follow, observe, trajectory

SHAPE, CLASSES, BATCH = (4, 4, 1), 3, 8


def images(count, seed):
    rng = np.random.default_rng(seed)
    return Split(
        rng.integers(256, size=(count, *SHAPE), dtype=np.uint8), rng.integers(CLASSES, size=count, dtype=np.int32)
    )


TRAIN, TEST = images(40, 0), images(12, 1)


def build(names, widths=(16, 8)):
    return [models.build(name, SHAPE, CLASSES, widths=widths) for name in names]


def population(names=("mlp_deep",), num_networks=3, *, optimizer=None, seed=0, size=0, on=1, host=False, **options):
    """On the first `on` devices, `size` networks of each architecture on a device at once."""
    given = {"keys": engine.keys(seed), "train": TRAIN, "test": TEST, "batch_size": BATCH} | options
    optimizer = optimizer or training.OPTIMIZERS["adam"](1e-2)
    built = engine.build(
        models=build(names),
        optimizer=optimizer,
        num_networks=num_networks,
        group_size=size,
        on=jax.devices()[:on],
        **given,
    )
    return built._replace(placements=[p._replace(rest_on_host=host) for p in built.placements])


def run(names=("mlp_deep",), num_networks=3, *, num_steps=7, measure_every=1, **options):
    """The whole trajectory of a population."""
    built = population(names, num_networks, keep_examples=True, **options)
    steps = engine.trajectory(built, engine.initialize(built), num_steps, measure_every=measure_every)
    measured = [(step, measurement) for step, _, measurement in steps if measurement]
    return trajectory.collect(built, *zip(*measured, strict=True))


def looped(seed, num_steps):
    """Two networks one after the other in plain Python: no vmap, nothing of the engine but the keys."""
    keys = engine.keys(seed)
    (model,), optimizer = build(["mlp_deep"]), training.OPTIMIZERS["adam"](1e-2)
    order_keys, init_keys = (engine.network_keys(key, 1, 2)[0] for key in (keys.order, keys.init))

    @jax.jit
    def look(params):
        x = TEST.inputs / np.float32(255)
        log_p = lambda x: jax.nn.log_softmax(model.apply({"params": params}, x))
        loss = lambda x: -log_p(x)[jnp.arange(len(x)), TEST.labels]
        right = log_p(x).argmax(1) == TEST.labels
        return jax.grad(lambda x: loss(x).sum())(x), right.mean(), loss(x).mean()

    @jax.jit
    def train(params, state, images, labels):
        x = images / np.float32(255)
        loss = lambda params: -jax.nn.log_softmax(model.apply({"params": params}, x))[jnp.arange(BATCH), labels].mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    gradients, accuracies, losses = [], [], []
    for m in range(2):
        params = jax.jit(model.init)(init_keys[m])["params"]
        state = optimizer.init(params)
        history = []
        for step in range(num_steps + 1):
            history.append(look(params))
            epoch, batch = divmod(step, len(TRAIN.labels) // BATCH)
            order = jax.random.permutation(jax.random.fold_in(order_keys[m], epoch), len(TRAIN.labels))
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            params, state = train(params, state, TRAIN.inputs[chosen], TRAIN.labels[chosen])
        gradient, accuracy, loss = zip(*history, strict=True)
        gradients.append(gradient)
        accuracies.append(accuracy)
        losses.append(loss)
    angle = [metrics.angles(u, v).mean() for u, v in zip(*gradients, strict=True)]
    return np.array(angle), np.array(accuracies), np.array(losses)


def test_two_networks_equal_a_plain_loop():
    angle, accuracy, loss = looped(seed=3, num_steps=7)
    vmapped = run(seed=3)
    assert vmapped["step"].tolist() == list(range(8))
    np.testing.assert_allclose(vmapped["angle"][0], angle, atol=0.02)
    np.testing.assert_allclose(vmapped["accuracy"][:2], accuracy, atol=1e-6)
    np.testing.assert_allclose(vmapped["loss"][:2], loss, rtol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, again, other = run(seed=0), run(seed=0), run(seed=1)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    assert not np.allclose(first["angle"], other["angle"])


def test_each_purpose_has_a_key_of_its_own():
    keys, others = engine.keys(0), engine.keys(1)
    base = run(keys=keys)["angle"]
    new_order = run(keys=keys._replace(order=others.order))["angle"]
    np.testing.assert_array_equal(base[:, 0], new_order[:, 0])
    assert not np.allclose(base[:, 1:], new_order[:, 1:])
    new_init = run(keys=keys._replace(init=others.init))["angle"]
    assert not np.allclose(base[:, 0], new_init[:, 0])


def test_a_network_does_not_depend_on_how_many_there_are():
    few, many = run(num_networks=3), run(num_networks=5)
    np.testing.assert_allclose(few["loss"], many["loss"][:3], rtol=1e-4)
    np.testing.assert_allclose(few["angle"][0], many["angle"][0], atol=0.02)  # pair (0, 1) is the first of both


@pytest.mark.parametrize(("size", "host"), [(1, False), (2, False), (2, True)])
def test_groups_give_what_all_at_once_gives(size, host):
    whole, grouped = run(), run(size=size, host=host)
    np.testing.assert_allclose(grouped["loss"], whole["loss"], rtol=1e-4)
    np.testing.assert_allclose(grouped["angle"], whole["angle"], atol=1e-3)


def test_augmentation_has_a_key_of_its_own_and_touches_training_alone():
    keys, others = engine.keys(0), engine.keys(1)
    plain, same = run(num_steps=2), run(num_steps=2, augment=lambda key, images: images)
    np.testing.assert_array_equal(plain["angle"], same["angle"])
    crop = partial(training.crop_and_flip, padding=1)
    cropped = run(num_steps=2, augment=crop)
    np.testing.assert_array_equal(cropped["angle"][:, 0], plain["angle"][:, 0])
    assert not np.allclose(cropped["loss"][:, 1:], plain["loss"][:, 1:])
    again = run(num_steps=2, augment=crop, keys=keys._replace(augment=others.augment))
    assert not np.allclose(cropped["loss"][:, 1:], again["loss"][:, 1:])


def untrained(built):
    """The networks of a population before training, of all architectures in order, as functions of images."""
    all_keys = engine.network_keys(built.keys.init, len(built.models), built.num_networks)
    compiled = [jax.jit(model.apply) for model in built.models]
    return [
        Partial(apply, jax.jit(model.init)(key))
        for model, apply, model_keys in zip(built.models, compiled, all_keys, strict=True)
        for key in model_keys
    ]


@pytest.mark.parametrize("names", [("mlp_deep",), ("mlp_shallow", "mlp_deep")])
@pytest.mark.parametrize(("on", "size"), [(1, 0), (2, 1)])
def test_success_rates_are_those_of_fgsm_network_by_network(names, on, size):
    success = run(names, 3, num_steps=1, epsilon=0.1, on=on, size=size)["success"]
    built, x = population(names, 3), TEST.inputs / np.float32(255)
    networks, count = untrained(built), len(TEST.labels)
    right, fgsm = np.array([f(x).argmax(1) == TEST.labels for f in networks]), jax.jit(attacks.fgsm(0.1))
    noise = [jax.random.normal(jax.random.fold_in(built.keys.attack, i), SHAPE) for i in range(count)]
    for target, source in observe.attackers(len(names), 3):
        assert source == (target + 1) % 3 + 3 * (len(names) - 1)
        adversarial = [fgsm(networks[n], x, TEST.labels) for n in (source, target)]
        adversarial.append(np.clip(x + 0.1 * np.sign(noise), 0, 1))
        for attack, images in enumerate(adversarial):
            wrong = networks[target](images).argmax(1) != TEST.labels
            rates = [wrong[among].mean() for among in (slice(None), right[target], right[target] & right[source])]
            np.testing.assert_allclose(success[target, 0, attack], rates, atol=1e-6)
    assert success.shape == (3, 2, 3, 3)


def quartile(values):
    return np.quantile(values.sum(1), 0.25, axis=-1)


@pytest.mark.parametrize(
    ("names", "options"),
    [(("mlp_deep",), {}), (("mlp_shallow", "mlp_deep"), {}), (("mlp_deep",), {"on": 2, "size": 1})],
)
def test_a_new_measure_is_one_entry(monkeypatch, names, options):
    """A quantity of a network that is no mean over images, and a quantity of a pair, against a loop over networks."""
    range_of_logits = lambda seen: jnp.stack([seen.logits.max(-1), -seen.logits.min(-1)])
    monkeypatch.setitem(observe.NETWORK_MEASURES, "spread", observe.NetworkMeasure(range_of_logits, quartile))
    monkeypatch.setitem(observe.PAIR_MEASURES, "squared_cosine", observe.PairMeasure(jnp.square))
    monkeypatch.setattr(observe, "BLOCK", 5)  # 12 images: two blocks of 5, and one that overlaps
    measured = run(names, 3, num_steps=1, **options)
    built, x = population(names, 3), TEST.inputs / np.float32(255)
    networks = untrained(built)
    spread = [np.quantile(np.ptp(f(x), axis=1), 0.25) for f in networks]
    np.testing.assert_allclose(measured["spread"][:, 0], spread, rtol=1e-4)
    loss = lambda x, f: optax.softmax_cross_entropy_with_integer_labels(f(x), TEST.labels).sum()
    gradients = [np.float64(jax.grad(loss)(x, f)).reshape(len(x), -1) for f in networks]
    unit = [gradient / np.linalg.norm(gradient, axis=1, keepdims=True) for gradient in gradients]
    squared = [np.mean((unit[a] * unit[b]).sum(1) ** 2) for a, b in built.pair]
    np.testing.assert_allclose(measured["squared_cosine"][:, 0], squared, atol=1e-5)
    assert measured["spread"].shape == (3 * len(names), 2)
    assert measured["squared_cosine"].shape == measured["angle"].shape
    curves = trajectory.curves(measured)
    np.testing.assert_allclose(curves["spread"].mean, measured["spread"].mean(0))
    np.testing.assert_allclose(curves["squared_cosine"].mean, measured["squared_cosine"].mean(0))


@pytest.mark.parametrize(
    ("num_networks", "on", "size"),
    [(5, 2, 2), (5, 4, 0), (3, 4, 0), *(pytest.param(5, *rest, marks=pytest.mark.slow) for rest in ((2, 0), (4, 1)))],
)
@pytest.mark.parametrize("names", [("mlp_deep",), ("mlp_shallow", "mlp_deep")])
def test_devices_give_what_one_gives(names, num_networks, on, size):
    one = run(names, num_networks, num_steps=10)
    many = run(names, num_networks, num_steps=10, on=on, size=size)
    for name, tolerance in (("angle", 1e-3), ("angle_examples", 0.05), ("loss", 1e-4), ("accuracy", 1e-6)):
        np.testing.assert_allclose(many[name], one[name], atol=tolerance)
    assert many["pair"].tolist() == one["pair"].tolist()


def place(num_networks, on=1):
    (model,) = build(["mlp_deep"])
    batch = jax.ShapeDtypeStruct((12, *SHAPE), np.float32)
    return engine.place(model, batch, num_networks, on=jax.devices()[:on])


def test_a_group_fills_the_devices_and_follows_the_memory(monkeypatch):
    placement = place(12)
    assert (placement.size, placement.num_groups) == (12, 1)
    sizes = []
    for budget in (1, 2**16, 2**17, 2**21):
        monkeypatch.setattr(devices, "CPU_BYTES", budget)
        placement = place(12)
        assert placement.size * placement.num_groups == 12
        sizes.append(placement.size)
    assert sizes == sorted(sizes)
    assert [sizes[0], sizes[-1]] == [1, 12]
    assert len(set(sizes)) > 2
    assert [place(13, on=on).size for on in (1, 2, 4)] == [13, 7, 4]


def test_a_prime_number_of_networks_is_taken_in_few_groups():
    for count, fit, groups in ((13, 6, 3), (13, 12, 2), (101, 50, 3), (12, 6, 2), (7, 1, 7)):
        placement = devices.place(count, devices.CPU_BYTES // fit, 1, devices=jax.devices()[:1])
        assert placement.num_groups == groups
        assert placement.size <= fit


def test_of_very_many_pairs_the_same_sample_is_compared(monkeypatch):
    whole = run(num_networks=5, num_steps=1)
    monkeypatch.setattr(observe, "MOST_PAIRS", 6)
    sampled = run(num_networks=5, num_steps=1)
    assert len(sampled["pair"]) == 6
    rows = [whole["pair"].tolist().index(pair) for pair in sampled["pair"].tolist()]
    np.testing.assert_array_equal(sampled["angle"], whole["angle"][rows])
    np.testing.assert_array_equal(observe.pairs(1, 5)[0], sampled["pair"])


@pytest.mark.parametrize("names", [("mlp_deep",), ("mlp_shallow", "mlp_deep")])
def test_where_a_sample_of_pairs_is_kept_means_are_of_all_pairs(monkeypatch, names):
    def summary():
        built = population(names, 9, optimizer=training.OPTIMIZERS["sgd"](0.1))
        networks = engine.initialize(built)
        # One network without a direction, and one that is nearly another's: at one sign, and at a small angle.
        change = lambda leaf: leaf.at[:, 2].set(0).at[:, 4].set(leaf[:, 0])
        networks[0] = [jax.tree.map(change, group) for group in networks[0]]
        measured = [(step, m) for step, _, m in engine.trajectory(built, networks, 3)]
        run = trajectory.collect(built, *zip(*measured, strict=True))
        assert [m.every.keys() for m in trajectory.measurements(run)] == [m.every.keys() for _, m in measured]
        curves = trajectory.curves(run)
        return run, curves, trajectory.summarize(run, curves, np.full(len(TEST.labels), 64), 2)

    run, curves, whole = summary()
    assert not any(name.startswith("every_") for name in run)
    monkeypatch.setattr(observe, "MOST_PAIRS", 6)
    sampled, of_all, again = summary()
    assert len(sampled["pair"]) == 6
    for name, interval in curves.items():
        for bound, (got, want) in zip(["mean", "low", "high"], zip(of_all[name], interval, strict=True), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6, err_msg=f"{name} {bound}")
    for name in ("mean", "low", "high", "freedom", "steps"):
        assert again["selected"][name] == pytest.approx(whole["selected"][name], rel=1e-6)
    counts = np.stack([np.histogram(angle[~np.isnan(angle)], np.arange(91))[0] for angle in run["angle"].T], axis=1)
    np.testing.assert_array_equal(sampled["every_histogram"], counts)
    assert sampled["every_count"].sum() == 2 * (~np.isnan(run["angle"])).sum()


def test_blocks_of_test_images_give_what_all_at_once_gives(monkeypatch):
    whole = run()
    monkeypatch.setattr(observe, "BLOCK", 5)  # 12 images: two blocks of 5, and one that overlaps
    blocks = run()
    for name in ("angle", "angle_examples", "loss", "accuracy", "undirected"):
        np.testing.assert_allclose(blocks[name], whole[name], atol=1e-3)


def test_populations_that_differ_in_arrays_alone_share_their_programs(lowerings):
    first = population(epsilon=0.1)
    second = first._replace(keys=engine.keys(1), train=images(40, 2), test=images(12, 3))
    of = lambda population: [m for *_, m in engine.trajectory(population, engine.initialize(population), 2)]
    before = of(first)
    count = lowerings()
    after = of(second)
    assert lowerings() == count
    alone = of(population(epsilon=0.1, keys=second.keys, train=second.train, test=second.test))
    for ours, theirs, others in zip(after, alone, before, strict=True):
        for name, values in (ours.networks | ours.pairs).items():
            np.testing.assert_array_equal(values, (theirs.networks | theirs.pairs)[name], err_msg=name)
        assert (ours.pairs["angle"] != others.pairs["angle"]).all()


def test_blocks_are_even_and_follow_the_memory():
    of = lambda count: (count, 32, 32, 3)
    assert observe.block_size(of(200), 16) == 200
    assert observe.block_size(of(2000), 16) == 200
    assert observe.block_size(of(2001), 16) == 182  # eleven of them
    assert observe.block_size(of(100), 10**9) == 1
    assert observe.block_size(of(2001), 16, batch_statistics=True) == 2001


def test_what_was_collected_comes_apart_again():
    collected = run(num_steps=2, epsilon=0.1)
    built = population(epsilon=0.1, keep_examples=True)
    again = trajectory.collect(built, collected["step"], trajectory.measurements(collected))
    assert again.keys() == collected.keys()
    for name, array in collected.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_the_trajectory_of_some_networks_is_that_of_the_pairs_among_them():
    whole = run(num_steps=2, epsilon=0.1)
    some = trajectory.select(whole, np.array([2, 1]))
    assert some["pair"].tolist() == [[1, 0]]  # networks 1 and 2 by their new numbers
    (row,) = np.flatnonzero((whole["pair"] == [1, 2]).all(1))
    for name in ("angle", "angle_examples"):
        np.testing.assert_array_equal(some[name], whole[name][[row]])
    for name in ("accuracy", "loss", "undirected", "model"):
        np.testing.assert_array_equal(some[name], whole[name][[2, 1]])
    assert some["step"].tolist() == [0, 1, 2]
    assert whole.keys() - some.keys() == {"success"}


def test_a_run_resumes_from_any_step_to_the_same_bits():
    for on in (1, 2):
        built = population(on=on)
        whole, hosted = {}, None
        for step, groups, measurement in engine.trajectory(built, engine.initialize(built), 9, measure_every=2):
            whole[step] = measurement
            if step == 7:  # in the middle of an epoch
                hosted = engine.merge(built, groups)
        rest = engine.trajectory(built, engine.split(built, hosted), 9, measure_every=2, first_step=7)
        for step, _, measurement in rest:
            jax.tree.map(np.testing.assert_array_equal, measurement, whole[step])
        assert step == 9


def test_batch_statistics_are_those_of_the_measured_images_held_constant(shorten):
    shorten("conv_b", 2)
    model = models.build("conv_b", (16, 16, 1), 2, widths=(4, 4))
    optimizer = training.OPTIMIZERS["adam"](1e-2)
    start = jax.jit(jax.vmap(partial(training.initialize, model, optimizer)))
    group = start(jax.random.split(jax.random.key(0), 2))
    pictures = np.random.default_rng(0).integers(256, size=(6, 16, 16, 1), dtype=np.uint8)
    labels = jnp.arange(6) % 2
    look = jax.jit(partial(observe.observe, model), static_argnames="batch_statistics")
    seen = look(group, pictures, labels, batch_statistics=True)
    x = jnp.float32(pictures) / 255

    def margins(x, variables):
        return ((model.apply(variables, x) @ jnp.array([1.0, -1.0])) * (2 * labels - 1)).sum()

    train, calibrate, gradient = map(jax.jit, (model.train, model.calibrate, jax.grad(margins)))
    for m in range(2):
        variables = jax.tree.map(lambda leaf, m=m: leaf[m], group.variables)
        logits, _ = train(variables, x, jax.random.key(0))  # normalises by the batch, in training mode
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        np.testing.assert_allclose(seen.values["loss"][m], loss, rtol=1e-5)
        angle = metrics.angles(gradient(x, calibrate(variables, x)), seen.unit[m].reshape(x.shape))
        np.testing.assert_allclose(angle, 0, atol=0.05)
    running = look(group, pictures, labels)
    assert not np.allclose(running.values["loss"], seen.values["loss"])


def test_measuring_less_often_measures_the_same():
    every, third = run(), run(measure_every=3)
    assert third["step"].tolist() == [0, 3, 6, 7]
    np.testing.assert_allclose(third["angle"], every["angle"][:, third["step"]], atol=1e-3)


def test_two_architectures_give_the_pairs_across():
    across = run(("mlp_shallow", "mlp_deep"), 3)
    assert across["model"].tolist() == [0, 0, 0, 1, 1, 1]
    assert across["pair"].tolist() == [[a, b] for a in range(3) for b in range(3, 6)]
    assert across["angle"].shape == (9, 8)
    assert across["accuracy"].shape == (6, 8)
    # Two groups of one architecture are as independent as one group is.
    assert not np.allclose(*run(("mlp_deep", "mlp_deep"), 1)["loss"])


@pytest.mark.parametrize("names", [("mlp_deep",), ("mlp_deep", "mlp_deep")])
def test_population_angles_agree_with_float64(names):
    built = population(names, 3, optimizer=training.OPTIMIZERS["sgd"](0.1), keep_examples=True)
    networks = [group for (group,) in engine.initialize(built)]
    # Pull one network towards another, so that the angles range from small to near 90 degrees.
    nearer = lambda last, first: last.at[:, 1].set(first[:, 0] + 0.1 * last[:, 1])
    networks[-1] = jax.tree.map(nearer, networks[-1], networks[0])
    ((_, _, measurement),) = engine.trajectory(built, [[group] for group in networks], 0)
    measured = measurement.pairs["angle_examples"]

    gradients = []
    x = jnp.array(TEST.inputs, jnp.float32) / 255
    for model, group in zip(built.models, networks, strict=True):
        log_p = lambda x, variables, model=model: jax.nn.log_softmax(model.apply(variables, x))
        loss = lambda x, variables, log_p=log_p: -log_p(x, variables)[jnp.arange(len(x)), TEST.labels].sum()
        gradient = jax.jit(jax.grad(loss))
        for m in range(3):
            variables = jax.tree.map(lambda leaf, m=m: leaf[0, m], group.variables)
            gradients.append(np.float64(gradient(x, variables)).reshape(len(x), -1))
    for (a, b), angle in zip(built.pair, measured, strict=True):
        u, v = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in (gradients[a], gradients[b]))
        want = np.rad2deg(2 * np.arctan2(np.linalg.norm(u - v, axis=1), np.linalg.norm(u + v, axis=1)))
        want = np.minimum(want, 180 - want)
        assert (want > 1).all()
        np.testing.assert_allclose(angle, want, atol=1e-3)
    assert measured.min() < 20
    assert measured.max() > 80


def test_a_dead_network_has_no_direction_and_is_left_out_and_counted():
    built = population(num_networks=3, optimizer=training.OPTIMIZERS["sgd"](0.0))
    ((group,),) = engine.initialize(built)
    dead = group._replace(variables=jax.tree.map(lambda leaf: leaf.at[:, 2].set(0), group.variables))
    ((_, _, measured),) = engine.trajectory(built, [[dead]], 0)
    assert measured.networks["undirected"].tolist() == [0, 0, 12]
    assert np.isnan(measured.pairs["angle"]).tolist() == [False, True, True]


def test_a_lost_network_makes_no_attack_that_could_fail():
    built = population(num_networks=3, optimizer=training.OPTIMIZERS["sgd"](0.0), epsilon=0.1)
    ((group,),) = engine.initialize(built)
    lost = group._replace(variables=jax.tree.map(lambda leaf: leaf.at[:, 2].set(jnp.nan), group.variables))
    measured, healthy = (
        next(iter(engine.trajectory(built, [[each]], 0)))[2].networks["success"] for each in (lost, group)
    )
    assert np.isnan(measured[2]).all()
    assert np.isnan(measured[1, 0]).all()  # along the direction of the lost one
    np.testing.assert_array_equal(measured[1, 1:, :2], healthy[1, 1:, :2])  # its own, and random signs
    np.testing.assert_array_equal(measured[0], healthy[0])


def test_step_and_measurement_are_traced_once():
    traces = []
    (model,) = build(["mlp_deep"])

    def apply(variables, x):
        traces.append(x.shape)
        return model.apply(variables, x)

    def train(variables, x, key):
        traces.append(x.shape)
        return model.train(variables, x, key)

    built = population()
    networks = engine.initialize(built)
    for _ in engine.trajectory(built._replace(models=[model._replace(apply=apply, train=train)]), networks, 11):
        pass
    assert sorted(set(traces)) == [(BATCH, *SHAPE), (12, *SHAPE)]
    assert len(traces) <= 3  # the measurement evaluates and differentiates


def test_images_are_arguments_of_the_compiled_step_not_constants():
    (model,), optimizer = build(["mlp_deep"]), training.OPTIMIZERS["adam"](1e-2)
    network = training.initialize(model, optimizer, jax.random.key(0))
    step = partial(training.train_step, model, optimizer)
    step = jax.make_jaxpr(step)(network, TRAIN.inputs, TRAIN.labels, jax.random.key(0))
    assert sum(np.size(c) for c in step.consts) < 100
    group = jax.tree.map(lambda leaf: leaf[None], network)
    measured = jax.make_jaxpr(partial(observe.observe, model))(group, TEST.inputs, TEST.labels)
    assert all(np.size(c) < TEST.inputs.size for c in measured.consts)


def overlap(names, num_networks, num_images, batch_size, order=0):
    keys = engine.keys(0)._replace(order=jax.random.key(order))
    built = population(names, num_networks, keys=keys, train=images(num_images, 0), batch_size=batch_size)
    return engine.batch_overlap(built)


def test_every_network_has_its_own_batches():
    assert overlap(["mlp_deep"], 12, num_images=400, batch_size=40) == pytest.approx(0.1, abs=0.03)  # independent
    assert overlap(["mlp_deep"] * 2, 2, num_images=40, batch_size=40) == 1


@pytest.mark.parametrize("num_models", [1, 2])
def test_the_overlap_of_batches_is_that_of_every_pair(num_models):
    count, num_images, size = 4, 60, 25
    keys = [key for of_model in engine.network_keys(jax.random.key(3), num_models, count) for key in of_model]
    batches = [set(np.asarray(training.epoch_order(k, 0, num_images))[:size].tolist()) for k in keys]
    pair, _ = observe.pairs(num_models, count)
    want = np.mean([len(batches[a] & batches[b]) / size for a, b in pair])
    assert overlap(["mlp_deep"] * num_models, count, num_images, size, order=3) == pytest.approx(want)


def test_the_angles_of_single_images_are_given_where_they_are_asked_for():
    means = []
    for keep in (True, False):
        built = population(num_networks=3, optimizer=training.OPTIMIZERS["sgd"](0.1), keep_examples=keep)
        ((_, _, measurement),) = engine.trajectory(built, engine.initialize(built), 0)
        means.append(measurement.pairs["angle"])
        assert ("angle_examples" in measurement.pairs) == keep
        if keep:
            want = np.mean(measurement.pairs["angle_examples"], axis=1, dtype=np.float64)
            np.testing.assert_allclose(measurement.pairs["angle"], want, atol=1e-6)
    np.testing.assert_array_equal(*means)


def test_three_architectures_are_refused():
    with pytest.raises(ValueError, match="1 or 2"):
        observe.pairs(3, 2)


def test_a_single_network_is_saved_and_resumes_although_it_has_no_pairs(tmp_path):
    built = population(num_networks=1)
    finish = lambda path, steps: follow.run(
        built, follow.Plan(path, steps, 1, 0, 2, "00", lambda: path.mkdir(exist_ok=True))
    )
    whole, networks = finish(tmp_path / "whole", 6)
    finish(tmp_path / "stopped", 4)
    resumed, again = finish(tmp_path / "stopped", 6)
    assert whole["angle"].shape == (0, 7)
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, engine.merge(built, networks), engine.merge(built, again))


@pytest.mark.parametrize(
    ("size", "on", "host"),
    [
        (2, 2, False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 1, False), (2, 2, True), (4, 1, False))),
    ],
)
def test_a_run_saved_in_pieces_resumes_to_the_same_bits(tmp_path, monkeypatch, size, on, host):
    """Saved by two devices of two networks each, in one piece and in several; and resumed by any."""

    def follow_to(steps, name, **options):
        path, built = tmp_path / name, population(("mlp_deep", "mlp_shallow"), 5, **options)
        plan = follow.Plan(path, steps, 1, 0, 3, "00", lambda: path.mkdir(exist_ok=True))
        found, networks = follow.run(built, plan)
        return found, engine.merge(built, networks)

    saved = {}
    for name, num_bytes in {"whole": follow.PIECE_BYTES, "pieces": 1}.items():
        monkeypatch.setattr(follow, "PIECE_BYTES", num_bytes)
        saved[name] = follow_to(3, name, size=2, on=2)
    folders = lambda name: {path.name for path in (tmp_path / name / "checkpoints" / "3").iterdir() if path.is_dir()}
    assert folders("pieces") - folders("whole") == {"1", "2"}  # beside the first: five networks, of three places each
    equal = partial(jax.tree.map, np.testing.assert_array_equal)
    for steps in (3, 5):  # nothing is left to do, or something
        resumed = {name: follow_to(steps, name, size=size, on=on, host=host) for name in saved}
        equal(resumed["pieces"], resumed["whole"])
        if steps == 3:
            equal(resumed["pieces"], saved["pieces"])
    if (size, on) == (2, 2):
        equal(resumed["pieces"], follow_to(5, "at_once", size=2, on=2))


@pytest.mark.parametrize(("count", "size", "on"), [(5, 3, 1), (7, 3, 4), (3, 1, 4), (11, 4, 2)])
@pytest.mark.parametrize("num_bytes", [1, 2**13, 2**30])
def test_pieces_hold_every_network_once_and_no_more_bytes_than_allowed(count, size, on, num_bytes):
    built = population(("mlp_deep", "mlp_shallow"), count, size=size, on=on)
    groups = engine.initialize(built)
    pieces = list(engine.pieces(built, groups, num_bytes))
    whole = engine.merge(built, groups)
    each = devices.num_bytes(whole) // count  # of a network of each architecture
    for parts in pieces:
        assert 0 < devices.num_bytes([part.arrays for part in parts]) <= num_bytes + on * each
    for merged, *parts in zip(whole, *pieces, strict=True):
        numbers = np.concatenate([part.numbers for part in parts])
        assert sorted(numbers.tolist()) == list(range(count))
        together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[part.arrays for part in parts])
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(itemgetter(numbers), merged), together)


def test_a_learning_rate_in_the_optimizers_state_trains_as_one_without():
    of = lambda **options: run(num_steps=4, **options)["angle"]
    fixed, adjustable = of(), of(optimizer=training.adjustable("adam"), learning_rate=1e-2)
    np.testing.assert_allclose(adjustable, fixed, atol=1e-3)
    other = of(optimizer=training.adjustable("adam"), learning_rate=1e-3)
    assert np.abs(other[:, 1:] - fixed[:, 1:]).max() > 0.1


def test_a_checkpoint_with_other_arrays_is_named(tmp_path):
    """As of a version whose optimizers had no learning rate in their state."""
    plan = follow.Plan(tmp_path, 2, 1, 0, 1, "00", lambda: tmp_path.mkdir(exist_ok=True))
    follow.run(population(), plan)
    built = population(optimizer=training.adjustable("adam"), learning_rate=1e-2)
    with pytest.raises(InputError, match="has other arrays, so it was written by another version"):
        follow.run(built, plan._replace(num_steps=3))


def test_a_precision_of_matrix_products_has_programs_of_its_own(lowerings):
    built = population()

    def step(precision):
        with jax.default_matmul_precision(precision):
            (*_, (_, _, measurement)) = engine.trajectory(built, engine.initialize(built), 1)
        return measurement.pairs["angle"], lowerings()

    _, first = step("default")
    angle, again = step("default")
    exact, other = step("highest")
    assert again == first < other
    np.testing.assert_array_equal(angle, exact)  # a CPU has one precision
