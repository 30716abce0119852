"""Update vectors after one SGD step, from the command line."""

import sys

from jtrans.experiments import updates
from jtrans.harness import cli

sys.exit(cli.run(updates.EXPERIMENT))
