"""Generated from protos/keybearer/v1 by `make generate`; do not edit."""
