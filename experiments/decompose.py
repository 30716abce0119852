"""Adversarial directions without a small subspace, from the command line."""

import sys

from jtrans.experiments import decompose
from jtrans.harness import cli

sys.exit(cli.run(decompose.EXPERIMENT))
