"""The synthetic experiment, from the command line."""

import sys

from jtrans.experiments import synthetic
from jtrans.harness import cli

sys.exit(cli.run(synthetic.EXPERIMENT))
