"""A run of many steps: what it says on the way, what it saves, how it stops, and how it goes on."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.serialization import from_state_dict, to_state_dict
from ml_collections import ConfigDict
from tqdm import tqdm

from jtrans import devices, population, results, stats
from jtrans.checkpoints import KEPT, Checkpoints
from jtrans.devices import Group, Placement
from jtrans.errors import Interrupted
from jtrans.population import Measurement, Trajectory
from jtrans.training import Network

REPORTED = {0, 1, 2, 5, 10, 20, 50, *range(100, 10**6, 100)}  # steps that get a line where there is no progress bar
GIB = 2**30


class Progress(NamedTuple):
    """Where a run stands: the steps behind it, the networks of each architecture `[M, ...]` on the host, and what was
    measured on the way.
    """

    step: int
    networks: list[Network]
    steps: list[int]
    measurements: list[Measurement]


def restore(checkpoints: Checkpoints, networks: Sequence[Network], config: ConfigDict, digest: str) -> Progress | None:
    """Where an earlier run with the same work directory stopped; None where it left nothing.

    Args:
      networks: of each architecture the shapes of its networks, `[M, ...]`.
      digest: of the data set, `data.digest`.

    Raises:
      InputError: the run was begun on other images.
    """
    step = checkpoints.newest()
    if step is None:
        return None
    state = checkpoints.load(step)
    results.check_digest(checkpoints.folder, bytes(state.get("data", b"")).hex(), digest)
    print(f"resuming from step {step}", flush=True)
    loaded = [from_state_dict(network, state["networks"][str(i)]) for i, network in enumerate(networks)]
    trajectory = Trajectory(**state["history"])
    measured = zip(trajectory.step.tolist(), population.measurements(trajectory), strict=True)
    # A run that was to end earlier measured its last step too, where that is not one of these.
    kept = [(t, m) for t, m in measured if t % config.measure_every == 0 or t == config.num_steps]
    # Before the first step there is no going on: the run measures step 0 again.
    kept = kept if step > 0 else []
    if config.keep_examples:
        kept = [(t, m._replace(angle_examples=checkpoints.read_examples(t))) for t, m in kept]
    return Progress(step, loaded, [t for t, _ in kept], [m for _, m in kept])


def follow(
    run: Iterator[tuple[int, list[list[Group]], Measurement | None]],
    placements: Sequence[Placement],
    start: Progress,
    checkpoints: Checkpoints,
    config: ConfigDict,
    workdir: Path,
    num_examples: int,
    digest: str,
) -> tuple[Trajectory, list[Network]]:
    """Go through the steps of a run, with its checkpoints; to the end, or to the step where it is asked to stop.

    Args:
      run: what `population.trajectory` gives, after the step that `start` stands at.
      digest: of the data set, `data.digest`.

    Returns:
      The trajectory, from step 0 on, and the networks of each architecture, `[M, ...]`.

    Raises:
      Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
      InputError: a checkpoint cannot be written.
    """
    step, hosted, steps, measurements = start
    collect = lambda: population.collect(steps, measurements, len(placements), num_examples)
    interval = config.checkpoint.seconds, config.checkpoint.steps
    saved = time.monotonic()
    with _Stop() as stop, _Log(config, workdir, start) as log:
        for step, networks, measurement in run:
            if measurement:
                steps.append(step)
                measurements.append(measurement)
                if config.keep_examples and any(interval):
                    checkpoints.write_examples(step, measurement.angle_examples)
            log.show(step, measurement)
            late = interval[0] and time.monotonic() - saved >= interval[0]
            due = bool(late or (interval[1] and step % interval[1] == 0))
            save, halt = map(devices.any_process, (due, stop.asked))
            halt = halt and step < config.num_steps  # a run that has come to its end is not thrown away
            if halt and not any(interval):
                raise Interrupted(f"interrupted at step {step}; without checkpoints nothing of this training was kept")
            if save or halt or step == config.num_steps:
                hosted = [devices.merge(groups, at) for groups, at in zip(networks, placements, strict=True)]
                if any(interval):
                    devices.first_does(partial(results.write_config, workdir, config))
                    checkpoints.save(step, _state(hosted, collect(), digest), steps if config.keep_examples else ())
                saved = time.monotonic()
            if halt:
                checkpoints.wait()
                raise Interrupted(f"interrupted at step {step}, which is saved; the same command goes on from there")
    return collect(), hosted


def _state(networks: Sequence[Network], trajectory: Trajectory, digest: str) -> dict[str, Any]:
    # Each image's angles are in files of their own, `Checkpoints.write_examples`.
    fields = trajectory._replace(angle_examples=None)._asdict()
    history = {name: values for name, values in fields.items() if values is not None}
    states = {str(i): to_state_dict(network) for i, network in enumerate(networks)}
    return {"networks": states, "history": history, "data": np.frombuffer(bytes.fromhex(digest), np.uint8)}


class _Stop:
    """Meanwhile Ctrl-C and SIGTERM only set `asked`; a second one ends the process as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "_Stop":
        self.before = {}
        with contextlib.suppress(ValueError):  # not the main thread, which alone gets signals
            self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True
        print("stopping after this step", file=sys.stderr, flush=True)
        self.__exit__()


class _Log:
    """What a run says: a bar on a terminal, else lines; how long it takes and how much; networks that are lost."""

    def __init__(self, config: ConfigDict, workdir: Path, start: Progress) -> None:
        self.config, self.first_step, self.state_bytes = config, start.step, devices.num_bytes(start.networks)
        self.history_bytes = self.example_bytes = 0
        self.lost: set[int] = set()
        self.moment: tuple[int, float] | None = None  # the first step that was timed, and when it ended
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules  # a terminal, or a notebook
        hidden = not (watched and devices.is_first())
        self.bar = tqdm(total=config.num_steps, initial=start.step, unit="step", disable=hidden)
        self.writer = None
        if config.tensorboard and devices.is_first():
            from tensorboardX import SummaryWriter  # an extra

            self.writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start.step)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()

    def show(self, step: int, measurement: Measurement | None) -> None:
        """The mean angle and accuracy after a step, where it was measured."""
        self.bar.update(step - self.bar.n)
        self._count(measurement)
        pace = self._pace(step)
        if measurement is None:
            return
        angle, accuracy = (stats.mean_ci(values).mean for values in (measurement.angle, measurement.accuracy))
        self.bar.set_postfix_str(f"angle {angle:.1f} deg, accuracy {accuracy:.2f}", refresh=False)
        if self.bar.disable and (step in REPORTED or step == self.config.num_steps):
            print(f"step {step}: angle {angle:.2f} degrees, accuracy {accuracy:.3f}{pace}", flush=True)
        for network in np.flatnonzero(~np.isfinite(measurement.loss)):
            if network not in self.lost:
                self._say(f"network {network}: its loss is not finite at step {step}; the others go on")
                self.lost.add(network)
        if self.writer:
            loss = stats.mean_ci(np.where(np.isfinite(measurement.loss), measurement.loss, np.nan)).mean
            for name, value in (("angle_degrees", angle), ("accuracy", accuracy), ("loss_nats", loss)):
                if np.isfinite(value):
                    self.writer.add_scalar(name, value, step)

    def _count(self, measurement: Measurement | None) -> None:
        """The disk that a whole run's measurements take, in each checkpoint and in files of their own."""
        if measurement is not None and not self.history_bytes:
            examples = measurement.angle_examples
            measured = self.config.num_steps // self.config.measure_every + 1
            self.example_bytes = 0 if examples is None else measured * examples.nbytes
            self.history_bytes = measured * devices.num_bytes(measurement._replace(angle_examples=None))

    def _pace(self, step: int) -> str:
        """Steps a second and the time left, from the second step of this process on: the first compiles."""
        now = time.monotonic()
        if self.moment is None:
            self.moment = (step, now) if step > self.first_step else None
            return ""
        begun, then = self.moment
        seconds = (now - then) / (step - begun)
        left = _duration(seconds * (self.config.num_steps - step))
        if step == begun + 1:
            used, most = devices.memory()
            disk = (KEPT + 1) * (self.state_bytes + self.history_bytes) + self.example_bytes
            disk *= any(self.config.checkpoint.values())
            self._say(
                f"about {left} to go; {used / GIB:.1f} of {most / GIB:.1f} GiB of memory in use at most, "
                f"checkpoints up to {disk / GIB:.1f} GiB of disk"
            )
        return f" ({1 / seconds:.2g} steps/s, {left} left)"

    def _say(self, line: str) -> None:
        """A line, above the bar where there is one."""
        if not self.bar.disable:
            self.bar.write(line)
        else:
            print(line, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
