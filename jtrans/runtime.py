"""What an experiment sets up in its process before JAX starts; where jtrans keeps what it can make again."""

import os
import sys
from importlib import metadata
from pathlib import Path

import jax

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def cache() -> Path:
    """The folder for decoded images and compiled programs: `$JTRANS_CACHE`, or `~/.cache/jtrans`."""
    return Path(os.environ.get("JTRANS_CACHE", Path.home() / ".cache" / "jtrans"))


def prepare() -> None:
    """Huge pages, and compiled programs kept between runs; called first, since the process may start over."""
    use_huge_pages()
    keep_programs()


def keep_programs() -> None:
    """JAX's persistent compilation cache in a folder for each jaxlib, unless JAX_COMPILATION_CACHE_DIR names one."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache() / "programs" / metadata.version("jaxlib")
        jax.config.update("jax_compilation_cache_dir", str(folder))


def use_huge_pages() -> None:
    """On Linux let the C library ask for huge pages, which it only does if told before it starts: so start over.

    A compiled step on a CPU takes its scratch memory anew at each call, and the kernel hands it out page by page: a
    quarter of the time of a step where pages are small (`benchmarks/README.md`).
    """
    if sys.platform == "linux" and not os.environ.keys() & HUGE_PAGES.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | HUGE_PAGES)
