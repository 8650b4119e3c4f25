"""The YAML reader: what scalars mean, what is refused, and that no text breaks it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rmtrain.recipe.faults import Source, recipe_error
from rmtrain.recipe.yaml12 import Document, parse_document


def read(text: str) -> Document:
    return parse_document(Source("r.yaml", text))


def messages(text: str) -> str:
    return f"error: {recipe_error(read(text).faults)}"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2e-5", 2e-5),
        ("1e-5", 1e-5),
        ("5.0e-5", 5e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("+1.5", 1.5),
        ("0", 0),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("nan", "nan"),
        ("'2e-5'", "2e-5"),
        ('"null"', "null"),
        ("<<", "<<"),
        ("=", "="),
        ("org/name@rev", "org/name@rev"),
        ("[1, [2e1], {a: off}]", [1, [20.0], {"a": "off"}]),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(written: str, meant: object) -> None:
    document = read(f"key: {written}")
    assert document.faults == []
    value = document.value["key"]
    assert value == meant
    assert type(value) is type(meant)


def test_keys_are_taken_as_written() -> None:
    assert read("{on: 1, 1: 2, null: 3, 2e-5: 4}").value == {"on": 1, "1": 2, "null": 3, "2e-5": 4}


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: &x 1\nb: *x", "2:1", "b: aliases (*name) are not allowed"),
        ("a: &x [*x]", "1:4", "a[0]: aliases (*name) are not allowed"),
        ("a: *x", "1:4", "not valid YAML: found undefined alias"),
        ("a: !!python/object:os.system {}", "1:4", "a: tags (!name) are not allowed"),
        ("a: !!int 5", "1:4", "a: tags (!name) are not allowed"),
        ("!x a: 1", "1:1", "a: tags (!name) are not allowed"),
        ("a: 1\nb: 2\na: 3", "3:1", "a: duplicate key: line 1 has it already"),
        ("a: {b: 1,\n    b: 2}", "2:5", "a.b: duplicate key: line 1 has it already"),
        ("a: .nan", "1:4", "a: .nan is not a finite number"),
        ("a: [1, -.inf]", "1:8", "a[1]: -.inf is not a finite number"),
        ("a: 1e999", "1:4", "a: a number too large or too long"),
        (f"a: {10**30}", "1:4", "a: a number too large or too long"),
        ("a: " + "1" * 5000, "1:4", "a: a number too large or too long"),
        ("a:\n  b:\n  c: 1", "2:3", "a.b: has no value"),
        ('a: "\\e[31m"', "1:4", "a: control character '\\x1b' in a text"),
        ('a: "\\ud800"', "1:4", "a: control character '\\ud800' in a text"),
        ("? [a]\n: 1", "1:3", "a key must be a name"),
        ("a: 1\n---\nb: 2", "2:1", "not valid YAML: expected a single document in the stream but found another"),
        ("a:\n\tb: 1", "2:1", "not valid YAML"),
        ("a: b: c", "1:5", "not valid YAML: mapping values are not allowed here"),
        ("a: [1, 2", "1:9", "not valid YAML"),
        ("a: b\x07", "1:5", "a character that YAML does not allow"),
        ("[\n" + "1,\n" * 1001 + "]", "1001:1", "more than 1,000 values"),
    ],
)
def test_what_a_recipe_may_not_hold_is_named_with_its_place(text: str, place: str, message: str) -> None:
    shown = messages(text)
    assert f"error: {message}" in shown
    assert f"--> r.yaml:{place}\n" in shown


def test_an_alias_bomb_is_refused_without_being_expanded() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "aliases (*name) are not allowed" in messages("\n".join(lines))


def test_faults_that_leave_the_syntax_whole_are_reported_together() -> None:
    document = read("a: &x 1\nb: *x\nc: .nan\na: 2\nd:\n")
    assert [fault.key for fault in document.faults] == ["b", "c", "a", "d"]
    assert document.complete


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "\ufeff"])
def test_an_empty_text_says_so(text: str) -> None:
    assert "the recipe is empty" in messages(text)


@pytest.mark.parametrize("text", ["[" * 3000, "- " * 3000])
def test_what_is_nested_too_deeply_is_refused(text: str) -> None:
    assert messages(text).startswith("error: nested too deeply\n --> r.yaml\n")


def test_a_text_beyond_the_limit_is_refused() -> None:
    assert "longer than 100,000 characters" in messages("#" * 100_001)


def test_a_section_given_twice_is_read_with_the_keys_of_both() -> None:
    assert read("a: {b: 1}\na: {c: 2}").value == {"a": {"b": 1, "c": 2}}


_PIECES = "a b : :_ -_ { } [ ] , &x_ *x !!str_ ! | > ' \" \\ # ?_ % --- ... 1e5 .nan ~ @ << é 你"
yaml_like = st.lists(
    st.sampled_from(
        [
            *(piece.replace("_", " ") for piece in _PIECES.split()),
            "\n",
            "\n  ",
            "\t",
            "\r",
            "\x85",
            "\u2028",
            "\x00",
            "\ufeff",
            '"\\UFFFFFFFF"',
            '"\\ud800"',
            "%YAML 1.1\n---\n",
        ]
    ),
    max_size=40,
).map("".join)


@settings(max_examples=250, deadline=None)
@given(st.text(max_size=80) | yaml_like)
@example('"\\U00110000"')
@example("%YAML " + "1" * 5000 + ".1\n---\na")
@example("? " * 3000)
@example("a: !%ff x")
@example("\ufeffa: .nan")
def test_any_text_is_either_read_or_reported(text: str) -> None:
    document = read(text)
    assert document.complete or document.faults
    if document.faults:
        message = recipe_error(document.faults).message
        assert not message.startswith("error: ")
        assert message.replace("\n", "").isprintable()


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_ -:#é", min_size=1, max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(plain_values)
def test_plain_values_written_by_inline_are_read_back(value: object) -> None:
    from rmtrain.recipe.yaml12 import inline

    document = read(f"key: {inline(value)}\n")
    assert document.faults == []
    assert document.value == {"key": value}
    assert repr(document.value) == repr({"key": value})  # 1 and 1.0, 0.0 and -0.0 are told apart
