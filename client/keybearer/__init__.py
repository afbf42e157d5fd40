"""API keys for gRPC services: check them, issue them, revoke them.

To guard a service, put `AuthInterceptor` (or `AsyncAuthInterceptor`) with a `CachingVerifier` in
front of it, and call `current_identity()` in its handlers. To manage keys, use `KeybearerClient`.
"""

from keybearer._cache.caching import AsyncCachingVerifier, CachingVerifier
from keybearer._cache.engine import CacheStats
from keybearer._client.channel import TLSConfig
from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer._client.remote import AsyncRemoteVerifier, RemoteVerifier
from keybearer._client.requests import NEVER_EXPIRES
from keybearer._client.version import VERSION
from keybearer._guard.identity import NoIdentityError, current_identity
from keybearer._guard.interceptor import AuthInterceptor
from keybearer._guard.verifier import AsyncVerifier, Verifier
from keybearer.access import AccessRule, Role, RuleError
from keybearer.aio import AsyncAuthInterceptor
from keybearer.errors import KeybearerError
from keybearer.models import (
    Account,
    ApiKey,
    ApiKeyState,
    AuditAction,
    AuditEvent,
    Caller,
    Identity,
    IssuedAccount,
    IssuedKey,
    Outcome,
    Presented,
    RevocationReason,
    User,
    UserType,
    Verdict,
)

__version__ = VERSION

__all__ = [
    "NEVER_EXPIRES",
    "AccessRule",
    "Account",
    "ApiKey",
    "ApiKeyState",
    "AsyncAuthInterceptor",
    "AsyncCachingVerifier",
    "AsyncKeybearerClient",
    "AsyncRemoteVerifier",
    "AsyncVerifier",
    "AuditAction",
    "AuditEvent",
    "AuthInterceptor",
    "CacheStats",
    "CachingVerifier",
    "Caller",
    "Identity",
    "IssuedAccount",
    "IssuedKey",
    "KeybearerClient",
    "KeybearerError",
    "NoIdentityError",
    "Outcome",
    "Presented",
    "RemoteVerifier",
    "RevocationReason",
    "Role",
    "RuleError",
    "TLSConfig",
    "User",
    "UserType",
    "Verdict",
    "Verifier",
    "__version__",
    "current_identity",
]
