"""The warning before nobody is left who can administer an account."""

from console.site import Site
from harness import Service, Tenant

WARNING = "nobody can administer this account"


def warns(site: Site, path: str) -> bool:
    """Return whether a page has the warning."""
    seen = site.get(f"/console/{path}")
    assert seen.status in (200, 409), (path, seen.status)
    return WARNING in seen.text


def pages_of(tenant: Tenant) -> list[str]:
    """Return the pages that take the one key of an account away."""
    one = f"keys/{tenant.key_id}"
    return [f"{one}/revoke", f"{one}/disable", f"{one}/edit", f"keys/revoke?key={tenant.key_id}"]


def test_whatever_ends_the_last_key_warns(service: Service, site: Site) -> None:
    """Revoking it alone or among others, disabling it, giving it another role."""
    tenant = service.tenant()
    harmless = tenant.stubs.create_key(name="harmless").api_key.id
    site.sign_in(tenant.stubs.token)
    for path in pages_of(tenant):
        assert warns(site, path), path
    assert warns(site, f"keys/revoke?key={harmless}&key={tenant.key_id}")
    assert not warns(site, f"keys/{harmless}/revoke")
    assert not warns(site, f"keys/{harmless}/disable")


def test_another_key_of_an_administrator_is_a_way_in(service: Service, site: Site) -> None:
    """As long as it is not taken away by the same step, works, and is an administrator's."""
    tenant = service.tenant()
    second = tenant.stubs.create_key(role="ROLE_ADMIN").api_key.id
    site.sign_in(tenant.stubs.token)
    for path in pages_of(tenant):
        assert not warns(site, path), path
    assert warns(site, f"keys/revoke?key={second}&key={tenant.key_id}")
    tenant.stubs.disable_key(second)
    for path in pages_of(tenant):
        assert warns(site, path), path


def test_taking_away_the_last_user_with_a_key_warns(service: Service, signed_in: Site) -> None:
    """By another role or altogether; an administrator without a key cannot step in."""
    tenant = service.tenant()
    other = tenant.stubs.create_user("other@example.com", role="ROLE_ADMIN")
    for change in ("edit", "delete"):
        assert warns(signed_in, f"users/{tenant.user_id}/{change}"), change
        assert not warns(signed_in, f"users/{other.id}/{change}"), change
    tenant.stubs.create_key(role="ROLE_ADMIN", owner_id=other.id)
    for change in ("edit", "delete"):
        assert not warns(signed_in, f"users/{tenant.user_id}/{change}"), change


def test_a_user_who_is_no_administrator_is_nobodys_way_in(
    service: Service, signed_in: Site
) -> None:
    """Nothing is said, although nobody can administer the account as it is."""
    tenant = service.tenant()
    plain = tenant.stubs.create_user("plain@example.com", role="ROLE_DEVELOPER")
    tenant.stubs.revoke(tenant.key_id)
    assert not warns(signed_in, f"users/{plain.id}/edit")
    assert not warns(signed_in, f"users/{plain.id}/delete")
