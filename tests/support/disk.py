"""A disk that is full."""

import resource
from contextlib import contextmanager


@contextmanager
def files_of_at_most(size_bytes: int):
    """The kernel refuses longer files to this process, as it refuses any on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
