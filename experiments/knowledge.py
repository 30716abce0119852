"""Adversarial and knowledge transferability on images, from the command line."""

import sys

from jtrans.experiments import knowledge
from jtrans.harness import cli

sys.exit(cli.run(knowledge.EXPERIMENT))
