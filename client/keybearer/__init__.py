"""API keys for gRPC services: check them, issue them, revoke them.

To guard a service: `AuthInterceptor` (or `AsyncAuthInterceptor`) with a `CachingVerifier`, and
`current_identity()` in its handlers. To manage keys: `KeybearerClient`.
"""

from keybearer._cache.caching import AsyncCachingVerifier, CacheStats, CachingVerifier
from keybearer._client.channel import TLSConfig
from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer._client.requests import NEVER_EXPIRES
from keybearer._client.verifier import (
    AsyncRemoteVerifier,
    AsyncVerifier,
    RemoteVerifier,
    Verifier,
)
from keybearer._guard.guard import NoIdentityError, current_identity
from keybearer._guard.interceptor import AuthInterceptor
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
    RevocationReason,
    User,
    UserType,
    Verdict,
)

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
    "RemoteVerifier",
    "RevocationReason",
    "Role",
    "RuleError",
    "TLSConfig",
    "User",
    "UserType",
    "Verdict",
    "Verifier",
    "current_identity",
]
