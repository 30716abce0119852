"""The knowledge paper, from the command line."""

import sys

from jtrans.experiments import knowledge_paper
from jtrans.harness import cli

sys.exit(cli.run(knowledge_paper.EXPERIMENT))
