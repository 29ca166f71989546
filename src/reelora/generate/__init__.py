"""Videos out of prompts: what is asked for, the session that makes it, and the files that it ends in."""

from .clip import Clip, check_destination
from .config import GenerateConfig
from .encode import to_gif_bytes, to_mp4_bytes, to_png_bytes
from .metadata import read_video_metadata
from .session import Session
from .sheet import contact_sheet
from .steps import StoppedError

__all__ = [
    "Clip",
    "GenerateConfig",
    "Session",
    "StoppedError",
    "check_destination",
    "contact_sheet",
    "read_video_metadata",
    "to_gif_bytes",
    "to_mp4_bytes",
    "to_png_bytes",
]
