"""The first step of training, predicted and measured, from the command line."""

import sys

from jtrans.experiments import first_step
from jtrans.harness import cli

sys.exit(cli.run(first_step.EXPERIMENT))
