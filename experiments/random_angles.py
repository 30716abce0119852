"""The angle between random directions, from the command line."""

import sys

from jtrans.experiments import random_angles
from jtrans.harness import cli

sys.exit(cli.run(random_angles.EXPERIMENT))
