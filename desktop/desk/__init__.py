"""Desk's host side: machines, SSH, the command line and the desktop app."""

__version__ = "0.1.0"
