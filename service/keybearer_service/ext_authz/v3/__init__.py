"""Generated from protos/third_party/keybearer_service/ext_authz/v3 by `make generate`; do not edit."""
