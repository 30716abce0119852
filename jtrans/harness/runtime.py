"""What an experiment sets up in its process before JAX starts, and what its numbers are made with."""

import contextlib
import ctypes
import os
import subprocess
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jtrans
from jtrans import files
from jtrans.errors import InputError
from jtrans.harness import versions

# glibc's malloc.h: the numbers of mallopt's parameters.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
PROGRAMS_BYTES = 2**30  # of compiled programs on disk: those of some hundred runs
DRIVER_SECONDS = 20.0  # for the driver to list its GPUs


def prepare() -> None:
    """Keep memory between steps, and compiled programs between runs: in a folder of bounded size.

    JAX's own environment variables take precedence.
    """
    keep_memory()
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Most programs take less than the second that JAX asks for.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = files.cache() / "programs"
        prune(folder, PROGRAMS_BYTES)
        jax.config.update("jax_compilation_cache_dir", str(folder / metadata.version("jaxlib")))


def prune(folder: Path, most: int) -> None:
    """Remove compiled programs, those first that were not read for longest, until they take no more than `most` bytes.

    JAX can bound its cache by itself, but then goes through all of it at each new program.
    """
    with contextlib.suppress(OSError):  # another process may prune it too
        used = [(stat.st_atime, stat.st_size, path) for path in folder.rglob("*-cache") if (stat := path.stat())]
        total = sum(size for _, size, _ in used)
        for _, size, path in sorted(used):
            if total <= most:
                break
            path.unlink()
            total -= size


def keep_memory() -> None:
    """Let glibc hold on to memory that was freed; elsewhere nothing.

    A compiled step on a CPU takes its scratch memory anew at each call. malloc would get so large a piece from the
    kernel, page by page, and give it back at the end: a quarter of the time of a step (`benchmarks/README.md`).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # or two programs take their memory at a time
        mallopt(M_ARENA_MAX, 1)  # only the first arena can keep large pieces
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**26)


def check_gpu() -> None:
    """Raise InputError if JAX does not see an NVIDIA GPU of this machine, unless JAX_PLATFORMS says what to use."""
    if not jax.config.jax_platforms and jax.default_backend() == "cpu" and _has_nvidia_gpu():
        plugin = next((found.version for found in metadata.distributions(name="jax-cuda12-plugin")), "missing")
        raise InputError(
            "this machine has an NVIDIA GPU, which JAX does not see "
            f"(jax {jax.__version__}, jax-cuda12-plugin {plugin}): pip install 'jax[cuda12]=={jax.__version__}' "
            "and start again, or set JAX_PLATFORMS=cpu to do without"
        )


def _has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver lists a GPU; its program can be there on machines that have none."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=DRIVER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # a driver that is broken may never answer
        return False
    return listed.stdout.startswith(b"GPU ")


def environment() -> dict[str, Any]:
    """What the numbers were made with: versions, devices, and the commit of the source where there is one."""
    devices = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return {"versions": versions.installed(), "devices": devices, "git_commit": _commit()}


def _commit() -> str | None:
    """The commit of this source, with `-dirty` where it was changed; None outside a repository of its own."""
    source = Path(jtrans.__file__)
    git = partial(subprocess.run, capture_output=True, text=True, check=True, cwd=source.parent)
    try:
        git(["git", "ls-files", "--error-unmatch", source.name])  # a repository around an installation is not ours
        return git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
