"""A gRPC service that keybearer guards.

KEYBEARER_ADDRESS=127.0.0.1:50051 KEYBEARER_TOKEN=… python examples/grpc_service.py 127.0.0.1:8080

The token is that of a key with the role VALIDATOR. The rules are in
examples/protos/clusters/v1/clusters.proto; examples/generate.sh makes examples/clusters from it.
"""

# ruff: noqa: INP001, N802, D102, ARG002 - a script; the proto names and describes its methods

import os
import sys
from collections.abc import Iterator
from concurrent import futures

import grpc
from clusters.v1 import clusters_pb2, clusters_pb2_grpc

from keybearer import AuthInterceptor, CachingVerifier, KeybearerClient, current_identity


class Clusters(clusters_pb2_grpc.ClustersServicer):
    """The handlers; none of them has to think about keys."""

    def __init__(self) -> None:
        self._names = {"orders", "stock"}

    def GetCluster(
        self, request: clusters_pb2.GetClusterRequest, context: grpc.ServicerContext
    ) -> clusters_pb2.GetClusterResponse:
        if request.name not in self._names:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such cluster")
        caller = current_identity()
        return clusters_pb2.GetClusterResponse(name=request.name, asked_by=caller.owner_id)

    def ListClusters(
        self,
        request: clusters_pb2.ListClustersRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[clusters_pb2.ListClustersResponse]:
        for name in sorted(self._names):
            yield clusters_pb2.ListClustersResponse(name=name)

    def DeleteCluster(
        self,
        request: clusters_pb2.DeleteClusterRequest,
        context: grpc.ServicerContext,
    ) -> clusters_pb2.DeleteClusterResponse:
        self._names.discard(request.name)
        return clusters_pb2.DeleteClusterResponse()

    def GetVersion(
        self,
        request: clusters_pb2.GetVersionRequest,
        context: grpc.ServicerContext,
    ) -> clusters_pb2.GetVersionResponse:
        return clusters_pb2.GetVersionResponse(version="1.0")


def main() -> None:
    """Serve until stopped."""
    # Plaintext, because keybearer is on this machine; without `tls=False` the client speaks TLS.
    client = KeybearerClient(
        os.environ["KEYBEARER_ADDRESS"], token=os.environ["KEYBEARER_TOKEN"], tls=False
    )
    auth = AuthInterceptor(
        CachingVerifier(client),
        # A method without a rule is found now, not when somebody calls it.
        services=[clusters_pb2.DESCRIPTOR.services_by_name["Clusters"]],
    )
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), interceptors=[auth])
    clusters_pb2_grpc.add_ClustersServicer_to_server(Clusters(), server)
    host = sys.argv[1].rpartition(":")[0]
    port = server.add_insecure_port(sys.argv[1])
    server.start()
    sys.stdout.write(f"listening on {host}:{port}\n")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
