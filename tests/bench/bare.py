"""The yardstick: a grpcio server whose handler for ValidateToken does nothing.

Same messages, same channel arguments, same number of threads; no interceptor, no store.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.net.bounds import GRPC, VALIDATION_CALLS
from keybearer_service.rpc.server import server_options


def main() -> None:
    """Serve until standard input ends; the port goes to standard output."""
    answer = pb.ValidateTokenResponse(
        valid=True,
        outcome=pb.VALIDATION_OUTCOME_VALID,
        key_id="0" * 16,
        key_name="key 123456",
        account_id="0" * 16,
        owner_id="0" * 16,
        owner_email="admin@example.com",
        owner_type=1,  # type: ignore[arg-type]  # an enum's number
        granted_role=2,  # type: ignore[arg-type]
        effective_role=2,  # type: ignore[arg-type]
        scopes=["clusters.read", "clusters.write"],
        revision=1,
        secret_version=1,
    )
    answer.cache_for.FromSeconds(60)
    server = grpc.server(
        ThreadPoolExecutor(VALIDATION_CALLS.threads), options=server_options(GRPC, share_port=False)
    )
    handler = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: answer,
        request_deserializer=pb.ValidateTokenRequest.FromString,
        response_serializer=pb.ValidateTokenResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "keybearer.v1.TokenService", {"ValidateToken": handler}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main()
