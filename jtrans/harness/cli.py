"""The command line: `jtrans EXPERIMENT --config=NAME [--workdir=DIR] [--config.FIELD=VALUE ...]`."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jtrans.errors import InputError, Interrupted, one_line
from jtrans.harness import experiment as experiments
from jtrans.harness import fields, runtime
from jtrans.harness.experiment import Experiment
from jtrans.population import devices

USAGE = """usage: {program} --config=NAME[:ARGUMENT] [--workdir=DIR] [--config.FIELD=VALUE ...]

{description}

  --config         the experiment's settings: the name of a config below, or a Python file (FILE.py)
  --config.FIELD   overrides one field, as --config.num_networks=64 or --config.data.classes="('cat', 'dog')"
  --workdir        where the results go (default: runs/ and the config's name)
{options}
One run on several machines, the same command on each (under srun and Open MPI without these):

  --coordinator    HOST:PORT of the first process
  --num_processes  how many processes there are
  --process_id     which of them this is, from 0 on

Configs: {configs}

Fields of {config}, and what they take:

{fields}
"""
COMMANDS = """usage: jtrans EXPERIMENT --config=NAME [--config.FIELD=VALUE ...]

Experiments (jtrans EXPERIMENT --help lists the fields of one):

{experiments}

Finished runs as one page of HTML: python -m jtrans.report FOLDER... --out=FILE
"""


def main() -> int:
    """The `jtrans` command; returns the exit status."""
    _, *arguments = sys.argv
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = [f"  {name:14} {about(experiments.load(name))}" for name in experiments.names()]
        print(COMMANDS.format(experiments="\n".join(listed)), end="")
        return 0
    name, *rest = arguments
    try:
        return run(experiments.load(name), [f"jtrans {name}", *rest], prepare=True)
    except InputError as error:
        print(f"jtrans: error: {one_line(error)}", file=sys.stderr)
        return 2


def run(experiment: Experiment, argv: Sequence[str] | None = None, *, prepare: bool | None = None) -> int:
    """Run the experiment as the command line says.

    Args:
      argv: in place of the process's own command line.
      prepare: whether to set up the process (compiled programs, memory, the other processes of a job); where None,
        only with the process's own command line.

    Returns:
      The exit status: 0; 2 after one line on stderr where the input cannot be used; 130 when interrupted.
    """
    prepare = argv is None if prepare is None else prepare
    command, *arguments = sys.argv if argv is None else argv
    program = os.path.basename(command)
    help_flags = [argument for argument in arguments if argument in ("-h", "--help")]
    try:
        values, overrides = parse([program, *(a for a in arguments if a not in help_flags)], experiment)
        options = {name: values[name].value for name in experiment.options}
        if help_flags:
            print(usage(program, experiment, values, overrides, options), end="")
            return 0
        if prepare:
            runtime.prepare()
            connect(values)
            warn(program)
        with contextlib.ExitStack() as stack:
            if not devices.is_first():
                stack.enter_context(contextlib.redirect_stdout(None))  # the first process speaks for all
            config, workdir = load(program, values, overrides)
            experiments.run(experiment, config, workdir, **options)
    except InputError as error:
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted) as stop:
        resume = "interrupted; finished parts are kept; the same command resumes"
        print(f"{program}: {str(stop) or resume}", file=sys.stderr)
        return 130
    return 0


def about(experiment: Experiment) -> str:
    """What the experiment shows, in one line: the first of its module's docstring."""
    return (sys.modules[experiment.measure.__module__].__doc__ or "").strip().partition("\n")[0]


def usage(
    program: str,
    experiment: Experiment,
    values: flags.FlagValues,
    overrides: Sequence[str],
    options: Mapping[str, str | None],
) -> str:
    """The help: every flag, every config, and every field with its value."""
    known = experiments.fields_of(experiment, options)
    config = load(program, values, overrides)[0] if values.config else fields.defaults(known)
    listed = [
        f"  --config.{name}={value!r}  {known[name].means} ({known[name].takes})" if name in known else name
        for name, value in fields.flat(config).items()
    ]
    return USAGE.format(
        program=program,
        description=about(experiment),
        options="".join(f"  --{name:<16}{text}\n" for name, text in experiment.options.items()),
        configs=", ".join(shipped()),
        config=values.config or "the experiment, with their defaults",
        fields="\n".join(listed),
    )


def parse(argv: Sequence[str], experiment: Experiment) -> tuple[flags.FlagValues, list[str]]:
    """The values of the flags, and the overrides of config fields; InputError for an unknown flag or a wrong value."""
    values = flags.FlagValues()
    for name in ("config", "workdir", "coordinator", *experiment.options):
        flags.DEFINE_string(name, None, "", flag_values=values)
    for name in ("num_processes", "process_id"):
        flags.DEFINE_integer(name, None, "", lower_bound=0, flag_values=values)
    try:
        _, *overrides = values(list(argv), known_only=True)
    except flags.Error as error:
        raise InputError(error) from error
    for argument in overrides:
        if not argument.startswith("--config."):
            known = ", ".join(f"--{name}" for name in ("config", "workdir", *experiment.options))
            raise InputError(f"argument {argument!r}: not known; it takes {known} and --config.FIELD=VALUE")
    return values, overrides


def connect(values: flags.FlagValues) -> None:
    """Join the other processes of the job, where the flags or the environment name any; InputError if that fails."""
    given = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(f"--{missing[0]}: missing; --coordinator, --num_processes and --process_id go together")
    try:
        devices.connect(*given.values())
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--coordinator: no job of several processes ({one_line(error)[:200]})") from error


def warn(program: str) -> None:
    """Say in one line on stderr what the run does without: a GPU that JAX does not see."""
    try:
        runtime.check_gpu()
    except InputError as error:
        print(f"{program}: warning: {one_line(error)}", file=sys.stderr)


def load(program: str, values: flags.FlagValues, overrides: Sequence[str]) -> tuple[ConfigDict, Path]:
    """The config and the work directory that the command line names.

    Raises InputError if the config cannot be read, or a field is unknown or has a wrong value.
    """
    name, _, argument = (values.config or "").partition(":")
    path = Path(name) if name.endswith(".py") else shipped().get(name)
    if path is None:
        raise InputError(f"--config: got {name!r}; {fields.nearest(name, [*shipped(), 'FILE.py'])}")
    if not path.is_file():
        raise InputError(f"--config: got {name!r}, and there is no such file; name one, as --config=configs/digits.py")
    flag = f"--config={path}" + (f":{argument}" if argument else "")
    known = fields.flat(_load([program, flag]))
    for override in overrides:
        field = override.removeprefix("--config.").partition("=")[0]
        if not any(name == field or name.startswith(f"{field}.") for name in known):
            raise fields.unknown_field(field, known)
    label = Path(name).stem + (f"-{argument}" if argument else "")
    return _load([program, flag, *overrides]), Path(values.workdir or Path("runs") / label)


def shipped() -> dict[str, Path]:
    """By name the configs that come with the package: in it, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    folder = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def _load(argv: Sequence[str]) -> ConfigDict:
    sys.modules.pop("config_config", None)  # under which name ml_collections would find the config loaded before
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except Exception as error:  # a config file is code and can fail in any way
        origin: BaseException = error
        if (wrapped := error.__context__) and str(wrapped).startswith("Error whilst parsing config file"):
            origin = wrapped.__context__ or error  # what the file raised, before ml_collections put it into words
        if isinstance(origin, InputError):
            raise origin from None
        if isinstance(origin, flags.Error):
            raise InputError(origin) from error
        raise InputError(f"{argv[1]}: does not load ({type(origin).__name__}: {origin})") from error
    if not isinstance(values.config, ConfigDict):
        raise InputError(f"{argv[1]}: its get_config() gave no ml_collections.ConfigDict")
    return values.config
