"""Early transferability, from the command line."""

import sys

from jtrans.experiments import early
from jtrans.harness import cli

sys.exit(cli.run(early.EXPERIMENT))
