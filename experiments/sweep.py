"""Many settings of an early-transferability run, from the command line."""

import sys

from jtrans.experiments import sweep
from jtrans.harness import cli

sys.exit(cli.run(sweep.EXPERIMENT))
