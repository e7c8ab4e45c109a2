"""Whatever is sent to whatever route: an answer that was meant, never a bug (500)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient

from server.app import create_app
from server.bootstrap import Runtime, build
from server.services.people.roles import SYSTEM, Role
from server.settings import Settings

ODD_TEXT: Final = ["", "a", "\0", '"', "'", "..", "a=b", '"=x', "a" * 300, "1e999", f"sha256:{'0' * 64}"]
ODD_NUMBERS: Final = [0, 1, -1, 2**31, 2**63, 10**30, 0.5, 1e18, 1e308, -1e308]
ODD_SEGMENTS: Final = [
    "1", "0", "-1", "9223372036854775808", "1" * 400, "a", "..%2f..%2fetc", "%2e%2e%2froot.json", "%00",
    "%0d%0aX:%20y", "1.root.json", f"sha256:{'0' * 64}", "'",
]  # fmt: skip
ODD_BODIES: Final = [b"", b"{", b"null", b"\xff\xfe", b"[" * 5000, b'{"a":NaN}', b"1" * 6000]
#: What would end the login that the test stands on.
LEFT_OUT: Final = {("delete", "/api/v1/tokens/{token_id}")}
anything = st.recursive(
    st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | st.sampled_from(ODD_TEXT),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(ODD_TEXT), inner, max_size=2),
    max_leaves=4,
)
Schema = dict[str, Any]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    made = build(Settings(data=tmp_path_factory.mktemp("fuzz")))
    yield made
    made.services.database.close()


@pytest.fixture(scope="module")
def client(runtime: Runtime) -> Iterator[TestClient[Litestar]]:
    secret = runtime.services.accounts.tokens.add(SYSTEM, "fuzz", Role.ADMIN)[1]
    with TestClient(create_app(runtime.services), raise_server_exceptions=False) as found:
        found.headers["Authorization"] = f"Bearer {secret}"
        yield found


@pytest.fixture(scope="module")
def document(client: TestClient[Litestar]) -> Schema:
    read: Schema = client.get("/api/openapi.json").json()
    return read


def fitting(schema: Schema, document: Schema) -> st.SearchStrategy[Any]:
    """Return values that fit a schema nearly always, so that they come further than the first check."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for several in ("oneOf", "anyOf"):
        if several in schema:
            return st.one_of([fitting(one, document) for one in schema[several]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema.get("type")
    made = [_of(kind, schema, document) for kind in (kinds if isinstance(kinds, list) else [kinds])]
    return st.integers(0, 11).flatmap(lambda n: anything if n == 0 else st.one_of(made))


def _of(kind: str | None, schema: Schema, document: Schema) -> st.SearchStrategy[Any]:
    if kind == "object":
        fields = {name: fitting(of, document) for name, of in schema.get("properties", {}).items()}
        needed = {name: fields[name] for name in schema.get("required", [])}
        more = schema.get("additionalProperties")
        if isinstance(more, dict) and not fields:
            return st.dictionaries(st.sampled_from(ODD_TEXT), fitting(more, document), max_size=2)
        return st.fixed_dictionaries(needed, optional={k: v for k, v in fields.items() if k not in needed})
    if kind == "array":
        return st.lists(fitting(schema.get("items", {}), document), max_size=2)
    simple = {
        "string": st.sampled_from(ODD_TEXT),
        "integer": st.sampled_from([n for n in ODD_NUMBERS if isinstance(n, int)]),
        "number": st.sampled_from(ODD_NUMBERS),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return simple.get(kind or "", anything)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_no_route_answers_nonsense_with_a_bug(
    data: st.DataObject, client: TestClient[Litestar], document: Schema
) -> None:
    """A hostile or careless program holds an admin's token and tries every route with odd values."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if (method, path) in LEFT_OUT:
                continue
            url = path
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    segment = data.draw(st.sampled_from(ODD_SEGMENTS))
                    url = url.replace(f"{{{parameter['name']}}}", segment)
            query = {
                parameter["name"]: str(data.draw(st.sampled_from([*ODD_TEXT, *ODD_NUMBERS])))
                for parameter in operation.get("parameters", [])
                if parameter["in"] == "query" and data.draw(st.booleans())
            }
            body, headers = b"", {}
            if "requestBody" in operation:
                kind, spec = next(iter(operation["requestBody"]["content"].items()))
                well = json.dumps(data.draw(fitting(spec["schema"], document))).encode()
                body = well if data.draw(st.integers(0, 7)) else data.draw(st.sampled_from(ODD_BODIES))
                headers = {"content-type": kind}
            answer = client.request(method, url, params=query, content=body, headers=headers)
            # 503: no broker runs behind this application, and it says so
            assert answer.status_code < 500 or answer.status_code == 503, (
                method,
                url,
                query,
                body,
                answer.text,
            )
