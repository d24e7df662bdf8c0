"""Whatever openapi.json allows, and what it does not, is answered as it documents, and never with 500."""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_vision.predict.search import Index
from lit_vision.serve.model_app import OPTIONS
from lit_vision.serve.predictor import INCLUDES
from lit_vision.serve.text_search import LONGEST_TEXT, MOST_RESULTS
from lit_vision.weights.model_metadata import SHARED_SPACE

DOCUMENT = json.loads((Path(__file__).parents[2] / "lit_vision/serve/static/openapi.json").read_text())
CALLS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def resolve(part: Any) -> Any:
    while isinstance(part, dict) and "$ref" in part:
        place = DOCUMENT
        for key in part["$ref"][2:].split("/"):
            place = place[key]
        part = place
    return part


def wrong_or_right(right: st.SearchStrategy, wrong: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(right, right, wrong)


def values_of(schema: dict[str, Any], image: bytes) -> st.SearchStrategy:
    """Return what a schema describes, and sometimes something else."""
    schema = resolve(schema)
    if "oneOf" in schema:
        return st.one_of([values_of(one, image) for one in schema["oneOf"]])
    kind = schema["type"]
    if kind == "object":
        fields = {name: values_of(inner, image) for name, inner in schema["properties"].items()}
        needed = {name: fields.pop(name) for name in schema.get("required", ())}
        return wrong_or_right(st.fixed_dictionaries(needed, optional=fields), json_values)
    if kind == "array":
        return wrong_or_right(st.lists(values_of(schema["items"], image), max_size=4), json_values)
    if kind == "string":
        files = st.just(image) | st.binary(max_size=50) | st.integers(0, len(image)).map(lambda end: image[:end])
        if schema.get("format") == "base64":
            return wrong_or_right(files.map(lambda data: base64.b64encode(data).decode()), json_values)
        return files if schema.get("format") == "binary" else wrong_or_right(st.text(max_size=20), json_values)
    numbers = st.integers() if kind == "integer" else st.floats()
    low, high = schema.get("minimum", -1), schema.get("maximum", 10)
    right = st.integers(low, high) if kind == "integer" else st.floats(low, high)
    return wrong_or_right(right, numbers)


def query_of(call: dict[str, Any]) -> st.SearchStrategy[dict[str, str]]:
    fields = {}
    for parameter in call.get("parameters", ()):
        if parameter["in"] == "query":
            text = values_of(parameter["schema"], b"").map(str) | st.text(max_size=10)
            if parameter["name"] == "include":
                text |= st.lists(st.sampled_from(sorted(INCLUDES)), max_size=4).map(",".join)
            fields[parameter["name"]] = text
    return st.fixed_dictionaries({}, optional=fields)


def body_of(call: dict[str, Any], image: bytes) -> st.SearchStrategy[dict[str, Any]]:
    """Return keyword arguments of the client's request."""
    if "requestBody" not in call:
        return st.just({})
    content = resolve(call["requestBody"])["content"]
    files = values_of(content["multipart/form-data"]["schema"]["properties"]["image"]["items"], image)
    forms = st.lists(st.tuples(st.text(max_size=5), st.tuples(st.text(min_size=1, max_size=9), files)), max_size=4)
    values = values_of(content["application/json"]["schema"], image)
    kinds = st.sampled_from([*content, "application/json; charset=utf-16", "multipart/form-data; boundary=x", "x"])
    return st.one_of(
        forms.map(lambda parts: {"files": parts}),
        values.map(lambda value: {"content": json.dumps(value), "headers": {"Content-Type": "application/json"}}),
        st.tuples(st.binary(max_size=60), kinds).map(lambda x: {"content": x[0], "headers": {"Content-Type": x[1]}}),
    )


def check(call: dict[str, Any], answer: Any) -> None:
    """Check an answer against the document."""
    assert str(answer.status_code) in call["responses"], answer.text
    for kind, content in resolve(call["responses"][str(answer.status_code)]).get("content", {}).items():
        assert answer.headers["content-type"].partition(";")[0] == kind
        if "schema" in content:
            schema = {**content["schema"], "components": DOCUMENT["components"]}
            jsonschema.Draft202012Validator(schema).validate(answer.json())


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("masks", "segmenter", "features", "words")]


@pytest.fixture(scope="module", params=["vit", *SLOW])
def served(request, serve):
    models = {"features": Path(__file__).parents[1] / "compatibility/files/exports/simclr.onnx"}
    model = models.get(request.param, request.param)
    more = {}
    if request.param == "words":
        settings = {"space": SHARED_SPACE}
        more["index"] = Index(Path("i"), list("abc"), np.eye(3, 8, dtype=np.float32), settings)
    with serve(model, **more) as client:
        yield client


@pytest.mark.parametrize(("path", "method"), CALLS)
def test_any_request_is_answered_as_documented(served, upload, path, method) -> None:
    call = DOCUMENT["paths"][path][method]
    numbers = st.integers(-2, 10**30).map(str) | st.text(min_size=1, max_size=5).filter(lambda text: text[0] != ".")

    @EXAMPLES
    @given(query=query_of(call), body=body_of(call, upload["image"]), number=numbers)
    def run(query, body, number) -> None:
        address = path.format(number=quote(number, safe="", errors="replace"))
        check(call, served.request(method, address, params=query, **body))

    run()


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "X"]), path=st.text(max_size=30), body=st.binary(max_size=30)
)
@EXAMPLES
def test_any_path_and_method_is_answered(client, method, path, body) -> None:
    assert client.request(method, "/" + quote(path, errors="replace"), content=body).status_code < 500


def test_good_requests_are_among_the_answers(served, place, upload) -> None:
    """Answers of each task fit the document too when they are not errors."""
    files = {"image": (place / "pictures/001.png").read_bytes()}
    for path in ("/v1/predict", "/v1/embed"):
        answer = served.post(path, files=files)
        assert answer.status_code in (200, 404)
        check(DOCUMENT["paths"][path]["post"], answer)
    check(DOCUMENT["paths"]["/v1/model"]["get"], served.get("/v1/model"))


def test_the_document_is_complete(client) -> None:
    jsonschema.validate(
        client.get("/openapi.json").json(), {"type": "object", "required": ["openapi", "info", "paths"]}
    )
    routes = {route.path.replace(":int", "") for route in client.app.app.routes}
    assert set(DOCUMENT["paths"]) == routes - {"/", "/api", "/openapi.json", "/static/{name}", "/session"}
    search = {p["name"]: p["schema"] for p in DOCUMENT["paths"]["/v1/search"]["get"]["parameters"]}
    assert (search["text"]["maxLength"], search["top_k"]["maximum"]) == (LONGEST_TEXT, MOST_RESULTS)
    named = {p["name"] for p in DOCUMENT["paths"]["/v1/predict"]["post"]["parameters"]}
    assert named == {*OPTIONS, "include"}
    texts = json.dumps(DOCUMENT)
    assert all(name in texts for name in INCLUDES)
