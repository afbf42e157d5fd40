"""The gRPC side: the server, what happens to a call, and the servicers."""
