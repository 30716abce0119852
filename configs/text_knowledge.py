"""Do attacks transfer where knowledge transfers, on texts? Fifteen sources, each trained on two of six domains.

    python experiments/knowledge.py --config=configs/text_knowledge.py[:TARGET] \
        --config.source.dir=DIRECTORY --config.target.dir=DIRECTORY

DIRECTORY holds seven files of texts, a text a line, that Liang et al. (2021) and Hutto and Gilbert (2014) use: ag.txt
(AG's News, four topics), and, with labels 0 and 1 for negative and positive, mr.txt, yelp.txt, movies.txt, tweets.txt,
amazon.txt and nyt.txt. TARGET is one of them, amazon by default; every two of the others are a source, which tells
their classes apart. One table of random embeddings is shared by all networks. The strata are whether a source has
learned topics.

Most texts of mr.txt are in movies.txt too. With movies as the target, a third of the sources have trained on texts that
they are then attacked at: the run says so, and its correlations are of that. See docs/text.md.

Cost: four seeds of each source, and 4 references.
"""

import itertools

from ml_collections import ConfigDict

from jtrans.errors import InputError
from jtrans.experiments import knowledge
from jtrans.experiments.knowledge.sources import Source
from jtrans.harness.fields import defaults

SENTIMENTS = ("mr", "yelp", "tweets", "amazon", "nyt", "movies")
CLASSES = {**{name: (f"{name}:0", f"{name}:1") for name in SENTIMENTS}, "ag": ("ag:0", "ag:1", "ag:2", "ag:3")}


def get_config(target: str = "amazon") -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/knowledge/`).

    Raises:
      InputError: there is no such target.
    """
    if target not in CLASSES:
        raise InputError(f"--config: no target {target!r}; the targets are {', '.join(CLASSES)}")
    config = defaults(knowledge.FIELDS)
    config.sources = tuple(
        Source("text_cnn", CLASSES[first] + CLASSES[second], stratum=int(second == "ag"))
        for first, second in itertools.combinations([name for name in CLASSES if name != target], 2)
    )
    config.strata = "1 for topics among the classes of the source"
    config.reference = "text_cnn"
    config.num_networks, config.num_references = 4, 4
    for domain in (config.source, config.target):
        domain.name = "text"
    config.source.num_train = 1_080
    config.target.classes = CLASSES[target]
    config.num_epochs, config.reference_epochs, config.refit_epochs = 20, 10, 2
    config.learning_rate, config.augment, config.matrix = 0.03, False, False
    config.num_examples = 200
    config.attack.epsilon, config.attack.steps = 3.0, 20
    return config
