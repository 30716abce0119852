"""What an experiment sets up in its process before JAX starts; where jtrans keeps what it can make again."""

import ctypes
import os
from importlib import metadata
from pathlib import Path

import jax

# glibc's malloc.h: the numbers of mallopt's parameters.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
PROGRAMS_BYTES = 2**30  # of compiled programs on disk: those of some hundred runs


def cache() -> Path:
    """The folder for decoded images and compiled programs: `$JTRANS_CACHE`, or `~/.cache/jtrans`."""
    return Path(os.environ.get("JTRANS_CACHE", Path.home() / ".cache" / "jtrans"))


def prepare() -> None:
    """Keep compiled programs between runs, and memory between steps."""
    keep_programs()
    keep_memory()


def keep_programs() -> None:
    """JAX's persistent compilation cache, for every program, in a folder of bounded size for each jaxlib.

    What JAX's own environment variables say goes before that.
    """
    settings = {
        "jax_compilation_cache_dir": str(cache() / "programs" / metadata.version("jaxlib")),
        "jax_compilation_cache_max_size": PROGRAMS_BYTES,  # beyond it those go that were not used for longest
        "jax_persistent_cache_min_compile_time_secs": 0,  # most take less than the second that JAX asks for
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


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
