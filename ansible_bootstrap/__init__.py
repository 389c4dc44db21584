"""The storage is ready before the notebook starts."""

__version__ = "0.1.0"
