"""Windows that are in each other's way: forms about the same thing, sent at the same moment."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from console.site import Form, Seen, Site
from harness import Service

ROTATED = ["AUDIT_ACTION_API_KEY_ROTATED"]


def at_once(
    service: Service, site: Site, forms: Sequence[tuple[Form, dict[str, str]]]
) -> list[Seen]:
    """Send forms from windows of one browser at the same moment; return the answers in order."""
    barrier = threading.Barrier(len(forms))

    def send(one: tuple[Form, dict[str, str]]) -> Seen:
        with Site.of(service) as window:
            window.cookies.update(site.cookies)
            barrier.wait(20)
            return window.send(one[0], **one[1])

    with ThreadPoolExecutor(len(forms)) as executor:
        return list(executor.map(send, forms))


def form_of(site: Site, path: str) -> Form:
    """Return the form that stands where it is sent."""
    return site.get(path).form(path)


def test_one_rotation_that_is_sent_many_times_at_once_is_one(
    service: Service, signed_in: Site
) -> None:
    """One window shows the secret, which works, and the others none."""
    made = service.admin.create_key(name="k")
    form = form_of(signed_in, f"/console/keys/{made.api_key.id}/rotate")
    seen = at_once(service, signed_in, [(form, {"overlap": "0"})] * 6)
    assert sorted(one.status for one in seen) == [200] + [409] * 5
    (token,) = [one.token for one in seen if one.token]
    assert service.admin.outcome(token) == "VALID"
    assert service.admin.outcome(made.token) == "NOT_FOUND"
    assert len(service.admin.events(target_id=made.api_key.id, actions=ROTATED)) == 1


@pytest.mark.parametrize(("overlap", "alive"), [("0", 1), ("1d", 2)])
def test_two_rotations_at_once_follow_each_other(
    service: Service, signed_in: Site, overlap: str, alive: int
) -> None:
    """Each window shows a secret; the one of the first is the old one of the second."""
    made = service.admin.create_key(name="k")
    path = f"/console/keys/{made.api_key.id}/rotate"
    forms = [(form_of(signed_in, path), {"overlap": overlap}) for _ in range(2)]
    seen = at_once(service, signed_in, forms)
    tokens = [one.token for one in seen]
    assert [one.status for one in seen] == [200, 200]
    assert len({*tokens, made.token, ""}) == 4
    assert [service.admin.outcome(one) for one in tokens].count("VALID") == alive
    assert service.admin.outcome(made.token) == "NOT_FOUND"
    assert len(service.admin.events(target_id=made.api_key.id, actions=ROTATED)) == 2


def _key(service: Service) -> tuple[str, str, Callable[[], str]]:
    key_id = service.admin.create_key(name="k").api_key.id
    return f"/console/keys/{key_id}/edit", "name", lambda: service.admin.key(key_id).name


def _user(service: Service) -> tuple[str, str, Callable[[], str]]:
    user_id = service.admin.create_user("u@example.com").id
    path = f"/console/users/{user_id}/edit"
    return path, "display_name", lambda: service.admin.user(user_id).display_name


@pytest.mark.parametrize("make", [_key, _user])
def test_two_edits_at_once_overwrite_nothing(
    service: Service, signed_in: Site, make: Callable[[Service], tuple[str, str, Callable[[], str]]]
) -> None:
    """One edit is saved. The other page says so, keeps its text, and shows the saved one too."""
    path, field, there = make(service)
    names = ["of the left window", "of the right window"]
    forms = [(form_of(signed_in, path), {field: name}) for name in names]
    seen = at_once(service, signed_in, forms)
    assert sorted(one.status for one in seen) == [303, 409]
    (late,) = [number for number, one in enumerate(seen) if one.status == 409]
    assert there() == names[1 - late]
    assert seen[late].form(path).fields[field] == names[late]
    assert names[1 - late] in seen[late].dialog
    assert signed_in.send(seen[late].form(path)).status == 303
    assert there() == names[late]


def test_a_key_that_is_revoked_and_enabled_or_rotated_at_once_ends_revoked(
    service: Service, signed_in: Site
) -> None:
    """Whoever comes first: afterwards no secret of it works."""
    made = service.admin.create_key(name="k")
    service.admin.disable_key(made.api_key.id)
    one = f"/console/keys/{made.api_key.id}"
    seen = at_once(
        service,
        signed_in,
        [
            (form_of(signed_in, f"{one}/enable"), {}),
            (form_of(signed_in, f"{one}/revoke"), {"reason": "LOST"}),
            (form_of(signed_in, f"{one}/rotate"), {"overlap": "1d"}),
        ],
    )
    assert seen[1].status == 303
    assert {two.status for two in seen} <= {200, 303, 409}
    tokens = [made.token, *(two.token for two in seen if two.token)]
    assert {service.admin.outcome(two) for two in tokens} <= {"REVOKED", "NOT_FOUND"}


def test_a_user_who_is_deleted_while_they_create_keys_leaves_none(
    service: Service, site: Site
) -> None:
    """Their form is answered before or after; a secret that it has shown does not work."""
    user = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    token = service.admin.create_key(role="ROLE_ADMIN", owner_id=user.id).token
    with Site.of(service) as other:
        other.sign_in(service.admin_token)
        form = form_of(other, f"/console/users/{user.id}/delete")
        site.sign_in(token)
        fields = {"name": "late", "role": "DEVELOPER"}
        forms = [site.new_key_form() for _ in range(4)]
        with ThreadPoolExecutor(1) as executor:
            deleted = executor.submit(other.send, form)
            seen = at_once(service, site, [(one, fields) for one in forms])
            assert deleted.result().status == 303
    assert {one.status for one in seen} <= {200, 303, 401}
    assert not site.is_signed_in
    shown = [one.token for one in seen if one.token]
    assert {service.admin.outcome(one) for one in shown} <= {"REVOKED"}
    for one in seen:
        if one.status == 401:
            assert one.form("/console/keys").fields["name"] == "late"
