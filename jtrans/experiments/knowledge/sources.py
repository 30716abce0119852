"""The sources of a run: what each is trained on, and rules that list many of them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jtrans import models
from jtrans.data import Split
from jtrans.harness.fields import DATA, Field, is_number, is_tuple, is_whole

LEAST = 3  # sources that a correlation takes
# Classes of tiny_imagenet22, a part of Tiny ImageNet.
VEHICLES = (
    "sports_car",
    "convertible",
    "limousine",
    "beach_wagon",
    "school_bus",
    "trolleybus",
    "moving_van",
    "police_van",
    "freight_car",
    "bullet_train",
    "lifeboat",
    "gondola",
)
ANIMALS = (
    "goldfish",
    "fire_salamander",
    "bullfrog",
    "tabby_cat",
    "persian_cat",
    "golden_retriever",
    "german_shepherd",
    "gazelle",
    "king_penguin",
    "albatross",
)


class Source(NamedTuple):
    """A source, of which a run trains several seeds alike.

    Attributes:
      model: its architecture.
      classes: those of the source domain that it learns; () for all.
      label_noise: the share of its training images that get the label of another class.
      num_epochs: of its training; 0 for the config's.
      stratum: permutation tests within strata exchange sources of the same number alone.
    """

    model: str
    classes: tuple[str, ...] = ()
    label_noise: float = 0.0
    num_epochs: int = 0
    stratum: int = 0


def accepts(entry: object) -> bool:
    """Whether a tuple holds the fields of a `Source`, or the first of them."""
    if not (isinstance(entry, tuple) and 1 <= len(entry) <= len(Source._fields)):
        return False
    model, classes, label_noise, num_epochs, stratum = Source(*entry)
    return (
        model in models.WIDTHS
        and DATA["data.classes"].accepts(classes)
        and is_number(label_noise)
        and 0 <= label_noise <= 1
        and is_whole(num_epochs)
        and num_epochs >= 0
        and is_whole(stratum)
    )


def field(default: Sequence[tuple]) -> Field:
    """A tuple of sources."""
    takes = "a tuple of (architecture, classes, share of wrong labels, epochs, stratum)"
    example = "the last ones may be left out, as (('lenet',), ('resnet18', ('cat', 'dog')), ('resnet18', (), 0.5, 2))"
    return Field(tuple(default), lambda v: is_tuple(v, accepts), f"{takes}, {example}", "what each source learns")


def drawn(
    seed: int, model: str, groups: tuple[Sequence[str], Sequence[str]], counts: Mapping[int, int], num_classes: int = 4
) -> tuple[Source, ...]:
    """Sources of one architecture, each on classes drawn at random from two groups, no two on the same ones.

    Args:
      groups: names of classes.
      counts: how many sources have so many classes of the first group. That number is their stratum.
      num_classes: of each source, of both groups together.

    Raises:
      ValueError: there are fewer such choices of classes than sources.
    """
    rng, sources = np.random.default_rng(seed), []
    for number, count in counts.items():
        halves = itertools.combinations(groups[0], number), itertools.combinations(groups[1], num_classes - number)
        choices = [first + second for first, second in itertools.product(*map(list, halves))]
        if count > len(choices):
            raise ValueError(f"counts: got {count} sources with {number} of the first group; {len(choices)} differ")
        chosen = rng.choice(len(choices), count, replace=False)
        sources += [Source(model, choices[i], stratum=number) for i in sorted(chosen)]
    return tuple(sources)


def worsened(model: str, label_noises: Sequence[float], epochs: Sequence[int]) -> tuple[Source, ...]:
    """Sources of one architecture for each share of wrong labels and number of epochs, which is their stratum."""
    return tuple(Source(model, (), noise, count, count) for count in epochs for noise in label_noises)


def labels(sources: Sequence[Source]) -> list[str]:
    """A name for each source, of whatever differs between them."""
    parts = (
        [source.model for source in sources],
        ["+".join(source.classes) or "all" for source in sources],
        [f"noise {source.label_noise:g}" for source in sources],
        [f"{source.num_epochs} epochs" for source in sources],
    )
    differing = [part for part in parts if len(set(part)) > 1] or parts[:1]
    return ["-".join(of_source) for of_source in zip(*differing, strict=True)]


def with_label_noise(train: Split, num_classes: int, share: float, key: jax.Array) -> Split:
    """Training images of which this share, drawn at random, has the label of another class, drawn uniformly."""
    choice_key, label_key = jax.random.split(key)
    count = round(share * len(train.labels))
    chosen = np.asarray(jax.random.permutation(choice_key, len(train.labels)))[:count]
    offset = np.asarray(jax.random.randint(label_key, (count,), 1, num_classes))
    noisy = np.array(train.labels)
    noisy[chosen] = (noisy[chosen] + offset) % num_classes
    return train._replace(labels=noisy)
