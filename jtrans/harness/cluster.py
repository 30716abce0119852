"""Commands as jobs of a cluster, by submitit: each is put back into the queue when its time is over or others go first.

Here is nothing that takes time to import: each job loads this module beside its command.
"""

import ast
import contextlib
import importlib
import io
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jtrans.errors import InputError, one_line

LOCAL = "local"  # in place of sbatch's options: processes of this machine
LOG_LEVEL = "SUBMITIT_LOG_LEVEL"
LOCAL_MINUTES = 60 * 24 * 365
MOST_TIMEOUTS = 10**6  # of a job; after three submitit would give it up
GRACE = 60  # seconds for a command to save where it stands; Slurm ends a job 90 seconds after it signals the end
# The signals by which Slurm tells of the end are for the job's own process, but some clusters send them to all.
DEAF = ("sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh")
TAKES = "NAME=VALUE and spaces, as partition=gpu time=60 gpus_per_node=1 (time in whole minutes), or local"


class Command:
    """A command as a job: called by submitit, in the job's own process."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self.pid: int | None = None

    def __call__(self) -> None:
        """Run the command to its end; CalledProcessError if it fails."""
        with subprocess.Popen([*DEAF, *self.arguments]) as process:
            self.pid = process.pid
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, self.arguments)

    def checkpoint(self) -> Any:
        """Have the command save where it stands; gives submitit the same command, which resumes from there."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended
                os.kill(self.pid, signal.SIGTERM)
                deadline = time.monotonic() + GRACE
                # Without taking the status, for which `__call__` waits.
                while time.monotonic() < deadline and not os.waitid(
                    os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
                ):
                    time.sleep(0.1)
        return submitit().helpers.DelayedSubmission(Command(self.arguments))


def submitit() -> Any:
    """The package, an extra; InputError where it is missing."""
    # When it is imported it would set up the logging of the whole process, and close the handlers of others.
    level = os.environ.get(LOG_LEVEL)
    os.environ[LOG_LEVEL] = "NOCONFIG"
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise InputError("--slurm: it takes pip install jtrans[slurm]") from error
    finally:
        del os.environ[LOG_LEVEL]
        os.environ.update({} if level is None else {LOG_LEVEL: level})


def executor(options: str, folder: Path) -> Any:
    """The `submitit.Executor` for sbatch's options, or `LOCAL`, with logs in the folder; InputError if they are wrong.

    Nothing is submitted yet.
    """
    package = submitit()
    if options == LOCAL:
        local = package.LocalExecutor(folder)
        local.update_parameters(timeout_min=LOCAL_MINUTES)
        return local
    parameters = _parse(options)
    try:
        slurm = package.SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
        slurm.update_parameters(**parameters)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--slurm: got {options!r}; {one_line(error)}") from error
    return slurm


def _parse(options: str) -> dict[str, Any]:
    """`NAME=VALUE NAME=VALUE` as values by name; a value with spaces takes quotes, as in a shell."""
    parameters: dict[str, Any] = {}
    try:
        parts = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--slurm: got {options!r}; a quote is not closed") from error
    for part in parts:
        name, equals, text = part.partition("=")
        if not (name.isidentifier() and equals and text) or name in parameters:
            raise InputError(f"--slurm: got {part!r}; it takes {TAKES}, each name once")
        try:
            parameters[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # plain text, which needs no quotes
            parameters[name] = text
    if type(time_limit := parameters.get("time", 1)) is not int:  # submitit counts in minutes
        raise InputError(f"--slurm: got time={time_limit}; it takes whole minutes, as time=60")
    return parameters


def submit(executor: Any, commands: Sequence[Sequence[str]]) -> list[str]:
    """Submit the commands as one array of jobs; gives their ids. InputError if the cluster does not take them."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where submitit repeats the words of the error
            jobs = executor.submit_array([Command(arguments) for arguments in commands])
    except (RuntimeError, OSError) as error:  # what sbatch said, or that there is none
        raise InputError(f"--slurm: nothing was submitted ({one_line(error)[:300]})") from error
    return [job.job_id for job in jobs]
