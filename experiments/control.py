"""What controls early transferability, from the command line."""

import sys

from jtrans.experiments import control
from jtrans.harness import cli

sys.exit(cli.run(control.EXPERIMENT))
