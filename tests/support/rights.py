"""A user who may not read everything, also where the tests run as root."""

import os
from contextlib import contextmanager

NOBODY = 65534


@contextmanager
def as_a_stranger():
    """The rights of a file count inside: root, who is above them, becomes another user for as long."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
