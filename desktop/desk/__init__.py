"""Desk's host side: machines, SSH, the command line and the desktop app."""
