"""API keys for gRPC services: check them, issue them, revoke them.

To guard a service: `AuthInterceptor` (or `AsyncAuthInterceptor`) with a `CachingVerifier`, and
`current_identity()` in its handlers. To manage keys: `KeybearerClient`.
"""

from keybearer.access import AccessRule, Role, RuleError
from keybearer.aio import AsyncAuthInterceptor
from keybearer.caching import AsyncCachingVerifier, CacheStats, CachingVerifier
from keybearer.calls import NEVER_EXPIRES
from keybearer.channel import TLSConfig
from keybearer.client import AsyncKeybearerClient, KeybearerClient
from keybearer.errors import KeybearerError
from keybearer.guard import NoIdentityError, current_identity
from keybearer.interceptor import AuthInterceptor
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
from keybearer.verifier import (
    AsyncRemoteVerifier,
    AsyncVerifier,
    RemoteVerifier,
    Verifier,
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
