"""The versions of the packages that jtrans uses. It imports none of them, so that they can be checked first."""

import contextlib
import sys
from importlib import metadata

from packaging.requirements import Requirement

import jtrans
from jtrans.errors import InputError

COMPUTED_WITH = ("jax", "jaxlib", "flax", "optax", "numpy")
SHOWN_WITH = ("scipy", "pandas", "matplotlib")  # a notebook's session may have imported them from the start


def installed() -> dict[str, str]:
    """The versions of jtrans and of what it computes with, by name."""
    # A checkout that is not installed has no metadata of its own.
    return {"jtrans": jtrans.__version__} | {name: metadata.version(name) for name in COMPUTED_WITH}


def check() -> None:
    """Check the packages that a notebook's session has.

    Raises InputError if one is older than jtrans needs, or is imported in another version than is installed now.
    """
    with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout that is not installed
        needs = map(Requirement, metadata.requires("jtrans") or ())
        for need in (need for need in needs if need.marker is None):  # the others are of extras
            version = metadata.version(need.name)
            if not need.specifier.contains(version, prereleases=True):
                raise InputError(f"{need.name}: got {version}; it takes {need.specifier}: %pip install '{need}'")
    for name in (*COMPUTED_WITH, *SHOWN_WITH):
        now, imported = metadata.version(name), getattr(sys.modules.get(name), "__version__", None)
        if imported not in (None, now):
            raise InputError(
                "restart the runtime (Runtime > Restart session), then run the next cell: "
                f"this session has imported {name} {imported}, and {now} is installed now"
            )
