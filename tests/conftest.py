"""Set before JAX is imported: several CPU devices, no silent rank promotion, compiled programs kept between runs."""

import gc
import os
import random
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

# Compiling takes most of the tests' time, so XLA optimises little, and each test process has one core to itself;
# `make check-all` tests programs as users run them.
QUICKLY = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_multi_thread_eigen=false"
)
OPTIMISED = os.environ.get("XLA_FLAGS", QUICKLY)
for library in ("OPENBLAS", "OMP"):  # of NumPy and scikit-learn: threads that outnumber cores wait for each other
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def xla_flags(num_devices):
    """XLA's flags for a process of so many CPU devices, whose programs are optimised as those of the tests."""
    return f"{OPTIMISED} --xla_force_host_platform_device_count={num_devices}"


def free_port():
    """A port for the coordinator of a job: not one of those the system hands out, which another may get meanwhile."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            except OSError:
                continue
            return probe.getsockname()[1]


os.environ["XLA_FLAGS"] = xla_flags(4)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

ROOT = Path(__file__).parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache" / metadata.version("jaxlib")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402 (what is set above must come first)
import pytest  # noqa: E402 (what is set above must come first)

from jtrans import models  # noqa: E402 (what is set above must come first)
from jtrans.experiments import early, random_angles  # noqa: E402 (what is set above must come first)

gc.set_threshold(50_000, 20, 20)  # most of what is traced lives on, so looking for garbage often finds little


def pytest_addoption(parser):
    parser.addoption("--pytorch_python", default=sys.executable, help="an interpreter that has PyTorch, for its tests")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """Tests share no cached images with the user or with each other."""
    monkeypatch.setenv("JTRANS_CACHE", str(tmp_path_factory.mktemp("cache")))


_lowerings = []


def _count(event, seconds, **_):
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
        _lowerings.append(event)


@pytest.fixture
def lowerings():
    """How many programs JAX has lowered, which it does before it compiles them or finds them compiled: a function."""
    if not _lowerings:
        jax.monitoring.register_event_duration_secs_listener(_count)  # it cannot be taken off again
        _lowerings.append("registered")
    return lambda: len(_lowerings)


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Compiled programs go with their module: each takes memory mappings, of which Linux gives a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def without_figures():
    """Runs leave none, which take most of the time of a small one; `draw` still makes them."""
    with pytest.MonkeyPatch.context() as patch:
        for each in (early, random_angles):
            patch.setattr(each, "EXPERIMENT", each.EXPERIMENT._replace(figures=lambda results: {}))
        yield


@pytest.fixture
def shorten(monkeypatch):
    """Leave a named architecture its first convolutions alone, which compile in a fraction of the time: a function."""
    of = models.CONVOLUTIONAL
    return lambda name, count: monkeypatch.setitem(of, name, of[name][:count])


@pytest.fixture
def unseen_gpu(monkeypatch, tmp_path):
    """A machine whose driver lists a GPU, while JAX has CPUs alone; gives what is to be said about it."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = -L ] && echo "GPU 0: NVIDIA T4 (UUID: GPU-0)"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    found = metadata.distributions
    plugin = "0.7.2"  # which stays behind where JAX alone is upgraded
    monkeypatch.setattr(
        metadata,
        "distributions",
        lambda **only: [SimpleNamespace(version=plugin)] if only == {"name": "jax-cuda12-plugin"} else found(**only),
    )
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield (
        "this machine has an NVIDIA GPU, which JAX does not see "
        f"(jax {jax.__version__}, jax-cuda12-plugin {plugin}): pip install 'jax[cuda12]=={jax.__version__}' "
        "and start again, or set JAX_PLATFORMS=cpu to do without"
    )
    jax.config.update("jax_platforms", before)


@pytest.fixture(scope="session")
def shared_data():
    """Real data beside the checkout, where a developer has it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="module")
def python(request):
    """An interpreter that has PyTorch, where `--pytorch_python` names one."""
    path = request.config.getoption("--pytorch_python")
    found = subprocess.run([path, "-c", "import torch"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"{path} has no PyTorch; name one that has, as pytest --pytorch_python PATH")
    return path
