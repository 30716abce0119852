"""Peak memory and seconds of `experiments/decompose.py` on images of 64 pixels, the largest that it takes.

    python benchmarks/decompose_memory.py [--config.FIELD=VALUE ...]

24 networks of FC deep at half its width, 1,000 images of noise, two steps.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIELDS = ("data.name=noise", "data.image_size=64", "data.num_train=1000", "steps=(0,1)", "ranks=(1,10)")


def main() -> None:
    """One run in a process of its own."""
    line = [sys.executable, str(ROOT / "experiments" / "decompose.py"), f"--config={ROOT / 'configs' / 'decompose.py'}"]
    fields = [f"--config.{field}" for field in FIELDS]
    with tempfile.TemporaryDirectory() as workdir:
        started = time.monotonic()
        with subprocess.Popen(
            [*line, f"--workdir={workdir}", *fields, *sys.argv[1:]], stdout=subprocess.DEVNULL
        ) as run:
            _, status, usage = os.wait4(run.pid, 0)
        seconds = time.monotonic() - started
    unit = 1 if sys.platform == "darwin" else 1024
    print(f"status {status}: {usage.ru_maxrss * unit / 2**30:.2f} GiB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
