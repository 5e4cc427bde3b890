"""A service on the host, as many listen on all addresses: prints its port, and takes connections until it is ended."""

import socket

with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        server.accept()[0].close()
