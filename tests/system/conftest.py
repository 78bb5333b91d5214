"""Fixtures that write small data sets in the format of the real ones, and read them as streams."""

from tests.support.prepared import examples, photograph, prepare, prepare_once  # noqa: F401
from tests.support.streamed import nothing_left, prepared, streamed_folder  # noqa: F401
