"""The early-transferability paper from scratch, from the command line."""

import sys

from jtrans.experiments import reproduce
from jtrans.harness import cli

sys.exit(cli.run(reproduce.EXPERIMENT))
