"""Component identifiers, RFC 9421 §2."""

import pytest
from http_sf import Token

from pch.httpsig.component import ComponentId, bare, parse_component
from pch.httpsig.errors import ComponentError

VALID = [
    ("content-digest", (), '"content-digest"'),
    ("content-digest", (("sf", True),), '"content-digest";sf'),
    ("example-dict", (("key", "a"),), '"example-dict";key="a"'),
    ("example-dict", (("key", 'quo"te\\'),), '"example-dict";key="quo\\"te\\\\"'),
    ("example-dict", (("sf", True), ("key", "a")), '"example-dict";sf;key="a"'),
    ("x", (("bs", True),), '"x";bs'),
    ("x", (("req", True), ("tr", True)), '"x";req;tr'),
    ("@method", (), '"@method"'),
    ("@method", (("req", True),), '"@method";req'),
    ("@request-target", (), '"@request-target"'),
    ("@query-param", (("name", "a"),), '"@query-param";name="a"'),
    ("@query-param", (("name", "a"), ("req", True)), '"@query-param";name="a";req'),
    ("@status", (), '"@status"'),
]

REFUSED = [
    ("", ()),
    ("Content-Digest", ()),
    ("content digest", ()),
    ("content-digest:", ()),
    ("content-digést", ()),
    ("a\n", ()),
    ("x" * 257, ()),
    ("@", ()),
    ("@Method", ()),
    ("@unknown", ()),
    ("@signature-params", ()),
    ("@method", (("sf", True),)),
    ("@method", (("tr", True),)),
    ("@method", (("name", "a"),)),
    ("@status", (("req", True),)),
    ("@query-param", ()),
    ("@query-param", (("req", True),)),
    ("@query-param", (("name", True),)),
    ("@query-param", (("name", "a"), ("sf", True))),
    ("x", (("unknown", True),)),
    ("x", (("name", "a"),)),
    ("x", (("sf", False),)),
    ("x", (("sf", "a"),)),
    ("x", (("sf", 1),)),
    ("x", (("key", True),)),
    ("x", (("key", Token("a")),)),
    ("x", (("key", b"a"),)),
    ("x", (("bs", True), ("sf", True))),
    ("x", (("bs", True), ("key", "a"))),
    ("x", (("sf", True), ("sf", True))),
]


@pytest.mark.parametrize(("name", "params", "serialised"), VALID)
def test_component_is_serialised_as_a_structured_field_item(
    name: str, params: tuple[tuple[str, str | bool], ...], serialised: str
) -> None:
    component = parse_component((name, dict(params)))
    assert component == ComponentId(name, params)
    assert component.serialised == serialised


@pytest.mark.parametrize(("name", "params"), REFUSED)
def test_component_that_rfc_9421_does_not_define_is_refused(name: str, params: tuple[tuple[str, bool], ...]) -> None:
    with pytest.raises(ComponentError):
        ComponentId(name, params)


@pytest.mark.parametrize("value", [Token("@method"), 1, True, b"@method", None])
def test_component_that_is_not_a_string_is_refused(value: object) -> None:
    with pytest.raises(ComponentError):
        parse_component((value, {}))


def test_identity_leaves_out_the_order_of_parameters_and_nothing_else() -> None:
    one = ComponentId("x", (("req", True), ("key", "a")))
    other = ComponentId("x", (("key", "a"), ("req", True)))
    assert one.identity == other.identity
    assert one.serialised != other.serialised
    assert one.identity != ComponentId("x", (("key", "b"), ("req", True))).identity
    assert one.identity != ComponentId("y", one.params).identity
    assert bare("x").identity != ComponentId("x", (("sf", True),)).identity


def test_param_gives_the_value_or_none() -> None:
    component = ComponentId("x", (("sf", True), ("key", "a")))
    assert component.param("sf") is True
    assert component.param("key") == "a"
    assert component.param("bs") is None
