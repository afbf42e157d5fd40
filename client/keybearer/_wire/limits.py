"""The limits of the wire contract: what the service enforces and the client relies on."""

from typing import Final

# --- Requests -------------------------------------------------------------------------------------

MAX_NAME: Final = 100
"""Characters of a name, which has at least one."""
MAX_TEXT: Final = 1000
"""Characters of a description or a note."""
MAX_EMAIL: Final = 254
"""Characters of an e-mail address."""
MAX_FILTER: Final = 254
"""Characters of a text that is searched for."""
MAX_SCOPES: Final = 64
"""Scopes of a key, and of a requirement."""
MAX_SCOPE_LENGTH: Final = 100
"""Characters of one scope."""
MAX_LABELS: Final = 16
MAX_LABEL_KEY: Final = 63
"""Characters."""
MAX_LABEL_VALUE: Final = 256
"""Characters."""
MAX_OVERLAP_DAYS: Final = 30
"""How long the old secret of a rotation may live on."""
MAX_BATCH: Final = 100
"""Tokens in one BatchValidateTokens."""
MAX_REVOKED_KEYS: Final = 1000
"""Keys in one RevokeApiKeys."""
MAX_LISTED_KEY_IDS: Final = 10_000
"""Key ids in the response of DeleteUser; the counts beside them have no limit."""

# --- Lists ----------------------------------------------------------------------------------------

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 1000
MAX_PAGE_BYTES: Final = 2 * 1024 * 1024
"""The longest page, in bytes: half of the 4 MiB that gRPC clients accept by default."""
MAX_SORTED_BY_LAST_USE: Final = 100_000
"""Keys of an account that can be listed in the order of their last use."""
API_KEY_ORDERS: Final = ("create_time", "expire_time", "name", "last_used_time")
"""What ListApiKeys sorts by; each also with ` desc` behind it."""

# --- Messages -------------------------------------------------------------------------------------

MAX_REQUEST_BYTES: Final = 128 * 1024
MAX_METADATA_BYTES: Final = 16 * 1024
MAX_RESPONSE_BYTES: Final = 32 * 1024 * 1024
"""Enough for a page of MAX_PAGE_SIZE keys, each as long as it may be."""

# --- Verdicts that are reused ---------------------------------------------------------------------

MAX_CACHE_SECONDS: Final = 60
"""A positive verdict is reused for at most this long, and only under a lease."""
MAX_NEGATIVE_CACHE_SECONDS: Final = 1
"""A negative verdict: a new key must not be refused for long because it was probed before."""
LEASE_SECONDS: Final = 2
"""How long after a ping was sent its pong vouches for what is kept."""
PING_SECONDS: Final = 0.5
"""Between two pings."""
MAX_USAGE_ITEMS: Final = 500
"""Items in one report of usage."""
