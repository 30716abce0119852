"""What causes causes transferability, from the command line."""

import sys

from jtrans.experiments import causes
from jtrans.harness import cli

sys.exit(cli.run(causes.EXPERIMENT))
