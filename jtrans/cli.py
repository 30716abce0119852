"""The command line of every experiment: `--config=FILE.py[:ARGUMENT] [--workdir=DIR] [--config.FIELD=VALUE ...]`."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jtrans import runtime, settings
from jtrans.errors import InputError, one_line

USAGE = """usage: {program} --config=FILE.py[:ARGUMENT] [--workdir=DIR] [--config.FIELD=VALUE ...]

{description}

  --config         the experiment's settings; the files in configs/ say what each shows and costs
  --config.FIELD   overrides one field, as --config.num_networks=64 or --config.data.classes="('cat', 'dog')"
  --workdir        where the results go (default: runs/ and the config's name)
"""


def run(main: Callable[[ConfigDict, Path], None], argv: Sequence[str] | None = None) -> int:
    """Parse the command line and call `main(config, workdir)`.

    Args:
      argv: in place of the process's own command line.

    Returns:
      The exit status: 0; 2 after one line on stderr where the input cannot be used; 130 when interrupted.
    """
    if argv is None:  # a process of its own, not a test or a notebook
        runtime.prepare()
        argv = sys.argv
    argv = list(argv)
    program = os.path.basename(argv[0])
    if {"-h", "--help"} & set(argv[1:]):
        print(USAGE.format(program=program, description=(main.__doc__ or "").strip()), end="")
        return 0
    try:
        main(*parse(argv))
    except InputError as error:
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; no results were written", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str]) -> tuple[ConfigDict, Path]:
    """The config and the work directory that the command line names.

    Raises:
      InputError: the config cannot be read, or a field or flag is unknown or has a wrong value.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    try:
        program, *rest = values(list(argv), known_only=True)
    except flags.Error as error:
        raise InputError(error) from error
    for argument in rest:
        if not argument.startswith("--config."):
            raise InputError(f"argument {argument!r}: not known; it takes --config, --workdir and --config.FIELD=VALUE")
    path, _, argument = (values.config or "").partition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise InputError(f"--config: got {path!r}, which is no Python file; name one, as --config=configs/digits.py")
    known = settings.flat(_load([program, f"--config={values.config}"]))
    for override in rest:
        field = override.removeprefix("--config.").partition("=")[0]
        if not any(name == field or name.startswith(f"{field}.") for name in known):
            raise settings.unknown_field(field, known)
    config = _load([program, f"--config={values.config}", *rest])
    name = Path(path).stem + (f"-{argument}" if argument else "")
    return config, Path(values.workdir or Path("runs") / name)


def _load(argv: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except InputError:
        raise
    except flags.Error as error:
        raise InputError(error) from error
    except Exception as error:  # a config file is code and can fail in any way
        raise InputError(f"{argv[1]}: does not load ({type(error).__name__}: {error})") from error
    if not isinstance(values.config, ConfigDict):
        raise InputError(f"{argv[1]}: its get_config() gave no ml_collections.ConfigDict")
    return values.config
