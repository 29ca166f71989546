"""``reelora convert``"""

from .options import AdapterPath, Alpha, Destination, Dtype, Layout, Overwrite, Producer, SatConfig

__all__ = ["convert"]


def convert(
    source: AdapterPath,
    output: Destination,
    to: Layout = "",
    dtype: Dtype = "",
    alpha: Alpha = None,
    producer: Producer = None,
    sat_config: SatConfig = None,
    overwrite: Overwrite = False,
) -> None:
    """Write an adapter in another dialect, and prove that it still means the same.

    Example: reelora convert pytorch_lora_weights.safetensors style.safetensors --from cogvideo-finetune --to comfyui
    """
    from reelora import recipes

    from .terminal import Terminal

    target = recipes.Target(path=output, layout=to, dtype=dtype, overwrite=overwrite)
    with Terminal() as terminal:
        adapter = recipes.read_one(source, alpha=alpha, producer=producer, sat_config=sat_config or [], listener=terminal)
        recipes.convert(adapter, target, listener=terminal)
    print(output)
