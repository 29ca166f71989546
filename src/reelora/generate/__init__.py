"""Videos out of prompts: what is asked for, the session that makes it, and the files that it ends in."""

from .clip import Clip, check_destination, to_mp4_bytes
from .config import GenerateConfig
from .describe import VideoFile, describe_video
from .encode import CodecName
from .formats import Crf
from .grid import Axis, arrange_axes, grid_sheet, grid_video
from .images import to_gif_bytes, to_png_bytes
from .jobs import Job
from .metadata import find_video_metadata, read_video_metadata
from .names import free_path
from .session import Session
from .sheet import contact_sheet
from .steps import StoppedError

__all__ = [
    "Axis",
    "Clip",
    "CodecName",
    "Crf",
    "GenerateConfig",
    "Job",
    "Session",
    "StoppedError",
    "VideoFile",
    "arrange_axes",
    "check_destination",
    "contact_sheet",
    "describe_video",
    "find_video_metadata",
    "free_path",
    "grid_sheet",
    "grid_video",
    "read_video_metadata",
    "to_gif_bytes",
    "to_mp4_bytes",
    "to_png_bytes",
]
