"""What a path addresses is what Chroma takes it for."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gateway.auth.access import NOTHING_HERE, plan
from gateway.auth.addresses import client_address, counted_as, is_loopback, networks
from gateway.auth.routes import BY_ID, READS, Action, addressed, collection_id
from gateway.auth.scope import Names, Scope
from gateway.proxy.classify import Kind, classify

ROUTES = [
    tuple(line.split())
    for line in (Path(__file__).parents[2] / "routes.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
SCOPE = Scope(Names.of(["acme"]), Names.of(["web"]), Names.of(["pages-*"]))
names = some.text(some.characters(codec="utf-8"), min_size=1, max_size=20)


def filled(template: str, tenant: str, database: str, collection: str) -> bytes:
    values = {
        **dict.fromkeys(("{tenant}", "{tenant_name}"), tenant),
        "{database}": database,
        **dict.fromkeys(("{collection_id}", "{crn}"), collection),
        **dict.fromkeys(("{name}", "{function_name}"), "some"),
    }
    for placeholder, value in values.items():
        template = template.replace(placeholder, quote(value, safe=""))
    return template.encode()


@pytest.mark.parametrize(("method", "template"), ROUTES)
def test_every_route_is_known(method: str, template: str) -> None:
    """And read and write mean the same to the keys as to the gate, which knows them by another table."""
    path = filled(template, "acme", "web", ID)
    action = addressed(method, path).action
    assert action is not Action.UNKNOWN
    assert (action in READS) == (classify(method, path).kind is not Kind.WRITE)


@given(some.sampled_from(ROUTES), names, names, names)
def test_names_arrive_as_they_are(route: tuple[str, str], tenant: str, database: str, collection: str) -> None:
    """Decoded once, whatever stands in them."""
    method, template = route
    to = addressed(method, filled(template, tenant, database, collection))
    if "{tenant" in template:
        assert to.tenant == tenant
    if "{database}" in template:
        assert to.database == database
    if "{collection_id}" in template or "{crn}" in template:
        assert to.collection == collection


@given(some.sampled_from([method for method, _ in ROUTES]), some.binary(max_size=60))
def test_no_path_breaks_it(method: str, rest: bytes) -> None:
    """It is something, or UNKNOWN."""
    for path in (rest, b"/api/v2/tenants/" + rest, b"/api/v2/tenants/a/databases/b/collections/" + rest):
        assert isinstance(addressed(method, path).action, Action)


@given(some.sampled_from(ROUTES), names, names, names)
def test_out_of_scope_is_never_simply_passed_on(
    route: tuple[str, str], tenant: str, database: str, collection: str
) -> None:
    """Whatever the names: a request that addresses something out of scope is answered, checked or filtered."""
    method, template = route
    to = addressed(method, filled(template, tenant, database, collection))
    if "{" not in template:
        return
    in_scope = tenant == "acme" and ("{database}" not in template or database == "web")
    try:
        found = plan(SCOPE, to)
    except Exception:
        assert in_scope or to.action is Action.CREATE_TENANT
        return
    if not in_scope:
        assert found.answer is not None
    if to.action in BY_ID:
        assert found.answer is not None or found.collection_id == collection_id(collection)
    if to.action in (Action.GET_COLLECTION, Action.DELETE_COLLECTION) and not collection.startswith("pages-"):
        assert found.answer is not None
    if to.action in (Action.LIST_COLLECTIONS, Action.COUNT_COLLECTIONS, Action.LIST_DATABASES) and in_scope:
        assert found.lists is not None


def test_a_fragment_hides_nothing() -> None:
    """Chroma drops what follows a `#`; the gateway does not take it for a part of a name."""
    path = b"/api/v2/tenants/acme/databases/web/collections/secret#pages-1"
    assert addressed("GET", path).action is Action.UNKNOWN
    assert plan(SCOPE, addressed("GET", path)).answer is NOTHING_HERE


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        (ID, ID),
        (ID.upper(), ID),
        (ID.replace("-", ""), ID),
        (f"{{{ID}}}", None),
        (f"urn:uuid:{ID}", None),
        (ID[:-1], None),
        (ID + "\n", None),
        (ID[:-1] + "\uff11", None),
        (ID.replace("-", "_"), None),
        ("", None),
    ],
)
def test_ids_are_written_in_one_way(text: str, id_: str | None) -> None:
    """Chroma takes more; whoever has a scope does without."""
    assert collection_id(text) == id_


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "client"),
    [
        ("9.9.9.9", b"1.1.1.1", "", "9.9.9.9"),
        ("9.9.9.9", b"1.1.1.1", "10.0.0.0/8", "9.9.9.9"),
        ("10.0.0.1", b"1.1.1.1", "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", b"6.6.6.6, 1.1.1.1", "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", b"6.6.6.6, 1.1.1.1, 10.0.0.2", "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.0/8", "10.0.0.3"),
        ("10.0.0.1", b"nonsense", "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", b"1.1.1.1, nonsense", "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", None, "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", b"1.1.1.1," + b"10.0.0.2," * 14 + b"10.0.0.2", "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", b"1.1.1.1," + b"10.0.0.2," * 6000 + b"10.0.0.3", "10.0.0.0/8", "10.0.0.2"),
        ("::1", b"2001:db8::1", "::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", b"1.1.1.1", "10.0.0.0/8", "1.1.1.1"),
        ("unknown", b"1.1.1.1", "0.0.0.0/0", "unknown"),
    ],
)
def test_only_our_proxies_are_believed(peer: str, forwarded: bytes | None, trusted: str, client: str) -> None:
    """From the right, as far as each is one of ours."""
    assert client_address(peer, forwarded, networks(trusted)) == client


@given(some.binary(max_size=50))
def test_no_forwarded_header_breaks_it(forwarded: bytes) -> None:
    """It is an address or the peer."""
    assert client_address("10.0.0.1", forwarded, networks("0.0.0.0/0,::/0"))


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:3::6", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("unknown", "unknown"),
    ],
)
def test_a_network_of_ipv6_is_one_visitor(address: str, counted: str) -> None:
    """Its owner has as many addresses as there are requests to send."""
    assert counted_as(address) == counted


def test_loopback() -> None:
    """What only this machine reaches."""
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "", "127.0.0.1.nip.io")))
