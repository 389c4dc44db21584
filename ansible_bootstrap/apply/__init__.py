"""The apply program: all that runs with privileges. ``python -I -m ansible_bootstrap.apply``."""
