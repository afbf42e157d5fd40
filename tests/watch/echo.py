"""The same echo service three times, the last one guarded: `python -m watch.echo ADDRESS`.

Reads its own token from stdin, answers three ports, and serves until stdin ends.
"""

import sys
from concurrent import futures
from typing import Any

import grpc

from keybearer import AccessRule, AuthInterceptor, CachingVerifier, KeybearerClient, Role

PATH = "/test.Echo/Echo"
RULE = AccessRule(role=Role.DEVELOPER, scopes=("clusters.read",))


def serve(interceptors: list[Any]) -> tuple[grpc.Server, int]:
    """Start a server; answer its port."""
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
    server = grpc.server(
        futures.ThreadPoolExecutor(4), interceptors=interceptors, options=[("grpc.so_reuseport", 0)]
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Echo", {"Echo": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def main() -> None:
    """Follow the protocol above."""
    client = KeybearerClient(sys.argv[1], token=sys.stdin.readline(), tls=False)
    with CachingVerifier(client) as verifier:
        assert verifier.wait_for_lease(20)
        servers = [serve([]), serve([]), serve([AuthInterceptor(verifier, rules={PATH: RULE})])]
        sys.stdout.write(" ".join(str(port) for _, port in servers) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        for server, _ in servers:
            server.stop(0)


if __name__ == "__main__":
    main()
