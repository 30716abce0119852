"""Milliseconds of single convolutions, of both gradients and of the input's alone: by every filter, and by XLA's own.

    python benchmarks/convolutions.py [--networks=4] [--images=32] [--rounds=7] [--layers=conv_a]

The layers are those of conv A and ResNet18 at 32 x 32 pixels. `direct` and the tiles (2 x 2, 3 x 1, ...) are what
`layers.cheapest` chooses from, and `*` what it chooses; `xla` is `lax.conv_general_dilated`. All take turns, a call
each, with as many networks vmapped.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp

from jtrans.harness import runtime
from jtrans.models import layers

# Height and width, channels, features, kernel, stride, padding.
LAYERS = {
    "conv_a, 1": (32, 3, 128, 5, 2, 1),
    "conv_a, 2": (15, 128, 128, 5, 2, 1),
    "conv_a, 3": (7, 128, 256, 5, 2, 1),
    "conv_a, 4": (3, 256, 256, 5, 2, 1),
    "resnet18, stem": (32, 3, 64, 3, 1, 1),
    "resnet18, stage 1": (32, 64, 64, 3, 1, 1),
    "resnet18, stage 2": (16, 128, 128, 3, 1, 1),
    "resnet18, stage 3, first": (16, 128, 256, 3, 2, 1),
    "resnet18, stage 3": (8, 256, 256, 3, 1, 1),
    "resnet18, stage 4": (4, 512, 512, 3, 1, 1),
}
TILES = ((1, 1), (2, 1), (2, 2), (3, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", default="", help="only those whose names begin so")
    options = parser.parse_args()
    runtime.prepare()
    print("| layer | form | both gradients, ms | input's gradient, ms |\n|---|---|---|---|")
    for name in filter(lambda name: name.startswith(options.layers), LAYERS):
        for form, times in measure(LAYERS[name], options.networks, options.images, options.rounds).items():
            print(f"| {name} | {form} | {' | '.join(f'{1e3 * seconds:.3f}' for seconds in times)} |", flush=True)


def measure(layer: tuple[int, ...], networks: int, images: int, rounds: int) -> dict[str, list[float]]:
    """The median seconds of each form, of both gradients and of the input's."""
    size, channels, features, taps, stride, padding = layer
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (networks, images, size, size, channels))
    kernel = jax.random.normal(keys[1], (networks, taps, taps, channels, features))
    outputs = [(size + 2 * padding - taps) // stride + 1] * 2
    chosen = tuple(len(f.outputs) for f in layers.cheapest(outputs, stride, kernel.shape[1:]))
    forms = {"xla": partial(by_xla, stride=stride, padding=padding)}
    for tiles in TILES:
        if all(tile == 1 or (taps >= 2 * stride and tile <= n) for tile, n in zip(tiles, outputs, strict=True)):
            label = ("direct" if tiles == (1, 1) else " x ".join(map(str, tiles))) + " *" * (tiles == chosen)
            forms[label] = partial(by_tiles, tiles=tiles, stride=stride, padding=padding)
    calls = {
        (name, both): gradient(form, both) for (name, form), both in itertools.product(forms.items(), (True, False))
    }
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call(x, kernel))
            seconds[key].append(time.perf_counter() - started)
    return {name: [statistics.median(seconds[name, both][1:]) for both in (True, False)] for name in forms}


def gradient(form: Callable, both: bool) -> Callable:
    loss = lambda x, kernel: jnp.square(jax.vmap(form)(x, kernel)).sum()
    return jax.jit(jax.grad(loss, (0, 1) if both else 0))


def by_xla(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=names)


def by_tiles(x: jax.Array, kernel: jax.Array, *, tiles: tuple[int, int], stride: int, padding: int) -> jax.Array:
    def given(_: object, stride: int, shape: tuple[int, ...]) -> list[layers.Filtering]:
        return [layers.filtering(size, stride, tile) for size, tile in zip(shape[:2], tiles, strict=True)]

    with mock.patch.object(layers, "cheapest", given):
        return layers.convolve(x, kernel, stride=stride, padding=padding)


if __name__ == "__main__":
    main()
