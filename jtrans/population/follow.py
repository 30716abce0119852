"""A run of many steps: what it logs, what it saves, how it stops, and how it resumes."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import jax
import numpy as np
from flax.serialization import from_state_dict, to_state_dict
from tqdm import tqdm

from jtrans import data, stats
from jtrans.errors import InputError, Interrupted
from jtrans.population import devices, engine, tracker
from jtrans.population import trajectory as trajectories
from jtrans.population.checkpoints import KEPT, Checkpoints, State
from jtrans.population.devices import Group, Part
from jtrans.population.engine import Population
from jtrans.population.observe import NETWORK_MEASURES, PAIR_MEASURES, Measurement
from jtrans.population.tracker import Log, Means, Tracker
from jtrans.population.trajectory import Trajectory
from jtrans.training import Network

REPORTED = {0, 1, 2, 5, 10, 20, 50, *range(100, 10**6, 100)}  # steps that get a line where there is no progress bar
GIB = 2**30
# Of the networks in a piece of a checkpoint. While one is written, up to three are in memory beside the networks: that
# one, Orbax's copy of it, and the next. Smaller ones would be more files.
PIECE_BYTES = 2**28
ANOTHER = "another version of jtrans; it takes a fresh --workdir"


class Plan(NamedTuple):
    """How a run goes, where it is saved, and when."""

    workdir: Path
    num_steps: int  # the last step
    measure_every: int  # the steps from one measurement to the next
    seconds: float  # a checkpoint after so many of these
    steps: int  # or of these, and at the end; 0 and 0: none
    digest: str  # of the data set, `data.digest`
    begin: Callable[[], None]  # called before each checkpoint, in the first process; it writes the config
    track: Tracker = tracker.nothing  # of the means; the first process opens it

    @property
    def saves(self) -> bool:
        """Whether there are checkpoints."""
        return bool(self.seconds or self.steps)


class Progress(NamedTuple):
    """Where a run stands."""

    step: int
    steps: list[int]  # those measured so far
    measurements: list[Measurement]  # after each of them


class Run(NamedTuple):
    """A population on its way."""

    population: Population
    plan: Plan
    checkpoints: Checkpoints
    start: Progress  # where an earlier run in the same work directory stopped; what is measured is added to it
    shapes: list[Network]  # of each architecture's networks, `[M, ...]`

    def networks(self) -> list[list[Group]]:
        """Those to begin with. InputError if those of the checkpoint have other arrays."""
        if self.start.step:
            return engine.split(self.population, _networks(self.checkpoints, self.start.step, self.shapes))
        return engine.initialize(self.population)

    def trajectory(self) -> Trajectory:
        """What is measured so far."""
        return trajectories.collect(self.population, self.start.steps, self.start.measurements)


Found = tuple[Trajectory, list[list[Group]]]  # the trajectory, from step 0 on, and the networks of each architecture


def run(population: Population, plan: Plan) -> Found:
    """Train and measure the population, from where an earlier run in the same work directory stopped.

    Raises:
      Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
      InputError: a checkpoint cannot be written, or an earlier run was begun on other data.
    """
    (found,) = side_by_side([population], [plan])
    return found


def side_by_side(populations: Sequence[Population], plans: Sequence[Plan]) -> list[Found]:
    """`run` of populations that `engine.trajectories` takes, those side by side that stand at the same step.

    The plans differ in folders, data and what they are logged to alone.
    """
    runs = list(map(_begin, populations, plans))
    by_step: dict[int, list[int]] = {}
    for i, each in enumerate(runs):
        by_step.setdefault(each.start.step, []).append(i)
    found: dict[int, Found] = {}
    for same in by_step.values():
        found.update(zip(same, _follow([runs[i] for i in same]), strict=True))
    return [found[i] for i in range(len(runs))]


def _begin(population: Population, plan: Plan) -> Run:
    checkpoints = Checkpoints(plan.workdir)
    restored = _restore(checkpoints, population, plan)
    return Run(population, plan, checkpoints, restored or Progress(0, [], []), engine.shapes(population))


def _follow(runs: Sequence[Run]) -> list[Found]:
    """The runs, which stand at the same step, to their end."""
    populations, plan, first_step = [each.population for each in runs], runs[0].plan, runs[0].start.step
    if first_step and first_step >= plan.num_steps:
        return [(each.trajectory(), each.networks()) for each in runs]
    options = {"measure_every": plan.measure_every, "first_step": first_step}
    stepped = engine.trajectories(populations, [each.networks() for each in runs], plan.num_steps, **options)
    saved = time.monotonic()
    with _Stop() as stop, _Log(runs) as log:
        for step, groups, measured in stepped:
            for each, measurement in zip(runs, measured, strict=bool(measured)):
                each.start.steps.append(step)
                each.start.measurements.append(measurement)
                if each.population.keep_examples and plan.saves:
                    each.checkpoints.write_examples(step, measurement.pairs["angle_examples"])
            log.show(step, measured)
            late = plan.seconds and time.monotonic() - saved >= plan.seconds
            due = bool(late or (plan.steps and step % plan.steps == 0))
            save, halt = map(devices.any_process, (due, stop.asked))
            halt = halt and step < plan.num_steps  # a run that has come to its end is not thrown away
            if halt and not plan.saves:
                raise Interrupted(f"interrupted at step {step}; without checkpoints nothing of this training was kept")
            if plan.saves and (save or halt or step == plan.num_steps):
                for each, networks in zip(runs, engine.take_apart(populations, groups), strict=True):
                    _save(each, step, networks)
                saved = time.monotonic()
            if halt:
                for each in runs:
                    each.checkpoints.wait()
                raise Interrupted(f"interrupted at step {step}, which is saved; the same command resumes from there")
    for each in runs:
        each.checkpoints.wait()
    taken_apart = engine.take_apart(populations, groups)
    return [(each.trajectory(), networks) for each, networks in zip(runs, taken_apart, strict=True)]


def _restore(checkpoints: Checkpoints, population: Population, plan: Plan) -> Progress | None:
    """Where an earlier run stopped, None where it left nothing.

    InputError if it was begun on other data, or did not measure all that is measured now.
    """
    step = checkpoints.newest()
    if step is None:
        return None
    state = next(checkpoints.load(step))
    data.check_digest(checkpoints.folder, bytes(state.get("data", b"")).hex(), plan.digest)
    history = state["history"]
    if len(population.pair) == 0:  # of a single network: Orbax saves no empty arrays
        history = {name: np.empty((0, len(history["step"]))) for name in PAIR_MEASURES} | history
    measures = {*NETWORK_MEASURES, *PAIR_MEASURES} | ({"every_count"} if population.is_sampled else set())
    if missing := measures - {*history}:
        raise InputError(f"{checkpoints.folder}: has no {min(missing)}, so it was written by {ANOTHER}")
    print(f"resuming from step {step}", flush=True)
    measured = zip(history["step"].tolist(), trajectories.measurements(history), strict=True)
    # A run that was to end earlier measured its last step too, where that is not one of these. Before the first step
    # there is nothing to resume from: the run measures step 0 again.
    kept = {t: m for t, m in measured if step > 0 and (t % plan.measure_every == 0 or t == plan.num_steps)}
    if population.keep_examples:
        for t, measurement in kept.items():
            measurement.pairs["angle_examples"] = checkpoints.read_examples(t)
    return Progress(step, list(kept), list(kept.values()))


def _networks(checkpoints: Checkpoints, step: int, shapes: Sequence[Network]) -> list[Network]:
    """The networks of each architecture in a checkpoint, `[M, ...]`; InputError if they have other arrays."""
    networks = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), list(shapes))
    for state in checkpoints.load(step):
        for i, network in enumerate(networks):
            try:
                part = from_state_dict(Part(np.empty(0), network), state["networks"][str(i)])
            except ValueError as error:
                what = f"has other arrays, so it was written by {ANOTHER}"
                raise InputError(f"{checkpoints.folder}: {what}") from error
            for whole, some in zip(jax.tree.leaves(network), jax.tree.leaves(part.arrays), strict=True):
                whole[part.numbers] = some
    return networks


def _save(run: Run, step: int, networks: list[list[Group]]) -> None:
    """Start to write a checkpoint; each image's angles are in files of their own, `Checkpoints.write_examples`."""
    devices.first_does(run.plan.begin)
    trajectory = run.trajectory()
    history = {name: values for name, values in trajectory.items() if name != "angle_examples" and values.size}
    rest = {"history": history, "data": np.frombuffer(bytes.fromhex(run.plan.digest), np.uint8)}
    examples = trajectory["step"].tolist() if "angle_examples" in trajectory else ()
    num_bytes = devices.num_bytes((run.shapes, rest))
    run.checkpoints.save(step, _states(run.population, networks, rest), num_bytes, examples)


def _states(population: Population, networks: list[list[Group]], rest: State) -> Iterator[State]:
    """The pieces of a checkpoint; the first holds the rest too."""
    for parts in engine.pieces(population, networks, PIECE_BYTES):
        yield {**rest, "networks": {str(i): to_state_dict(part) for i, part in enumerate(parts)}}
        rest = {}


class _Stop(contextlib.ExitStack):
    """Meanwhile Ctrl-C and SIGTERM only set `asked`; a second one ends the process as usual."""

    asked = False

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # not the main thread, which alone gets signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, number, signal.signal(number, self._ask))
        return self

    def _ask(self, *_: object) -> None:
        self.asked = True
        print("stopping after this step", file=sys.stderr, flush=True)
        self.close()  # the handlers of before are back


class _Log(contextlib.ExitStack):
    """What runs log: a bar on a terminal, else lines; time and memory that they take; networks that are lost."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__()
        self.plan, self.first_step = runs[0].plan, runs[0].start.step
        self.state_bytes = sum(devices.num_bytes(each.shapes) for each in runs)
        self.last: Sequence[Measurement] = []
        self.lost: set[tuple[str, int]] = set()
        self.moment: tuple[int, float] | None = None  # the first step that was timed, and when it ended
        self.labels = [f"{each.plan.workdir.name}: " if len(runs) > 1 else "" for each in runs]
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules  # a terminal, or a notebook
        bar = {"total": self.plan.num_steps, "initial": self.first_step, "unit": "step"}
        self.bar = self.enter_context(tqdm(disable=not (watched and devices.is_first()), **bar))
        self.logs: list[Log] = [tracker.silent] * len(runs)
        devices.first_does(partial(self._track, runs))

    def _track(self, runs: Sequence[Run]) -> None:
        past = [zip(each.start.steps, map(_means, each.start.measurements), strict=True) for each in runs]
        self.logs = [self.enter_context(each.plan.track(behind)) for each, behind in zip(runs, past, strict=True)]

    def show(self, step: int, measurements: Sequence[Measurement]) -> None:
        """The mean angle and accuracy of each run after a step, where it was measured."""
        self.bar.update(step - self.bar.n)
        self.last = measurements or self.last
        pace = self._pace(step)
        for measurement, label, log in zip(measurements, self.labels, self.logs, strict=bool(measurements)):
            means = _means(measurement)
            self._show(step, measurement, means, label, pace)
            log(step, means)

    def _show(self, step: int, measurement: Measurement, means: Means, label: str, pace: str) -> None:
        angle, accuracy = means["angle_degrees"], means["accuracy"]
        self.bar.set_postfix_str(f"{label}angle {angle:.1f} deg, accuracy {accuracy:.2f}", refresh=False)
        if self.bar.disable and (step in REPORTED or step == self.plan.num_steps):
            self._say(f"{label}step {step}: angle {angle:.2f} degrees, accuracy {accuracy:.3f}{pace}")
        for network in np.flatnonzero(~np.isfinite(measurement.networks["loss"])).tolist():
            if (label, network) not in self.lost:
                self._say(f"{label}network {network}: its loss is not finite at step {step}; the others go on")
                self.lost.add((label, network))

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
            memory = f"{used / GIB:.1f} of {most / GIB:.1f} GiB of memory in use at most"
            self._say(f"about {left} to go; {memory}, checkpoints up to {self._disk() / GIB:.1f} GiB of disk")
        return f" ({1 / seconds:.2g} steps/s, {left} left)"

    def _disk(self) -> int:
        """The bytes that a whole run takes: all in each checkpoint, but each image's angles, which are written once."""
        measured = self.plan.num_steps // self.plan.measure_every + 1
        examples = measured * devices.num_bytes([each.pairs.get("angle_examples", ()) for each in self.last])
        history = measured * devices.num_bytes(self.last) - examples
        return self.plan.saves * ((KEPT + 1) * (self.state_bytes + history) + examples)

    def _say(self, line: str) -> None:
        """A line, above the bar where there is one; the processes of a job that do not report have no stdout."""
        print(line, flush=True) if self.bar.disable else self.bar.write(line)


def _means(measurement: Measurement) -> Means:
    """Of all pairs, and of the networks that are not lost; NaN where there are none."""
    losses = measurement.networks["loss"]
    values = {
        "angle_degrees": measurement.every.get("every_angle", measurement.pairs["angle"]),
        "accuracy": measurement.networks["accuracy"],
        "loss_nats": np.where(np.isfinite(losses), losses, np.nan),
    }
    return {name: float(stats.mean_ci(each).mean) for name, each in values.items()}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
