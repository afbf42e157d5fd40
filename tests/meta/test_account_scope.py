"""A query for things of an account needs a decision about authority, and few places make one."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "service" / "keybearer_service"

PLANTED = """
from keybearer.models import Presented
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import Micros
from keybearer_service.storage import AuditQuery, KeyQuery, Page, Reader, UserQuery
from keybearer_service.validation.validator import ANY_KEY, Question


def planted(reader: Reader, scope: AccountScope, account: str) -> None:
    reader.list_api_keys(KeyQuery(scope=scope, now=Micros(0)), Page(limit=1))
    reader.list_api_keys(KeyQuery(scope=account, now=Micros(0)), Page(limit=1))  # refused
    reader.list_users(UserQuery(scope=account), Page(limit=1))  # refused
    reader.list_audit_events(AuditQuery(scope=account), Page(limit=1))  # refused
    KeyQuery(now=Micros(0))  # refused
    reader.user_by_email(account, "a@example.com")  # refused
    reader.live_admins(account)  # refused
    reader.account(account)  # refused
    reader.user(account)  # refused
    reader.api_key(account)  # refused
    Question(Presented("token"), account, ANY_KEY)  # refused
"""


def test_mypy_refuses_a_query_with_a_plain_account_id(tmp_path: Path) -> None:
    """A forgotten decision is an error of type, in every query for things of an account."""
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED, "utf-8")
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary", str(planted)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert checked.stderr == ""
    refused = {
        number
        for number, line in enumerate(PLANTED.splitlines(), start=1)
        if line.endswith("# refused")
    }
    assert {int(line.split(":")[1]) for line in errors} == refused, checked.stdout


def functions_that_make_scopes(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield how a module makes scopes, and the class or function at its top that does."""
    for top in tree.body:
        for node in ast.walk(top):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called.split(".")[-1] in ("AccountScope", "of_installation"):
                    yield called, getattr(top, "name", "")


def makers() -> Mapping[str, AbstractSet[str]]:
    """Return which functions of the service make scopes, by how they make them."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in SERVICE.rglob("*.py"):
        module = ".".join(path.relative_to(SERVICE).with_suffix("").parts)
        for called, name in functions_that_make_scopes(ast.parse(path.read_text("utf-8"))):
            found[called].add(f"{module}.{name}")
    return found


def test_scopes_are_made_where_authority_is_decided() -> None:
    """`usecases.access` decides for callers; two others speak for the installation itself."""
    assert makers() == {
        "AccountScope": {
            "domain.account_scope.AccountScope",
            "usecases.access.authorize",
            "usecases.access.authorize_question",
            "usecases.access.gateway_scopes",
            "usecases.access.question_reach_of",
            "usecases.access.reach_of",
            "usecases.access.scope_of_holder",
            "usecases.access.scope_of_nobody",
            "usecases.access.scope_of_sign_in",
        },
        # The mutations of commands on the data directory; and the start of a server, which looks
        # for the accounts that its settings name.
        "AccountScope.of_installation": {
            "app._bind_account",
            "app.gateway_routes_of",
            "usecases.mutations.Mutations",
        },
    }


@pytest.mark.parametrize(
    "line",
    ["AccountScope('A')", "account_scope.AccountScope(None)", "AccountScope.of_installation('x')"],
)
def test_a_scope_made_elsewhere_is_noticed(line: str) -> None:
    """The check sees a maker by whatever name it is called."""
    tree = ast.parse(f"class K:\n    def f(self):\n        return {line}\n")
    assert [name for _, name in functions_that_make_scopes(tree)] == ["K"]


def test_authority_over_accounts_is_refused_in_one_module() -> None:
    """Only `usecases.access` refuses an account; the rule of a method is judged beside its role."""
    raising = {
        ".".join(path.relative_to(SERVICE).with_suffix("").parts)
        for path in SERVICE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "OperatorOnly"
    }
    assert raising == {"usecases.access", "validation.validator"}
