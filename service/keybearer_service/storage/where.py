"""The conditions of a statement, with their values."""

from collections.abc import Sequence

from keybearer_service.domain.account_scope import AccountScope


class Where:
    """The conditions of a statement and their values; text is never built from a value."""

    def __init__(self, condition: str = "", *values: object) -> None:
        self.conditions = [condition] if condition else []
        self.values = list(values)

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def __add__(self, other: "Where") -> "Where":
        both = Where()
        both.conditions = self.conditions + other.conditions
        both.values = self.values + other.values
        return both

    def __str__(self) -> str:
        return f" WHERE {' AND '.join(self.conditions)}" if self.conditions else ""

    def add(self, condition: str, *values: object) -> None:
        """Add a condition."""
        self.conditions.append(condition)
        self.values.extend(values)

    def add_any(self, column: str, values: Sequence[int]) -> None:
        """Add that a column has one of the values; without any, add nothing."""
        if values:
            self.add(f"{column} IN ({', '.join('?' * len(values))})", *map(int, values))


def within(scope: AccountScope, column: str = "account_id") -> Where:
    """Return the condition that a row belongs to a scope."""
    return Where() if scope.account_id is None else Where(f"{column} = ?", scope.account_id)
