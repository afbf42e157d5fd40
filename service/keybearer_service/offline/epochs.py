"""Begins a new history of revisions, as an installation does that begins again elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import SubjectKind
from keybearer_service.usecases.mutations import Mutation

EPOCH_LENGTH: Final = 16


def begin_epoch(
    mutation: Mutation,
    entropy: Entropy,
    action: AuditAction,
    changes: Sequence[FieldChange] = (),
) -> str:
    """Draw a new epoch, in which no verdict of before may be kept, and record why.

    Args:
        mutation: The change in which it begins.
        entropy: What it is drawn from.
        action: Why.
        changes: More for the audit event.
    """
    before = mutation.tx.installation()
    epoch = entropy.base62(EPOCH_LENGTH)
    mutation.tx.put_installation(replace(before, epoch=epoch))
    mutation.record(
        action,
        account_id=before.operator_account_id,
        target_type=AuditTargetType.INSTALLATION,
        target_id=before.operator_account_id,
        changes=(FieldChange("epoch", before.epoch, epoch), *changes),
    )
    mutation.invalidate(SubjectKind.EVERYTHING, "", before.operator_account_id)
    return epoch
