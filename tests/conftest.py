"""Set before JAX is imported: several CPU devices, and no silent rank promotion."""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "experiments"))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """Tests share no cached images with the user or with each other."""
    monkeypatch.setenv("JTRANS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def shared_data():
    """Real data beside the checkout, where a developer has it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    return path
