"""Keys, and the identity that an application must receive for each."""

from dataclasses import dataclass, field

from gateway.support import KEY_NAME_OUT, SCOPES, Cast, Gated


@dataclass(frozen=True)
class Key:
    """A key, and what stands behind `x-keybearer-` in the headers of a request that it admits."""

    token: str = field(repr=False)
    identity: dict[str, str] = field(default_factory=dict)


NOBODY = Key("")


def usual_key(world: Gated, keys: Cast) -> Key:
    """Return a DEVELOPER key as most are."""
    return Key(
        keys.good,
        {
            "KEY_ID": keys.good_key_id,
            "KEY_NAME": KEY_NAME_OUT,
            "ACCOUNT": world.service.account_id,
            "OWNER": world.service.admin_user_id,
            "OWNER_EMAIL": "admin@example.com",
            "ROLE": "DEVELOPER",
            "SCOPES": ",".join(SCOPES),
        },
    )


def largest_key(world: Gated) -> Key:
    """Create a key whose identity is as large as the limits allow."""
    email = "%" * 126 + "@" + "%" * 127
    scopes = [f"{number:02}" + "s" * 98 for number in range(64)]
    owner = world.admin.create_user(email, display_name="the largest")
    created = world.admin.create_key(name="\U0001f511" * 100, scopes=scopes, owner_id=owner.id)
    return Key(
        created.token,
        {
            "KEY_ID": created.api_key.id,
            "KEY_NAME": "%F0%9F%94%91" * 100,
            "ACCOUNT": world.service.account_id,
            "OWNER": owner.id,
            "OWNER_EMAIL": email.replace("%", "%25"),
            "ROLE": "DEVELOPER",
            "SCOPES": ",".join(scopes),
        },
    )
