"""deskd: Desk's container engine. It speaks the Docker Engine API and does its own kernel work."""

__version__ = "0.1.0"
