"""Early transferability: `jtrans.early` from the command line."""

import sys

from jtrans import cli, early

if __name__ == "__main__":
    sys.exit(cli.run(early.run, several=True))
