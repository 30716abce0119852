"""Networks that keep their adversarial directions away from a surrogate's, from the command line."""

import sys

from jtrans.experiments import penalty
from jtrans.harness import cli

sys.exit(cli.run(penalty.EXPERIMENT))
