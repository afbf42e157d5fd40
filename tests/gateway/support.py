"""What the gateway tests stand on: a service with its HTTP port, keys for every case, upstreams."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import grpc
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fakes import FakeClock, SeededEntropy
from harness import (
    ReplaceableStore,
    Service,
    Stubs,
    initialise,
    make_app,
    message,
    open_replaceable,
    raising,
    store_of,
)
from keybearer.v1 import account_service_pb2, api_key_service_pb2, user_service_pb2
from keybearer_service.app import App
from keybearer_service.domain.clock import DAY, SECOND
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.net.addresses import Address, Listener
from keybearer_service.net.bounds import HTTP, Bounds
from keybearer_service.net.tls import TlsFiles
from keybearer_service.storage import StoreLockedError

LOOPBACK = "127.0.0.1"
IDENTITY = (
    "x-keybearer-key-id",
    "x-keybearer-key-name",
    "x-keybearer-account",
    "x-keybearer-owner",
    "x-keybearer-owner-email",
    "x-keybearer-role",
    "x-keybearer-scopes",
)


@dataclass
class Gated:
    """A running service, and how gateways reach it."""

    service: Service
    clock: FakeClock
    http: httpx.Client

    @property
    def admin(self) -> Stubs:
        return self.service.admin

    @property
    def store(self) -> ReplaceableStore:
        return store_of(self.service.app)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Take the store away for a while: nothing can be judged."""
        locked = raising(StoreLockedError("locked by the test"))
        with self.store.replacing(
            lookup=locked, lookup_many=locked, caller_version=locked, read=locked
        ):
            yield


@contextmanager
def gated(
    path: Path,
    clock: FakeClock,
    entropy: SeededEntropy,
    *,
    tls: TlsFiles | None = None,
    metrics: bool = False,
    metrics_tls: TlsFiles | Literal["as everywhere"] | None = "as everywhere",
    is_open: bool = False,
    accounts: str = "",
    bounds: Bounds = HTTP,
) -> Iterator[Gated]:
    """Run a fresh service with an HTTP port."""
    data_dir, created = initialise(path, clock, entropy)
    of_metrics = tls if metrics_tls == "as everywhere" else metrics_tls
    app = started(
        data_dir,
        clock,
        entropy,
        HttpConfig(
            gateway=Listener(address=Address(LOOPBACK, 0), tls=tls),
            metrics=Listener(address=Address(LOOPBACK, 0), tls=of_metrics) if metrics else None,
            gateway_bounds=bounds,
            accounts=accounts or (created.account.id if is_open else ""),
            is_open=is_open,
        ),
    )
    service = Service(
        app=app,
        data_dir=data_dir,
        admin_token=created.issued.token,
        account_id=created.account.id,
        admin_user_id=created.user.id,
        admin_key_id=created.issued.key.id,
    )
    scheme = "http" if tls is None else "https"
    base_url = f"{scheme}://{LOOPBACK}:{app.http_port}"
    with ending(service), httpx.Client(base_url=base_url, verify=False) as http:  # noqa: S501 - made up
        yield Gated(service, clock, http)


@contextmanager
def ending(service: Service) -> Iterator[None]:
    """Close a service at the end."""
    try:
        yield
    finally:
        service.close()


def started(data_dir: DataDir, clock: FakeClock, entropy: SeededEntropy, http: HttpConfig) -> App:
    """Serve an installation on free ports."""
    app = make_app(data_dir, clock, entropy, http=http, opener=open_replaceable)
    app.start()
    return app


@dataclass
class Cast:
    """Keys for every case, in the operator account and in a tenant's."""

    gateway: str
    """A VALIDATOR of the operator account."""
    wide_gateway: str
    """The same, whose label lets it ask about every account over HTTP."""
    naming_gateway: str
    """The same, whose label names the tenant."""
    tenant_gateway: str
    """A VALIDATOR of the tenant."""
    wide_tenant_gateway: str
    """The same, with a label that would let it ask about every account."""
    tenant_account: str
    developer_gateway: str
    """A DEVELOPER of the operator account: no gateway."""
    good: str
    """A DEVELOPER with clusters.read, under a name that is not ASCII."""
    good_key_id: str
    admin: str
    tenant: str
    """A DEVELOPER of the tenant."""
    revoked: str
    disabled: str
    expired: str
    orphaned: str
    """Its owner was deleted."""
    superseded: str
    """The old secret of a rotation without overlap."""
    demoted: str
    """An ADMIN key whose owner is a DEVELOPER by now."""
    unknown: str = "kbear1_" + "A" * 16 + "_" + "b" * 43 + "000000"
    malformed: str = "not-a-token"


KEY_NAME = "Schlüssel 100%"
KEY_NAME_OUT = "Schl%C3%BCssel 100%25"
SCOPES = ["clusters.read", "logs.*"]


def cast(world: Gated) -> Cast:
    """Make the keys. The clock has moved when this returns: one of them has expired."""
    admin = world.admin
    good = admin.create_key(name=KEY_NAME, scopes=SCOPES)
    created = admin.accounts.CreateAccount(
        account_service_pb2.CreateAccountRequest(
            name="tenant", admin_email="boss@example.com", admin_display_name="Boss"
        )
    )
    tenant = world.service.as_token(created.token)
    revoked, disabled, superseded = (admin.create_key() for _ in range(3))
    admin.keys.RevokeApiKey(
        message(
            api_key_service_pb2.RevokeApiKeyRequest,
            id=revoked.api_key.id,
            reason="REVOCATION_REASON_LOST",
        )
    )
    admin.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(id=disabled.api_key.id))
    admin.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(id=superseded.api_key.id))
    leaver = admin.create_user("leaver@example.com")
    orphaned = admin.create_key(owner_id=leaver.id).token
    admin.users.DeleteUser(user_service_pb2.DeleteUserRequest(id=leaver.id))
    demoted_user = admin.create_user("demoted@example.com")
    demoted = admin.create_key(role="ROLE_ADMIN", owner_id=demoted_user.id).token
    admin.users.UpdateUser(
        message(
            user_service_pb2.UpdateUserRequest,
            user={"id": demoted_user.id, "role": "ROLE_DEVELOPER"},
            update_mask={"paths": ["role"]},
        )
    )
    expired = admin.create_key(expire_time={"seconds": (world.clock.now() + DAY) // SECOND}).token
    world.clock.advance(2 * DAY)
    return Cast(
        gateway=admin.create_key(role="ROLE_VALIDATOR", name="gateway").token,
        wide_gateway=gateway_key(admin, "*"),
        naming_gateway=gateway_key(admin, f"{'A' * 16}, {created.account.id}"),
        tenant_gateway=tenant.create_key(role="ROLE_VALIDATOR", name="gateway").token,
        wide_tenant_gateway=gateway_key(tenant, "*"),
        tenant_account=created.account.id,
        developer_gateway=admin.create_key(role="ROLE_DEVELOPER").token,
        good=good.token,
        good_key_id=good.api_key.id,
        admin=admin.create_key(role="ROLE_ADMIN").token,
        tenant=tenant.create_key().token,
        revoked=revoked.token,
        disabled=disabled.token,
        expired=expired,
        orphaned=orphaned,
        superseded=superseded.token,
        demoted=demoted,
    )


def gateway_key(stubs: Stubs, accounts: str) -> str:
    """Make a VALIDATOR whose label names accounts."""
    labels = {"keybearer/gateway-accounts": accounts}
    return stubs.create_key(role="ROLE_VALIDATOR", name="gateway", labels=labels).token


# --- upstreams ------------------------------------------------------------------------------------


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        seen = [[name.lower(), value] for name, value in self.headers.items()]
        body = json.dumps({"path": self.path, "headers": seen}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def http_upstream() -> Iterator[int]:
    """Serve an application that answers what it was sent; yields its port."""
    server = ThreadingHTTPServer((LOOPBACK, 0), _Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _seen(context: grpc.ServicerContext) -> bytes:
    return json.dumps(
        [[name, value] for name, value in context.invocation_metadata() if isinstance(value, str)]
    ).encode()


ARITIES = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


def _echo_handlers() -> dict[str, Any]:
    def unary(_request: bytes, context: grpc.ServicerContext) -> bytes:
        return _seen(context)

    def answers(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield _seen(context)
        yield _seen(context)

    def collects(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        assert len(list(requests)) == 2
        return _seen(context)

    def talks(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            yield _seen(context)

    return {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(answers),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(collects),
        "StreamStream": grpc.stream_stream_rpc_method_handler(talks),
    }


@contextmanager
def grpc_upstream() -> Iterator[int]:
    """Serve demo.v1.EchoService and demo.v1.AdminService in all arities; yields the port."""
    # Room for the largest identity; gRPC begins to refuse at 8 KiB.
    limits = [("grpc.max_metadata_size", 64 * 1024), ("grpc.absolute_max_metadata_size", 64 * 1024)]
    server = grpc.server(ThreadPoolExecutor(8), options=limits)
    for name in ("demo.v1.EchoService", "demo.v1.AdminService"):
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, _echo_handlers()),)
        )
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def call_arity(channel: Any, method: str, metadata: list[tuple[str, str]]) -> dict[str, str]:
    """Call a method of the gRPC upstream by its arity; answer what the upstream was sent.

    Raises:
        grpc.RpcError: It was refused.
    """
    arity = method.rpartition("/")[2]
    kwargs: dict[str, Any] = {"metadata": metadata, "timeout": 10}
    if arity == "UnaryUnary":
        seen = channel.unary_unary(method)(b"x", **kwargs)
    elif arity == "UnaryStream":
        first, second = channel.unary_stream(method)(b"x", **kwargs)
        assert first == second
        seen = first
    elif arity == "StreamUnary":
        seen = channel.stream_unary(method)(iter([b"x", b"y"]), **kwargs)
    else:
        first, second = channel.stream_stream(method)(iter([b"x", b"y"]), **kwargs)
        seen = first
    names: dict[str, str] = {}
    for name, value in json.loads(seen):
        assert name not in names or not name.startswith("x-keybearer"), f"{name} came twice"
        names[name] = value
    return names


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        port: int = one.getsockname()[1]
        return port


@dataclass
class Upstreams:
    """Where the proxies lead to."""

    http: int
    grpc: int
    extra: dict[str, int] = field(default_factory=dict)


def tls_files(directory: Path, name: str, *, with_client_ca: bool = False) -> TlsFiles:
    """Write a fresh key and a certificate signed by itself, over those that are there."""
    directory.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, content in (("key.pem", secret), ("cert.pem", certificate)):
        # Another file under the same name, as those who renew certificates do it.
        (directory / f"new-{file}").write_bytes(content)
        (directory / f"new-{file}").replace(directory / file)
    return TlsFiles(
        certificate=directory / "cert.pem",
        key=directory / "key.pem",
        client_ca=directory / "cert.pem" if with_client_ca else None,
    )
