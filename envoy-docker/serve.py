#!/usr/bin/env python3
"""Servers on the given ports that answer with the peer's address, or with NAME if set: over HTTP on port 80, at once on others."""

import os
import socket
import sys
import threading


def serve(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,)).start()


def answer(connection):
    with connection:
        connection.settimeout(10)
        # IPv4 clients of an IPv6 socket have v4-mapped addresses.
        source, destination = (
            address[0].removeprefix("::ffff:") for address in (connection.getpeername(), connection.getsockname())
        )
        port = connection.getsockname()[1]
        said = os.environ.get("NAME", f"source={source} destination={destination} port={port}") + "\n"
        if port == 80:
            # Closing before the request is read would reset the connection.
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += connection.recv(1) or b"\r\n\r\n"
            said = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + said
        connection.sendall(said.encode())


for port in sys.argv[1:]:
    threading.Thread(target=serve, args=(int(port),)).start()
