"""The success of every attack from each network on each, for networks of jtrans, of PyTorch and of one's own."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas
import PIL.Image
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jtrans import attacks, data, files, metrics
from jtrans.attacks import Attack
from jtrans.attacks.words import ids as ids_of
from jtrans.attacks.words import marked
from jtrans.data import Dataset, Split, Table
from jtrans.errors import InputError, one_line
from jtrans.experiments.matrix.figures import heat_maps
from jtrans.experiments.matrix.networks import labels, read_all
from jtrans.experiments.matrix.rates import OTHERS, RATES, of_kinds, table
from jtrans.harness import fields, figures, folder, setup
from jtrans.harness.experiment import Experiment, Results
from jtrans.harness.fields import Field, is_tuple, seed, whole, yes_no
from jtrans.jacobian import Function
from jtrans.metrics import SuccessMatrix
from jtrans.population import devices, engine

__all__ = ["EXPERIMENT", "FIELDS", "RATES", "draw", "heat_maps", "labels", "measure", "table", "tell"]

NAME = "matrix"
PIXEL_VALUES = 2**22  # of the images attacked at once
IMAGES = "images"  # the folder of adversarial images
MOST_TEXTS = 5  # that are told, of each attack on words
Keep = Callable[[int, jax.Array], None]  # as in `metrics.success_matrix`
OF_DATA = fields.DATA["data.name"]

FIELDS: Mapping[str, Field] = {
    "seed": seed(),
    "networks": Field(
        (),
        lambda v: is_tuple(v, lambda entry: isinstance(entry, str)),
        "a tuple of run folders with saved networks, ARCHITECTURE=FILE.npz (a PyTorch state dict), MODULE:FUNCTION (a "
        "Python function that returns a network), torchvision:NAME=FILE and timm:NAME=FILE",
        "the networks, each attacked and measured",
    ),
    **fields.WIDTHS,
    **fields.DATA,
    "data.name": OF_DATA._replace(takes=f"{data.TABLE}, {OF_DATA.takes}"),
    "num_examples": whole(200, "test examples attacked; of a table the first"),
    "attacks": fields.some_of(("fgsm", "pgd", "mi_fgsm", "virtual"), (*attacks.BY_NAME, *attacks.ON_WORDS), "by name"),
    "ensemble": yes_no(False, "also attack each network from all others together"),
    "attack.epsilon": fields.epsilon(8 / 255),
    "attack.steps": whole(10, "steps of an iterative attack"),
    "attack.words": whole(3, "words substituted at most in a text, by attacks on words"),
    "attack.targeted": yes_no(False, "towards the target labels of a table"),
    "attack.round_8bit": yes_no(False, "adversarial images have 8-bit pixels"),
    "keep_images": fields.none_or_one_of(("float", "png"), "keep the adversarial images, in these files"),
}


def check(config: ConfigDict) -> None:
    """Check what no single field can say."""
    if config.data.subtract_mean:
        raise InputError("data.subtract_mean: got True; saved networks hold no mean image to subtract, so False")
    is_table = config.data.name == data.TABLE
    for name, only in (("classes", ()), ("shuffle_labels", False), ("num_train", 0)):
        if is_table and config.data[name] != only:
            raise InputError(f"data.{name}: got {config.data[name]}; a table is attacked as it is, so {only}")
    if config.attack.targeted and not is_table:
        raise InputError(f"attack.targeted: got True; target labels come from a table, so data.name={data.TABLE}")
    if config.attack.targeted and "virtual" in config.attacks:
        raise InputError("attacks: got virtual, which ignores labels; leave it out where attack.targeted is True")
    labels(config.networks)


def measure(config: ConfigDict, workdir: Path) -> Results:
    """Read the networks, and make every attack on each of them."""
    keys = engine.keys(config.seed)
    dataset, attacked = images(config, keys.data)
    check_attacks(config, dataset)
    networks = read_all(config, dataset)
    data.check_labels(attacked, networks[0].num_classes)
    names, functions = [network.name for network in networks], [network.function for network in networks]
    if config.ensemble and len(names) < 2:
        raise InputError(f"ensemble: got True and only the network {names[0]}; it takes two or more")
    x = np.asarray(dataset.inputs.of(attacked.split.inputs))

    matrices, of_others = {}, {}
    texts: dict[str, dict[str, list[str]]] = {}
    for name in config.attacks:
        success = partial(
            metrics.success_matrix,
            x=x,
            y=attacked.split.labels,
            attack=attack_of(config, name, dataset, x[0].size),
            key=keys.attack,
            target_labels=attacked.target_labels if config.attack.targeted else None,
        )
        keep: Callable[[Sequence[str]], Keep | None]
        keep = partial(keeper, config.keep_images, workdir / IMAGES / name, attacked.file_names, x)
        if name in attacks.ON_WORDS:
            keep = partial(reader, dataset, attacked.split.inputs, texts.setdefault(name, {}))
        with errors_of_networks():
            matrices[name] = success(functions, functions, keep=keep(names), batch_size=batch_size(x, 1))
            if config.ensemble:
                of_others[name] = attack_from_others(success, keep, names, functions, batch_size(x, len(names) - 1))
        print(f"{name}: {len(functions)} networks attacked", flush=True)
    results = {"matrix": table(matrices, names, of_others)}
    if texts:
        results["texts"] = read_texts(texts, attacked.split.labels, dataset.class_names)
    if len({network.kind for network in networks}) < len(networks):
        results["kinds"] = of_kinds(matrices, [network.kind for network in networks])
    return Results(config, {"networks": names, **setup.identity(dataset)}, results, {})


def attack_from_others(
    success: Callable[..., SuccessMatrix],
    keep: Callable[[Sequence[str]], Keep | None],
    names: Sequence[str],
    functions: Sequence[Function],
    batch_size: int,
) -> SuccessMatrix:
    """The success on each of T networks of the attack from all others together, by the mean of their logits.

    Of the T attacks `rate` and `count` are `[T, 1, 3]`, each for its one target.
    """
    parts = []
    for i, (name, target) in enumerate(zip(names, functions, strict=True)):
        others = attacks.ensemble([*functions[:i], *functions[i + 1 :]])
        parts.append(success([others], [target], keep=keep([f"all but {name}"]), batch_size=batch_size))
    return SuccessMatrix(*map(np.concatenate, zip(*parts, strict=True)))


def images(config: ConfigDict, key: jax.Array) -> tuple[Dataset, Table]:
    """The data set, and what of it is attacked. A table has no images to train on, and its classes have no names."""
    if config.data.name != data.TABLE:
        dataset, test = setup.load(config, key)
        return dataset, Table(test, None, tuple(f"{i:05}.png" for i in range(len(test.labels))), ())
    attacked = data.table(config.data.dir, config.num_examples, image_size=config.data.image_size)
    if config.attack.targeted and attacked.target_labels is None:
        what = f"{data.TABLE_CSV} in {config.data.dir} has no column {data.TABLE_COLUMNS[-1]}"
        raise InputError(f"attack.targeted: got True; {what}; add it, or leave attack.targeted out")
    none = Split(attacked.split.inputs[:0], attacked.split.labels[:0])
    return Dataset(none, attacked.split, (), data.TABLE_CSV), attacked


def check_attacks(config: ConfigDict, dataset: Dataset) -> None:
    """Check that the attacks, and what is asked of them, are those of images or those of texts."""
    of_texts = dataset.lexicon is not None
    for name in config.attacks:
        if name in (attacks.ON_IMAGES if of_texts else attacks.ON_WORDS):
            has, takes = ("texts", "images") if of_texts else ("images", "texts")
            raise InputError(f"attacks: got {name}, which takes {takes}; {config.data.name} has {has}")
    if dataset.lexicon is not None and len(dataset.lexicon.words) < 4 and set(config.attacks) & set(attacks.ON_WORDS):
        raise InputError(f"data.vocabulary: got {config.data.vocabulary}; attacks on words take 2 words or more")
    for field, asked in (("attack.round_8bit", config.attack.round_8bit), ("keep_images", config.keep_images)):
        if dataset.lexicon is not None and asked:
            raise InputError(f"{field}: got {asked!r}; {config.data.name} has texts, which have no pixels")
    fields.check_epsilon(config.attack.epsilon, dataset.lexicon is None)


def reader(dataset: Dataset, ids: np.ndarray, texts: dict[str, list[str]], sources: Sequence[str]) -> Keep:
    """What adds to `texts`, by source, the adversarial texts in words, with those marked that an attack has changed."""
    assert dataset.lexicon is not None  # attacks on words are of texts
    words, table = dataset.lexicon

    def keep(i: int, adversarial: jax.Array) -> None:
        after = ids_of(table, adversarial)
        # Of two words with one vector the first stands for both: what has not changed keeps its own.
        texts[sources[i]] = marked(ids, np.where((table[ids] == table[after]).all(-1), ids, after), words)

    return keep


def read_texts(
    texts: Mapping[str, Mapping[str, list[str]]], labels: np.ndarray, class_names: Sequence[str]
) -> pandas.DataFrame:
    """The adversarial texts in words: a row for each attack, source and text, with the text's class."""
    rows = [
        {"attack": attack, "source": source, "number": number, "label": class_names[label], "text": text}
        for attack, of_sources in texts.items()
        for source, of_source in of_sources.items()
        for number, (label, text) in enumerate(zip(labels, of_source, strict=True))
    ]
    return pandas.DataFrame(rows)


def attack_of(config: ConfigDict, name: str, dataset: Dataset, dimension: int) -> Attack:
    """The attack of that name, on inputs of so many values.

    It is one program for all networks whose weights it gets as arguments. On other functions, which are compiled or
    computed by PyTorch, it is a loop in Python: in a compiled one their convolutions would be slow (`loops`).
    """
    options = dataset.inputs.options() | ({"targeted": True} if config.attack.targeted else {})
    if name in attacks.ON_WORDS:
        assert dataset.lexicon is not None  # as checked
        attack = attacks.ON_WORDS[name](dataset.lexicon.table, config.attack.words)
    else:
        attack = attacks.BY_NAME[name](config.attack.epsilon, config.attack.steps, dimension, **options)
    attack = attacks.round_8bit(attack) if config.attack.round_8bit else attack
    program = jax.jit(attack)
    return lambda f, *arguments: (attack if any(map(callable, jax.tree.leaves(f))) else program)(f, *arguments)


def batch_size(x: np.ndarray, num_networks: int) -> int:
    """How many of the images are attacked at once on so many networks."""
    return max(1, min(256, PIXEL_VALUES // (x[0].size * num_networks)))


@contextlib.contextmanager
def errors_of_networks() -> Iterator[None]:
    """Turns what a network of the user's raises into one line."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"networks: {one_line(error)[:300]}") from error


def keeper(form: str, path: Path, file_names: Sequence[str], x: np.ndarray, sources: Sequence[str]) -> Keep | None:
    """What writes the adversarial images made on each of the sources, each in a folder of its own; None for no form."""
    write = partial(write_images, form, file_names, x)
    folders = [path / folder.folder_name(source) for source in sources]
    keep = lambda i, adversarial: devices.first_does(partial(write, folders[i], adversarial))
    return keep if form else None


def write_images(form: str, file_names: Sequence[str], x: np.ndarray, path: Path, adversarial: jax.Array) -> None:
    """Write adversarial images `[N, H, W, C]` into a folder, by the names of the files that they were made from.

    As `float` each is a float32 array `[H, W, C]` in [0, 1] (`numpy.load`), as `png` an image, whose 8-bit values are
    rounded towards those of the clean image in `x`, so that it stays in the ball.
    """
    if form == "png":
        adversarial = attacks.round_8bit(lambda *_: adversarial)(None, x, None, None)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, image in zip(file_names, np.asarray(adversarial), strict=True):
            file = path / Path(name).with_suffix(".png" if form == "png" else ".npy")
            if form == "png":
                pixels = np.rint(255 * image).astype(np.uint8)
                PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file)
            else:
                np.save(file, image)
    except OSError as error:
        raise files.cannot_write(path, error) from error


def tell(results: Results) -> str:
    """A matrix for each attack, in percent of the images that the target gets right; and where the attack failed."""
    table, counted = results.tables["matrix"], counted_as(results)
    kind, width, lines = figures.kind(results.summary), max(map(len, table["source"])), []
    for attack, rows in table.groupby("attack", sort=False):
        lines.append(f"{attack}: {counted} in % of the {kind} that the target gets right; a row for each source")
        for source, row in rows.groupby("source", sort=False):
            lines.append(f"{source:{width}} " + " ".join(f"{100 * share:5.1f}" for share in row["target_right"]))
        unmoved = rows.groupby("source", sort=False)["unmoved"].max()
        lines += [
            f"{source}: the attack leaves {count:g} {kind} as they are" for source, count in unmoved.items() if count
        ]
    if "texts" in results.tables:
        read = results.tables["texts"]
        changed = read[read["text"].str.contains(" -> ", regex=False)].groupby("attack", sort=False).head(MOST_TEXTS)
        lines += [f"{row.attack} on {row.source}, {row.label}: {row.text}" for row in changed.itertuples()]
    return "\n".join(lines)


def counted_as(results: Results) -> str:
    """What a success of an attack is, in words."""
    return "target labels predicted" if results.config["attack"].get("targeted") else "errors"


def draw(results: Results) -> dict[str, Figure]:
    """The success of every attack from each network on each, and from each kind of networks on each."""
    attack, section = results.config["attack"], results.config["data"]
    note = ", 8-bit pixels" * attack["round_8bit"]
    kind = figures.kind(results.summary)
    labels = {"kind": kind, "words": attack.get("words", 0), "note": note, "success": counted_as(results)}
    of_table = lambda table, over: heat_maps(table, attack["epsilon"], section, over=over, **labels)
    drawn = {"figure": of_table(results.tables["matrix"], over=kind)}
    if "kinds" in results.tables:
        drawn["kinds"] = of_table(results.tables["kinds"], over="networks")
    return drawn


def headline(results: Results) -> dict[str, float]:
    """The success of each attack from one network on another, the mean over all two of them."""
    table, counted = results.tables["matrix"], counted_as(results)
    transferred = (table["source"] != table["target"]) & (table["source"] != OTHERS)
    rates = table["target_right"].where(transferred).groupby(table["attack"], sort=False).mean()
    return {f"{counted} by {attack} from another network (share)": float(rate) for attack, rate in rates.items()}


EXPERIMENT = Experiment(NAME, FIELDS, measure, tell, draw, check, headline=headline)
