"""Attacks on words: brute force, a greedy loop in float64 NumPy, padding, the random baseline, trained networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from test_text_models import BY_HAND, CLASSES, LENGTHS, SIZE, build, every_network, scattered

from jtrans import attacks, directions, host, jacobian, metrics, stats
from jtrans.attacks import words
from jtrans.data import texts
from jtrans.models.text import TextMean

VOCABULARY = texts.Vocabulary((*texts.SPECIAL, *"abcdefghijklmnopqrst"), np.array([0, 9, *range(40, 20, -1)]))
TABLE = texts.embeddings(VOCABULARY, SIZE, jax.random.key(0)).table
LABELS = jnp.arange(5) % CLASSES


def token_ids(seed=0, lengths=LENGTHS, longest=7):
    """Random texts of these lengths, unknown words among them."""
    drawn = np.random.default_rng(seed).integers(texts.UNKNOWN, len(TABLE), size=(len(lengths), longest))
    return np.where(np.arange(longest) < np.array(lengths)[:, None], drawn, texts.PADDING).astype(np.int32)


def embedded(ids):
    return jnp.asarray(TABLE[ids])


def linear(seed, longest=5):
    """A linear network of two classes, whose loss grows with one linear function of `x`, and its weights."""
    weights = np.random.default_rng(seed).normal(size=(longest * SIZE, 2))
    return lambda x: x.reshape(len(x), -1) @ jnp.asarray(weights, x.dtype), weights


def margin_of(weights, ids, label):
    """The other class's logit less the label's, in float64."""
    return np.float64(TABLE[ids]).ravel() @ weights @ (np.eye(2)[1 - label] - np.eye(2)[label])


@pytest.mark.parametrize("targeted", [False, True])
def test_one_substitution_of_a_linear_network_is_the_best_of_all(targeted):
    lengths = (5, 1, 3, 4, 2) * 4
    for seed in range(4):
        (f, weights), before = linear(seed), token_ids(seed, lengths, 5)
        labels = np.random.default_rng(seed).integers(2, size=len(before))
        after = words.ids(TABLE, words.hotflip(TABLE, 1, targeted=targeted)(f, embedded(before), jnp.asarray(labels)))
        for i, (of_text, label) in enumerate(zip(before, labels, strict=True)):
            candidates = [of_text]
            for position in range(lengths[i]):
                for word in range(len(texts.SPECIAL), len(TABLE)):
                    candidates.append(np.where(np.arange(5) == position, word, of_text))
            losses = [np.logaddexp(0, margin_of(weights, ids, label)) for ids in candidates]
            best = np.argmin(losses) if targeted else np.argmax(losses)
            assert after[i].tolist() == candidates[best].tolist()


def test_a_text_that_no_substitution_improves_is_left():
    f, _ = linear(0)
    x, labels = embedded(token_ids(0, (5, 1, 3, 4, 2), 5)), jnp.array([0, 1, 0, 1, 1])
    best = words.hotflip(TABLE, 5)(f, x, labels)
    assert (best != x).any((1, 2)).all()
    np.testing.assert_array_equal(words.hotflip(TABLE, 5)(f, best, labels), best)
    assert (words.hotflip(TABLE, 5, targeted=True)(f, best, labels) != best).any((1, 2)).all()


def greedy(network, before, label, num_words, sign):
    """HotFlip of one text without padding, in float64, with gradients by central differences."""

    def loss(x):
        logits = network(x)
        return scipy.special.logsumexp(logits) - logits[label]

    after, table = before.copy(), np.float64(TABLE)
    for _ in range(num_words):
        x, gradient = table[after], np.empty((len(after), SIZE))
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 1e-5
            gradient[at] = sign * (loss(x + step) - loss(x - step)) / 2e-5
        gains = np.einsum("le,lwe->lw", gradient, table[None] - x[:, None])
        gains[:, [texts.PADDING, texts.UNKNOWN]] = -np.inf
        gains[after != before] = -np.inf
        position, word = np.unravel_index(gains.argmax(), gains.shape)
        if gains[position, word] > 0:
            after[position] = word
    return after


@every_network
def test_substitutions_are_those_of_a_greedy_loop_in_float64(name):
    variables, before = scattered(name), token_ids()
    f, network = (
        jax.jit(partial(build(name).apply, variables)),
        partial(BY_HAND[name], jax.tree.map(np.float64, variables["params"])),
    )
    for targeted in (False, True):
        after = words.ids(TABLE, words.hotflip(TABLE, 3, targeted=targeted)(f, embedded(before), LABELS))
        for i, length in enumerate(LENGTHS):
            want = greedy(network, before[i, :length], int(LABELS[i]), 3, -1 if targeted else 1)
            assert after[i, :length].tolist() == want.tolist()
            assert min(2, length - 1) <= (want != before[i, :length]).sum() <= min(3, length)


def test_the_gradient_of_a_confident_network_still_has_its_direction():
    """Its softmax rounds to 1, and the float32 gradient of its cross entropy to 0."""
    f, _ = linear(0)
    x = embedded(token_ids(0, (5, 1, 3, 4, 2), 5))
    labels = f(x).argmax(1)
    sure = lambda x: 1e3 * f(x)
    assert (jax.nn.log_softmax(sure(x)).max(1) == 0).all()
    attack = words.hotflip(TABLE, 2)
    np.testing.assert_array_equal(attack(sure, x, labels), attack(f, x, labels))


ATTACKS = {
    "hotflip": words.hotflip(TABLE, 3),
    "targeted": words.hotflip(TABLE, 3, targeted=True),
    "random": words.random_words(TABLE, 3),
}
every_attack = pytest.mark.parametrize("name", ATTACKS)
NETWORK = jax.jit(partial(build("text_mean").apply, scattered("text_mean")))


@every_attack
def test_padding_stays_and_is_never_put_in_nor_is_the_unknown_word(name):
    before = token_ids(1, tuple(range(8)) * 4)
    x, labels = embedded(before), jnp.arange(len(before)) % CLASSES
    adversarial = ATTACKS[name](NETWORK, x, labels, jax.random.key(1))
    assert adversarial.dtype == x.dtype
    after = words.ids(TABLE, adversarial)
    changed = after != before
    assert not changed[before == texts.PADDING].any()
    assert after[changed].min() >= len(texts.SPECIAL)
    lengths = (before != texts.PADDING).sum(1)
    assert ((changed.sum(1) >= np.minimum(1, lengths // 2)) & (changed.sum(1) <= np.minimum(3, lengths))).all()


@every_attack
def test_neither_other_texts_nor_padding_nor_the_batch_size_matter(name, monkeypatch):
    before = token_ids(2)
    attack = lambda ids, labels, keys: ATTACKS[name](NETWORK, embedded(ids), labels, keys)
    keys = directions.example_keys(jax.random.key(2), 5)
    want = words.ids(TABLE, attack(before, LABELS, keys))
    np.testing.assert_array_equal(words.ids(TABLE, attack(before[3:], LABELS[3:], keys[3:])), want[3:])
    longer = words.ids(TABLE, attack(np.pad(before, ((0, 0), (0, 4))), LABELS, keys))
    np.testing.assert_array_equal(longer, np.pad(want, ((0, 0), (0, 4))))
    monkeypatch.setattr(jacobian, "BATCH_VALUES", {jax.default_backend(): 4 * len(TABLE)})  # 4 positions at once
    np.testing.assert_array_equal(words.ids(TABLE, attack(before, LABELS, keys)), want)
    compiled = jax.jit(partial(ATTACKS[name], NETWORK))(embedded(before), LABELS, keys)
    np.testing.assert_array_equal(words.ids(TABLE, compiled), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_or_zero_leaves_the_text(bad):
    x = embedded(token_ids())
    factor = jnp.array([1, bad, 0, bad, 1])[:, None]
    adversarial = words.hotflip(TABLE, 3)(lambda x: factor * NETWORK(x), x, LABELS)
    np.testing.assert_array_equal(adversarial[1:4], x[1:4])
    np.testing.assert_array_equal(adversarial[0], words.hotflip(TABLE, 3)(NETWORK, x, LABELS)[0])
    assert (adversarial[4] != x[4]).any()
    kink = x[:, 0, :1] + jnp.array([1, 0, 1, 1, 1])[:, None]  # the slope of the root is not finite at one value
    partly = words.hotflip(TABLE, 3)(lambda x: NETWORK(x) + jnp.sqrt(jnp.abs(x[:, 0, :1] - kink)), x, LABELS)
    assert (partly != x).any((1, 2)).tolist() == [True, False, True, True, True]


def test_a_network_on_the_host_is_attacked_as_its_twin():
    """Two layers by hand, and the same in JAX."""
    rng = np.random.default_rng(3)
    first, second = (np.float32(rng.normal(size=shape)) for shape in ((SIZE, 8), (8, CLASSES)))
    hidden = lambda x: np.tanh(x.sum(1) @ first)
    pull_back = lambda x, u: np.repeat(((u @ second.T * (1 - hidden(x) ** 2)) @ first.T)[:, None], x.shape[1], 1)
    on_host = host.function(lambda x: hidden(x) @ second, pull_back, None, CLASSES)
    twin = lambda x: jnp.tanh(x.sum(1) @ first) @ second
    x = embedded(token_ids(3))
    want = words.ids(TABLE, words.hotflip(TABLE, 3)(twin, x, LABELS))
    np.testing.assert_array_equal(words.ids(TABLE, words.hotflip(TABLE, 3)(on_host, x, LABELS)), want)


@pytest.mark.parametrize("num_words", [0, 1, 3, 100])
def test_random_words_changes_so_many_words_to_others(num_words):
    before = token_ids(4, tuple(range(8)) * 10)
    attack = words.random_words(TABLE, num_words)
    after = words.ids(TABLE, attack(NETWORK, embedded(before), jnp.zeros(80, int), jax.random.key(4)))
    lengths = (before != texts.PADDING).sum(1)
    np.testing.assert_array_equal((after != before).sum(1), np.minimum(num_words, lengths))


def test_random_words_are_uniform_over_places_and_over_all_other_words():
    table = TABLE[:6]  # four words
    before = np.tile(np.int32([2, 1, 5, 0]), (6000, 1))
    attack = words.random_words(table, 1)
    x = jnp.asarray(table[before])
    after = words.ids(table, attack(NETWORK, x, jnp.zeros(6000, int), jax.random.key(5)))
    position, word = (after != before).argmax(1), after.max(1, where=after != before, initial=0)
    assert scipy.stats.chisquare(np.bincount(position, minlength=3)).pvalue > 0.01
    for place, others in ((0, [3, 4, 5]), (1, [2, 3, 4, 5]), (2, [2, 3, 4])):
        counts = np.bincount(word[position == place], minlength=6)
        assert np.flatnonzero(counts).tolist() == others
        assert scipy.stats.chisquare(counts[others]).pvalue > 0.01


def trained(key, x, labels):
    """Parameters of a `TextMean`, by 150 steps of Adam."""
    module, optimizer = TextMean((8,), 2), optax.adam(0.03)
    network = lambda params, x: module.apply({"params": params}, x, (x != 0).any(-1))
    shapes = jax.eval_shape(module.init, key, x[:1], (x[:1] != 0).any(-1))["params"]
    start = jax.tree.map(lambda a: jax.random.normal(key, a.shape) / jnp.sqrt(a.shape[-1]), shapes)
    loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(network(params, x), labels).mean()

    def step(carry, _):
        params, state = carry
        update, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, update), state), None

    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, 150)
    return network, params


def test_hotflip_beats_random_words_on_trained_networks():
    """A text's class is that of most of its words: those with an even id speak for class 0."""
    rng = np.random.default_rng(6)
    labels = np.arange(400) % 2
    before = token_ids(6, rng.integers(3, 9, size=400), 8)
    speaks = rng.random(before.shape) < 0.7
    before = np.where(speaks & (before > 1), 2 + (before // 2 * 2 + labels[:, None]) % 20, before)
    x, y = embedded(before), jnp.asarray(labels)
    networks = jax.vmap(lambda key: trained(key, x[:200], y[:200])[1])(jax.random.split(jax.random.key(6), 8))
    network, _ = trained(jax.random.key(0), x[:2], y[:2])
    functions = [partial(jax.jit(network), jax.tree.map(lambda a, i=i: a[i], networks)) for i in range(8)]
    x, y = x[200:], y[200:]
    loss = lambda f, x: optax.softmax_cross_entropy_with_integer_labels(f(x), y)
    assert min(float(attacks.right(f(x), y).mean()) for f in functions) > 0.75
    for num_words in (1, 2):
        best, random = words.hotflip(TABLE, num_words), words.random_words(TABLE, num_words)
        towards = words.hotflip(TABLE, num_words, targeted=True)
        outcomes = []
        for i, f in enumerate(functions):
            key = jax.random.key(i)
            attacked, at_random = best(f, x, y), random(f, x, y, key)
            rise = (loss(f, attacked) - loss(f, at_random)).mean()
            wrong = attacks.right(f(at_random), y).mean() - attacks.right(f(attacked), y).mean()
            sure = (loss(f, x) - loss(f, towards(f, x, y))).mean()
            outcomes.append((rise, wrong, sure))
        interval = stats.mean_ci(np.array(outcomes))
        assert (interval.low > 0).all()
    rates = metrics.success_matrix(functions[:2], functions[2:4], x, y, best).rate[..., 1]
    of_random = metrics.success_matrix(functions[:2], functions[2:4], x, y, random, key=jax.random.key(7)).rate[..., 1]
    assert (rates > of_random).all()


def test_ids_are_the_rows_that_are_equal_to_the_last_bit():
    want = token_ids(8)
    x = embedded(want)
    got = words.ids(TABLE, x)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(words.ids(TABLE, jnp.where(x == 0, -0.0, x)), want)
    np.testing.assert_array_equal(words.ids(np.concatenate([TABLE, TABLE]), x), want)
    with pytest.raises(ValueError, match=r"x: row 2 of text 3 is no row of the table; it takes texts that it embeds"):
        words.ids(TABLE, x.at[3, 2, 0].set(jnp.nextafter(jnp.float32(0), jnp.float32(1))))
    for other in (np.nan, np.nextafter(x[2, 1, 0], np.float32(9))):
        with pytest.raises(ValueError, match=r"x: row 1 of text 2 is no row"):
            words.ids(TABLE, x.at[2, 1, 0].set(other))


def test_marked_texts_show_what_was_substituted_without_padding():
    before, after = (
        np.int32([[2, 3, 1, 0], [4, 0, 0, 0], [0, 0, 0, 0]]),
        np.int32([[2, 5, 6, 0], [4, 0, 0, 0], [0] * 4]),
    )
    assert words.marked(before, after, VOCABULARY.words) == ["a [b -> d] [<unk> -> e]", "c", ""]
    with pytest.raises(ValueError, match=r"before and after: got shapes \(3, 4\) and \(3, 3\); they must be the same"):
        words.marked(before, after[:, :3], VOCABULARY.words)


@pytest.mark.parametrize("make", [words.hotflip, words.random_words])
def test_what_is_no_table_of_words_is_refused(make):
    with pytest.raises(ValueError, match=r"num_words: got -1; it takes 0 or more"):
        make(TABLE, -1)
    with pytest.raises(
        ValueError, match=r"table: got shape \(3, 6\); it takes \[V, E\], two rows and then two or more"
    ):
        make(TABLE[:3], 1)
    with pytest.raises(ValueError, match=r"table: rows \[0, 4\] are zero; row 0 is padding, and must be the only one"):
        make(np.where(np.arange(len(TABLE))[:, None] == 4, 0, TABLE), 1)
    with pytest.raises(ValueError, match=r"table: rows \[\] are zero"):
        make(TABLE[1:], 1)
    for shape in ((2, 7, SIZE + 1), (2, SIZE)):
        with pytest.raises(ValueError, match=rf"x: got shape .*, {shape[-1]}\); it takes embedded texts \[N, L, 6\]"):
            make(TABLE, 1)(NETWORK, jnp.zeros(shape), jnp.zeros(2, int), jax.random.key(0))


def test_random_words_without_a_key_are_refused():
    with pytest.raises(ValueError, match=r"key: got None; random draws take a key"):
        words.random_words(TABLE, 1)(NETWORK, embedded(token_ids()), LABELS)
