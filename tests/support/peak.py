"""The peak of a process that makes a video, above what it holds when everything is imported: ``python peak.py JSON``.

The memory that counts is resident: pages of mapped files as well as anonymous ones. Source: proc(5), VmRSS and VmHWM; writing 5
to clear_refs resets the latter.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["measure_peak"]

_IMPORTED = (
    "diffusers.models.autoencoders.autoencoder_kl_cogvideox",
    "diffusers.models.transformers.cogvideox_transformer_3d",
    "diffusers.pipelines.cogvideo.pipeline_cogvideox",
    "transformers.models.t5.modeling_t5",
)


def measure_peak(model: Path, *, dtype: str = "", **settings: Any) -> int:
    """Bytes that a fresh process takes to make one video.

    The C library is told to give every large block back at once: what it keeps of freed memory otherwise is up to a hundred
    mebibytes, and another number every time.
    """
    told = json.dumps({"model": str(model), "dtype": dtype, "settings": settings})
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, told], env=env, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def _main(told: str) -> None:
    import torch

    from reelora.generate import Session

    for name in _IMPORTED:
        import_module(name)

    job = json.loads(told)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    session = Session(job["model"], dtype=getattr(torch, job["dtype"]) if job["dtype"] else None)
    session.generate("a red circle", **job["settings"])
    sys.stdout.write(f"{_status('VmHWM') - before}\n")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _main(*sys.argv[1:])
