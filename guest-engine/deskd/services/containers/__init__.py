"""Containers as clients use them, in parts: creation, life, listing, inspection, streams, files."""
