"""`python -m jtrans`: the `jtrans` command."""

import sys

from jtrans.harness import cli

if __name__ == "__main__":
    sys.exit(cli.main())
