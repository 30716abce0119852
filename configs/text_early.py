"""Early transferability where there are no pixels: texts, as embeddings that all networks share.

    python experiments/early.py --config=configs/text_early.py --config.data.dir=TEXTS [--config.models="('text_cnn',)"]

TEXTS is a file with a text a line (LABEL TEXT), or a folder with such files, train.txt and test.txt. Networks:
text_mean, text_cnn, text_lstm and text_transformer; two of them make mixed pairs. Adam at 1e-2, as where images have
both phases; embeddings are random and have mean 0, or `--config.data.embedding_mean`.

Expect: with mean 0 no sudden fall, but learning: the folded and the signed angle fall together, while the area under
the ROC curve rises. With mean 1 the folded angle falls at the first step, and where classes are balanced half of all
pairs point opposite ways.
See docs/text.md.
"""

from ml_collections import ConfigDict

from jtrans.experiments import early
from jtrans.harness.fields import defaults


def get_config() -> ConfigDict:
    """The settings; all other fields have their defaults (`jtrans/experiments/early.py`)."""
    config = defaults(early.FIELDS)
    config.data.name = "text"
    config.models = ("text_mean",)
    config.optimizer.learning_rate = 1e-2
    config.num_examples = 300
    config.num_steps = 60
    config.attack.epsilon = 3.0
    return config
