"""What kind of T5 a checkpoint holds, told by its tensors where no config lies beside them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reelora.errors import ComponentError
from reelora.tensorio import Tensors, read_json

__all__ = ["t5_config"]

_BLOCK = "encoder.block.0.layer.{}.{}.weight"
_TOLD_BY = {
    "shared": "shared.weight",
    "query": _BLOCK.format(0, "SelfAttention.q"),
    "bias": _BLOCK.format(0, "SelfAttention.relative_attention_bias"),
    "gate": _BLOCK.format(1, "DenseReluDense.wi_0"),
}


def t5_config(tensors: Tensors, path: Path, folder: Path | None) -> Mapping[str, Any]:
    """The config of a T5EncoderModel: that of ``folder`` if it has one, else T5 v1.1 of the sizes that the tensors have.

    Raises ComponentError where a tensor that tells a size is missing.
    """
    if folder is not None and (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if missing := [name for name in _TOLD_BY.values() if len(tensors.shapes.get(name, ())) != 2]:
        raise ComponentError(
            f"text_encoder: {path} holds no T5 v1.1: it has no {missing[0]}. Pass paths={{'text_encoder': ...}}."
        )
    shapes = {what: tensors.shapes[name] for what, name in _TOLD_BY.items()}
    num_heads = shapes["bias"][1]
    return {
        "model_type": "t5",
        "vocab_size": shapes["shared"][0],
        "d_model": shapes["shared"][1],
        "d_kv": shapes["query"][0] // max(num_heads, 1),
        "d_ff": shapes["gate"][0],
        "num_heads": num_heads,
        "num_layers": 1 + max(int(match[1]) for name in tensors if (match := re.match(r"encoder\.block\.(\d{1,4})\.", name))),
        "relative_attention_num_buckets": shapes["bias"][0],
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "tie_word_embeddings": False,
    }
