"""The Docker Engine API as the host side uses it: a transport and a synchronous client."""
