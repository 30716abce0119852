"""The command line of every experiment: `--config=FILE.py[:ARGUMENT] [--workdir=DIR] [--config.FIELD=VALUE ...]`."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jtrans import devices, runtime, settings
from jtrans.errors import InputError, Interrupted, one_line

USAGE = """usage: {program} --config=FILE.py[:ARGUMENT] [--workdir=DIR] [--config.FIELD=VALUE ...]

{description}

  --config         the experiment's settings; the files in configs/ say what each shows and costs
  --config.FIELD   overrides one field, as --config.num_networks=64 or --config.data.classes="('cat', 'dog')"
  --workdir        where the results go (default: runs/ and the config's name)
{more}
"""

SEVERAL = """One run on several machines, the same command on each (under srun and Open MPI without these):

  --coordinator    HOST:PORT of the first process
  --num_processes  how many there are
  --process_id     which of them this is, from 0 on

"""

FIELDS_HINT = "With --config=FILE.py, --help lists its fields and their values."


def run(
    main: Callable[..., None],
    argv: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
    *,
    several: bool = False,
) -> int:
    """Parse the command line and call `main(config, workdir)`.

    Args:
      argv: in place of the process's own command line.
      options: further flags of this experiment, and what they say; `main` takes their texts by these names.
      several: whether `main` can be one of the processes of a job.

    Returns:
      The exit status: 0; 2 after one line on stderr where the input cannot be used; 130 when interrupted.
    """
    options = options or {}
    own_process = argv is None  # not a test or a notebook
    argv = list(sys.argv if own_process else argv)
    program = os.path.basename(argv[0])
    asked = [argument for argument in argv if argument in ("-h", "--help")]
    try:
        values, rest = parse([argument for argument in argv if argument not in asked], options)
        if asked:
            more = "".join(f"  --{name:<16}{text}\n" for name, text in options.items())
            print(USAGE.format(program=program, description=(main.__doc__ or "").strip(), more=more), end="")
            print(SEVERAL * several, end="")
            print(fields(load(program, values, rest)[0]) if values.config else FIELDS_HINT)
            return 0
        if own_process:
            runtime.prepare()
            connect(values, several)
        with contextlib.ExitStack() as stack:
            if not devices.is_first():
                stack.enter_context(contextlib.redirect_stdout(None))  # the first process speaks for all
            config, workdir = load(program, values, rest)
            main(config, workdir, **{name: values[name].value for name in options})
    except InputError as error:
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted) as stop:
        there = "what was finished is kept, and the same command goes on from it"
        print(f"{program}: {str(stop) or f'interrupted; {there}'}", file=sys.stderr)
        return 130
    return 0


def fields(config: ConfigDict) -> str:
    """Every field of a config with its value, as the command line takes them."""
    return "\n".join(
        ["Its fields:\n", *(f"  --config.{name}={value!r}" for name, value in settings.flat(config).items())]
    )


def parse(argv: Sequence[str], options: Mapping[str, str]) -> tuple[flags.FlagValues, list[str]]:
    """The values of the flags, and the overrides of config fields.

    Raises:
      InputError: a flag is unknown or has a wrong value.
    """
    values = flags.FlagValues()
    for name in ("config", "workdir", "coordinator", *options):
        flags.DEFINE_string(name, None, "", flag_values=values)
    for name in ("num_processes", "process_id"):
        flags.DEFINE_integer(name, None, "", lower_bound=0, flag_values=values)
    try:
        _, *rest = values(list(argv), known_only=True)
    except flags.Error as error:
        raise InputError(error) from error
    for argument in rest:
        if not argument.startswith("--config."):
            known = ", ".join(f"--{name}" for name in ("config", "workdir", *options))
            raise InputError(f"argument {argument!r}: not known; it takes {known} and --config.FIELD=VALUE")
    return values, rest


def connect(values: flags.FlagValues, several: bool) -> None:
    """Join the other processes of the job, where there are any.

    Raises:
      InputError: the flags do not name all of it, the others cannot be reached, or there may be no others.
    """
    given = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
    missing = [name for name, value in given.items() if value is None]
    if not several and (len(missing) < len(given) or devices.launched() > 1):
        raise InputError("--num_processes: this experiment runs in one process, on all its devices; start it once")
    if 0 < len(missing) < len(given):
        raise InputError(f"--{missing[0]}: missing; --coordinator, --num_processes and --process_id go together")
    try:
        devices.connect(*given.values())
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--coordinator: no job of several processes ({one_line(error)[:200]})") from error


def load(program: str, values: flags.FlagValues, rest: Sequence[str]) -> tuple[ConfigDict, Path]:
    """The config and the work directory that the command line names.

    Raises:
      InputError: the config cannot be read, or a field is unknown or has a wrong value.
    """
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
    sys.modules.pop("config_config", None)  # under which name ml_collections would find the config loaded before
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
