"""What the client and the service must agree on, each decision in one module.

Nothing here imports another part of the client, except `errors`, `access` and the generated code.
"""
