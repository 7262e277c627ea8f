"""A UDP server for a container, as the text of a program."""

ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 53))
while True:
    data, sender = server.recvfrom(65535)
    server.sendto(b"echo " + data, sender)
"""
