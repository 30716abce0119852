"""What controls early transferability, from the command line."""

import sys

from jtrans.experiments import control
from jtrans.harness import cli

if __name__ == "__main__":
    sys.exit(cli.run(control.EXPERIMENT))
