"""What gateways ask: one decision for every entry point, over gRPC and HTTP."""
