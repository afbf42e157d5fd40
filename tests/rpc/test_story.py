"""The behaviour the product exists for, from a user to a revoked key, over a real connection."""

from datetime import timedelta

from fakes import FakeClock
from harness import Service, Stubs, message, refused
from keybearer.v1 import api_key_service_pb2, user_service_pb2
from keybearer_service.domain.clock import MINUTE


def test_a_demoted_owners_key_is_developer_at_the_very_next_validation(
    service: Service, admin: Stubs
) -> None:
    """The effective role follows the owner's current role, down and up."""
    owner = admin.create_user("owner@example.com")
    token = admin.create_key(role="ROLE_ADMIN", owner_id=owner.id).token

    def set_role(role: str) -> None:
        admin.users.UpdateUser(
            message(
                user_service_pb2.UpdateUserRequest,
                user={"id": owner.id, "role": role},
                update_mask={"paths": ["role"]},
            )
        )

    set_role("ROLE_DEVELOPER")
    assert admin.validate(token).effective_role == 2
    assert admin.outcome(token, required_role="ROLE_ADMIN") == "ROLE_INSUFFICIENT"
    assert refused(service.as_token(token).create_key).reason == "ROLE_INSUFFICIENT"
    set_role("ROLE_ADMIN")
    assert admin.validate(token).effective_role == 3


def test_both_secrets_work_during_the_overlap_and_one_after_it(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """A rotation with overlap gives public time."""
    created = admin.create_key()
    rotated = admin.keys.RotateApiKey(
        message(
            api_key_service_pb2.RotateApiKeyRequest,
            id=created.api_key.id,
            overlap=timedelta(minutes=10),
        )
    )
    assert admin.outcome(created.token) == admin.outcome(rotated.token) == "VALID"
    clock.advance(10 * MINUTE)
    assert admin.outcome(created.token) == "NOT_FOUND"
    assert admin.outcome(rotated.token) == "VALID"


def test_a_deleted_users_keys_are_revoked_and_nobody_elses(admin: Stubs) -> None:
    """Deleting a user revokes exactly the keys the user owns."""
    owner = admin.create_user("owner@example.com")
    owned = admin.create_key(owner_id=owner.id)
    other = admin.create_key()

    answer = admin.users.DeleteUser(user_service_pb2.DeleteUserRequest(id=owner.id))

    assert list(answer.revoked_key_ids) == [owned.api_key.id]
    assert admin.outcome(owned.token) == "REVOKED"
    assert admin.key(owned.api_key.id).revocation_reason == 5
    assert admin.outcome(other.token) == "VALID"
