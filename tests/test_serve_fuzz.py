"""schemathesis makes requests from the server's own OpenAPI: no answer is a failure of the server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from serving import Server, serving

# its own plugin for pytest is not used: the schema is known only when the server runs
schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis (Python 3.11)")
hypothesis = pytest.importorskip("hypothesis")

# answers are short: what is under test lies before them
OPTIONS = ("--n-ctx", "512", "--max-tokens", "2", "--allow-remote-images", "--slots", "2")
EXAMPLES = 15


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Server]:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    with serving(*OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def operations(fuzzed: Server) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
        return [result.ok() for result in schema.get_all_operations()]


def fuzz(strategy: Any, *, may_be_empty: bool) -> set[int]:
    """Sends the requests of a strategy; the statuses that came. ``may_be_empty``: there may be none to send."""
    seen: set[int] = set()

    @hypothesis.given(strategy)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case: Any) -> None:
        response = case.call(timeout=30)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            error = response.json()["error"]
            if case.path.startswith("/api/"):
                assert isinstance(error, str)
            else:
                fields = (
                    {"message", "type"} if "/messages" in case.path else {"message", "type", "param", "code"}
                )
                assert set(error) == fields
        seen.add(response.status_code)

    try:
        check()
    except hypothesis.errors.Unsatisfiable:  # an operation without anything to get wrong
        assert may_be_empty
    return seen


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_of_the_schema_fails_the_server(fuzzed: Server, operations: list[Any], mode: str) -> None:
    statuses = {
        operation.label: fuzz(
            operation.as_strategy(generation_mode=getattr(schemathesis.GenerationMode, mode)),
            may_be_empty=mode == "NEGATIVE",
        )
        for operation in operations
    }
    assert len(statuses) == 22
    if mode == "POSITIVE":
        assert 200 in statuses["POST /v1/completions"] & statuses["POST /completion"]
        assert 200 in statuses["POST /api/generate"]
    else:
        assert 400 in statuses["POST /v1/chat/completions"] & statuses["POST /api/chat"]
    assert fuzzed.stderr() == ""
