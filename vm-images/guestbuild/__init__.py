"""Builds the guest image from Debian packages; `vm-images/build` is its command."""
