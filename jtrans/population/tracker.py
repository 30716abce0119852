"""Trackers: libraries that show a run's means while it goes on. Each is an extra, imported where it is asked for."""

import contextlib
import importlib
import math
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from jtrans import files
from jtrans.errors import InputError, one_line

Means = Mapping[str, float]  # by name, which ends in the unit where there is one
Log = Callable[[int, Means], None]  # takes a step and the means after it
Past = Iterable[tuple[int, Means]]  # the steps that a resumed run has behind it, and the means after each
Tracker = Callable[[Past], AbstractContextManager[Log]]  # open while a run goes on


class Library(NamedTuple):
    """What a tracker imports, and how it opens: `(workdir, config, resumed)`; it closes with the context."""

    module: str
    open: Callable[[Path, Mapping[str, Any], bool], AbstractContextManager[Log]]


def silent(step: int, means: Means) -> None:
    """Log nowhere."""


def nothing(past: Past) -> AbstractContextManager[Log]:
    """No tracker, in the place of `opened`."""
    return contextlib.nullcontext(silent)


@contextlib.contextmanager
def opened(name: str, workdir: Path, config: Mapping[str, Any], past: Past) -> Iterator[Log]:
    """The tracker of that name; means that are not finite are left out. One that fails later is warned of and left out.

    Args:
      name: one of `LIBRARIES`.
      config: of the run, as the tracker shows it.
      past: logged again: so the last process of a run has logged all of it, also where the tracker cannot go on with
        what an earlier process logged.

    Raises:
      InputError: the tracker does not start.
    """
    past = list(past)
    with LIBRARIES[name].open(workdir.resolve(), config, bool(past)) as write:

        def log(step: int, means: Means) -> None:
            nonlocal write
            try:
                write(step, {of: mean for of, mean in means.items() if math.isfinite(mean)})
            except Exception as error:  # a library may raise anything, and a run is worth more than its display
                what = f"{name} has nothing from step {step} on ({one_line(error)[:200]})"
                print(f"warning: tracker: {what}; the run goes on", file=sys.stderr, flush=True)
                write = silent

        for step, means in past:
            log(step, means)
        yield log


def check(name: str) -> None:
    """Check that the library of a tracker, where one is asked for, can be imported; else InputError."""
    if name:
        try:
            importlib.import_module(LIBRARIES[name].module)
        except ImportError as error:
            raise InputError(f"tracker: got {name!r}; it takes pip install 'jtrans[{name}]'") from error


@contextlib.contextmanager
def _tensorboard(workdir: Path, config: Mapping[str, Any], resumed: bool) -> Iterator[Log]:
    """Events in `tensorboard/`, which hide those of earlier processes."""
    # Not `SummaryWriter`, whose thread dies of a full disk, and then blocks whoever writes for ever.
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    path = workdir / "tensorboard"
    try:
        path.mkdir(exist_ok=True)
        writer = EventsWriter(str(path / "events"))
    except OSError as error:
        raise files.cannot_write(path, error) from error

    def add(step: int, **content: Any) -> None:
        writer.write_event(Event(step=step, wall_time=time.time(), **content))

    def write(step: int, means: Means) -> None:
        for name, mean in means.items():
            add(step, summary=summary.scalar(name, mean))
        writer.flush()

    add(0, file_version="brain.Event:2")
    add(0, session_log=SessionLog(status=SessionLog.START))
    try:
        yield write
    finally:
        with contextlib.suppress(OSError):  # of what could not be written, which is said already
            writer.close()


@contextlib.contextmanager
def _wandb(workdir: Path, config: Mapping[str, Any], resumed: bool) -> Iterator[Log]:
    """A run of Weights & Biases, in `wandb/`. Its account, project and mode are those of the user's environment."""
    import wandb

    known = {"id": _wandb_id(workdir / "wandb.id", resumed), "resume": "allow" if resumed else None}
    try:
        # Runs side by side are each their own, so none becomes the one run of this process.
        run = wandb.init(dir=workdir, name=workdir.name, config=dict(config), reinit="create_new", **known)
    except wandb.Error as error:
        what = f"which does not start ({one_line(error)[:200]})"
        raise InputError(f"tracker: got 'wandb', {what}; wandb login, or WANDB_MODE=offline, would do") from error
    first = run.step  # in a run that goes on wandb takes no steps again, and warns of each

    def write(step: int, means: Means) -> None:
        if step >= first:
            run.log(means, step=step)

    try:  # `with run` would print a traceback
        yield write
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _wandb_id(path: Path, resumed: bool) -> str:
    """A run's name at Weights & Biases, kept in its work directory: a new one for each run that begins anew."""
    if not (resumed and path.exists()):
        files.write(path, secrets.token_hex(8).encode())
    return path.read_text()


LIBRARIES: Mapping[str, Library] = {
    "tensorboard": Library("tensorboardX", _tensorboard),
    "wandb": Library("wandb", _wandb),
}
