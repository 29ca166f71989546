"""Which program wrote a file, as far as it tells: by a table of header entries, or else by its layout."""

import re
from collections.abc import Mapping

from reelora.layouts import LAYOUTS

__all__ = ["producer_of"]

_MARKS = (
    (r"reelora\.", "Reelora"),
    (r'software=\{"name": "ai-toolkit"', "ai-toolkit"),
    (r"ot_branch=", "OneTrainer"),
    (r"ss_network_module=lycoris", "LyCORIS"),
    (r"ss_sd_scripts_commit_hash=", "sd-scripts"),
    (r"ss_network_module=", "sd-scripts, musubi-tuner or a relative of theirs"),
    (r"lora_config=", "finetrainers"),
    (r"lora_adapter_metadata=", "diffusers"),
)
"""What an entry ``name=text`` of the header begins with, and who leaves it there; the first that is found decides.

Sources: ai-toolkit toolkit/metadata.py and info.py; OneTrainer modules/modelSaver/mixin; sd-scripts train_network.py
(musubi-tuner leaves the commit out); finetrainers sft_trainer/trainer.py; diffusers loaders/lora_base.py.
"""


def producer_of(layout: str, metadata: Mapping[str, str]) -> str:
    """The program and the entry that tells it; else those that write the layout; empty for an adapter of no file."""
    entries = {f"{name}={text}": name for name, text in metadata.items()}
    for pattern, producer in _MARKS:
        if name := next((name for entry, name in entries.items() if re.match(pattern, entry)), ""):
            return f"{producer}, by the header's {name}"
    writers = next((row.producers for row in LAYOUTS if row.name == layout), "")
    return f"not said; this layout is written by {writers}" if writers else ""
