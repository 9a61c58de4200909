"""rotator: a daemon that keeps MQTT credentials fresh.

Nothing is exported from here but the version: the program is its commands, and the parts are imported by name.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rotator")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0+unknown"

__all__ = ["__version__"]
