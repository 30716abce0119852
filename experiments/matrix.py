"""The success of attacks between any trained networks, from the command line."""

import sys

from jtrans.experiments import matrix
from jtrans.harness import cli

sys.exit(cli.run(matrix.EXPERIMENT))
