"""The command ``ansible-bootstrap``."""
