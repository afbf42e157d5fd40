"""Generated from protos/third_party/keybearer_service/ext_authz by `make generate`; do not edit."""
