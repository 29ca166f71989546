"""``reelora precompute``"""

from .options import ConfigFile, Data, Device, Model, Overrides, read_train_config

__all__ = ["precompute"]


def precompute(
    config: ConfigFile = None, data: Data = None, model: Model = None, device: Device = None, overrides: Overrides = None
) -> None:
    """Encode clips and captions once, into the cache that training reads.

    Example: reelora precompute --data clips/

    It can be stopped at any time and goes on where it was; what is there already is not made again.
    """
    from reelora import recipes

    from .terminal import Terminal

    settings = read_train_config(config, overrides, data__folder=data, model=model, device=device)
    with Terminal() as terminal:
        recipes.precompute(settings.model, settings.data, device=settings.device, listener=terminal)
