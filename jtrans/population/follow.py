"""A run of many steps: what it logs, what it saves, how it stops, and how it resumes."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.serialization import from_state_dict, to_state_dict
from tqdm import tqdm

from jtrans import data, stats
from jtrans.errors import Interrupted
from jtrans.population import devices, engine
from jtrans.population import trajectory as trajectories
from jtrans.population.checkpoints import KEPT, Checkpoints
from jtrans.population.engine import Population
from jtrans.population.observe import Measurement
from jtrans.population.trajectory import Trajectory
from jtrans.training import Network

REPORTED = {0, 1, 2, 5, 10, 20, 50, *range(100, 10**6, 100)}  # steps that get a line where there is no progress bar
GIB = 2**30


class Plan(NamedTuple):
    """How a run goes, and where it is saved.

    Attributes:
      num_steps: the last step.
      measure_every: the steps from one measurement to the next.
      seconds, steps: a checkpoint after so many of either, and at the end; 0 and 0: none.
      digest: of the data set, `data.digest`.
      begin: called before each checkpoint, in the first process; it writes the config.
      tensorboard: whether the means are written as TensorBoard events too.
    """

    num_steps: int
    measure_every: int
    seconds: float
    steps: int
    digest: str
    begin: Callable[[], None]
    tensorboard: bool = False

    @property
    def saves(self) -> bool:
        """Whether there are checkpoints."""
        return bool(self.seconds or self.steps)


class Progress(NamedTuple):
    """Where a run stands: the steps behind it, the networks of each architecture `[M, ...]` on the host, and what was
    measured so far, at which steps.
    """

    step: int
    networks: list[Network]
    steps: list[int]
    measurements: list[Measurement]


def run(population: Population, plan: Plan, workdir: Path) -> tuple[Trajectory, list[Network]]:
    """Train and measure the population, from where an earlier run in the same work directory stopped.

    Returns:
      The trajectory, from step 0 on, and the networks of each architecture, `[M, ...]`.

    Raises:
      Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
      InputError: a checkpoint cannot be written, or an earlier run was begun on other data.
    """
    checkpoints = Checkpoints(workdir)
    shapes = engine.shapes(population)
    restored = restore(checkpoints, shapes, plan, keep_examples=population.keep_examples)
    start = restored or Progress(0, shapes, [], [])
    networks = engine.split(population, restored.networks) if restored else engine.initialize(population)
    results = _follow(population, networks, plan, start, checkpoints, workdir)
    checkpoints.wait()
    return results


def restore(
    checkpoints: Checkpoints, networks: Sequence[Network], plan: Plan, *, keep_examples: bool
) -> Progress | None:
    """Where an earlier run with the same work directory stopped; None where it left nothing.

    Args:
      networks: of each architecture the shapes of its networks, `[M, ...]`.
      keep_examples: whether each image's angle was kept.

    Raises:
      InputError: the run was begun on other data.
    """
    step = checkpoints.newest()
    if step is None:
        return None
    state = checkpoints.load(step)
    data.check_digest(checkpoints.folder, bytes(state.get("data", b"")).hex(), plan.digest)
    print(f"resuming from step {step}", flush=True)
    loaded = [from_state_dict(network, state["networks"][str(i)]) for i, network in enumerate(networks)]
    history = state["history"]
    measured = zip(history["step"].tolist(), trajectories.measurements(history), strict=True)
    # A run that was to end earlier measured its last step too, where that is not one of these.
    kept = [(t, m) for t, m in measured if t % plan.measure_every == 0 or t == plan.num_steps]
    # Before the first step there is nothing to resume from: the run measures step 0 again.
    kept = kept if step > 0 else []
    if keep_examples:
        examples = lambda t, m: m.pairs | {"angle_examples": checkpoints.read_examples(t)}
        kept = [(t, m._replace(pairs=examples(t, m))) for t, m in kept]
    return Progress(step, loaded, [t for t, _ in kept], [m for _, m in kept])


def _follow(
    population: Population,
    networks: list[list[devices.Group]],
    plan: Plan,
    start: Progress,
    checkpoints: Checkpoints,
    workdir: Path,
) -> tuple[Trajectory, list[Network]]:
    """Go through the steps, with checkpoints; to the end, or to the step where the run is asked to stop."""
    step, hosted, steps, measurements = start
    saved = time.monotonic()
    run = engine.trajectory(
        population, networks, plan.num_steps, measure_every=plan.measure_every, first_step=start.step
    )
    with _Stop() as stop, _Log(plan, workdir, start) as log:
        for step, trained, measurement in run:
            if measurement:
                steps.append(step)
                measurements.append(measurement)
                if population.keep_examples and plan.saves:
                    checkpoints.write_examples(step, measurement.pairs["angle_examples"])
            log.show(step, measurement)
            late = plan.seconds and time.monotonic() - saved >= plan.seconds
            due = bool(late or (plan.steps and step % plan.steps == 0))
            save, halt = map(devices.any_process, (due, stop.asked))
            halt = halt and step < plan.num_steps  # a run that has come to its end is not thrown away
            if halt and not plan.saves:
                raise Interrupted(f"interrupted at step {step}; without checkpoints nothing of this training was kept")
            if save or halt or step == plan.num_steps:
                hosted = engine.merge(population, trained)
                if plan.saves:
                    devices.first_does(plan.begin)
                    history = trajectories.collect(population, steps, measurements)
                    examples = steps if population.keep_examples else ()
                    checkpoints.save(step, _state(hosted, history, plan.digest), examples)
                saved = time.monotonic()
            if halt:
                checkpoints.wait()
                raise Interrupted(f"interrupted at step {step}, which is saved; the same command resumes from there")
    return trajectories.collect(population, steps, measurements), hosted


def _state(networks: Sequence[Network], trajectory: Trajectory, digest: str) -> dict[str, Any]:
    # Each image's angles are in files of their own, `Checkpoints.write_examples`.
    history = {name: values for name, values in trajectory.items() if name != "angle_examples"}
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
    """What a run logs: a bar on a terminal, else lines; time and memory that it takes; networks that are lost."""

    def __init__(self, plan: Plan, workdir: Path, start: Progress) -> None:
        self.plan, self.first_step, self.state_bytes = plan, start.step, devices.num_bytes(start.networks)
        self.history_bytes = self.example_bytes = 0
        self.lost: set[int] = set()
        self.moment: tuple[int, float] | None = None  # the first step that was timed, and when it ended
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules  # a terminal, or a notebook
        hidden = not (watched and devices.is_first())
        self.bar = tqdm(total=plan.num_steps, initial=start.step, unit="step", disable=hidden)
        self.writer = None
        if plan.tensorboard and devices.is_first():
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
        finite = np.isfinite(measurement.networks["loss"])
        angle, accuracy, loss = (
            stats.mean_ci(values).mean
            for values in (
                measurement.pairs["angle"],
                measurement.networks["accuracy"],
                np.where(finite, measurement.networks["loss"], np.nan),
            )
        )
        self.bar.set_postfix_str(f"angle {angle:.1f} deg, accuracy {accuracy:.2f}", refresh=False)
        if self.bar.disable and (step in REPORTED or step == self.plan.num_steps):
            print(f"step {step}: angle {angle:.2f} degrees, accuracy {accuracy:.3f}{pace}", flush=True)
        for network in sorted({*np.flatnonzero(~finite).tolist()} - self.lost):
            self._say(f"network {network}: its loss is not finite at step {step}; the others go on")
            self.lost.add(network)
        if self.writer:
            for name, value in (("angle_degrees", angle), ("accuracy", accuracy), ("loss_nats", loss)):
                if np.isfinite(value):
                    self.writer.add_scalar(name, value, step)

    def _count(self, measurement: Measurement | None) -> None:
        """The disk that a whole run's measurements take, in each checkpoint and in files of their own."""
        if measurement is not None and not self.history_bytes:
            examples = devices.num_bytes(measurement.pairs.get("angle_examples", ()))
            measured = self.plan.num_steps // self.plan.measure_every + 1
            self.example_bytes = measured * examples
            self.history_bytes = measured * (devices.num_bytes(measurement) - examples)

    def _pace(self, step: int) -> str:
        """Steps a second and the time left, from the second step of this process on: the first compiles."""
        now = time.monotonic()
        if self.moment is None:
            self.moment = (step, now) if step > self.first_step else None
            return ""
        begun, then = self.moment
        seconds = (now - then) / (step - begun)
        left = _duration(seconds * (self.plan.num_steps - step))
        if step == begun + 1:
            used, most = devices.memory()
            disk = (KEPT + 1) * (self.state_bytes + self.history_bytes) + self.example_bytes
            disk *= self.plan.saves
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
