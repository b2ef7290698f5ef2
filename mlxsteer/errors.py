"""The two errors that mlxsteer raises on purpose.

Each carries one line that names the offending value and the way out. What is printed, and with
which exit code, is decided once, in `cli/__init__.py`; nothing else in the package prints or exits.
"""

__all__ = ["MlxsteerError", "UsageError"]


class MlxsteerError(Exception):
    """A file, a model, data or the machine is not what the request needs."""

    exit_code = 1


class UsageError(MlxsteerError):
    """The request itself is wrong: an option, a strength, a layer, a site."""

    exit_code = 2
