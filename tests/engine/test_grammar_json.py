"""JSON schemas as a specification: which texts each grammar accepts, which it does not, and which schemas are refused by name."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from grammar_helpers import accepts, free_compiler, make_compiler, small_tokenizer

from herd.base.errors import FormatError
from herd.engine.grammar.compiler import GrammarCompiler
from herd.engine.grammar.spec import Grammar, GrammarLimits


def takes(schema: Any, text: str, **options: Any) -> bool:
    return accepts(Grammar.json_schema(schema, **options), text)


def refusal(schema: Any, compiler: GrammarCompiler | None = None) -> FormatError:
    with pytest.raises(FormatError) as caught:
        (compiler or free_compiler()).compile(Grammar.json_schema(schema))
    assert caught.value.hint
    return caught.value


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {}}, "required": ["b"]}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (True, ["1", "null", '{"a":[{}]}', '""'], ["", "nul", "[1,]", "NaN", "01", "1.", "+1", "'a'"]),
        ({"description": "anything"}, ["-0.5e-3", "true"], ["True"]),
        ({"type": "string"}, ['"é\\n\\u00e9\\ud83d\\ude00 /\\/"', '"\\""'], ['"\\ud83d"', '"\n"', '"\\x41"', '"\x7f"', '"a']),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"\\u00e9b"', '"😀\\ud83d\\ude00b"'], ['"a"', '"abcd"']),
        ({"type": "string", "pattern": "^a+$"}, ['"aaa"'], ['""', '"b"', '"ab"']),
        ({"type": "string", "pattern": "b"}, ['"abc"', '"\\nb\\""'], ['"ac"']),
        ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 2}, ['"ab"'], ['"abc"', '"A"']),
        ({"allOf": [{"type": "string", "pattern": "a"}, {"pattern": "b"}]}, ['"xbya"'], ['"a"', '"b"']),
        ({"type": "string", "format": "date"}, ['"2024-02-28"', '"2024-12-31"'], ['"2024-02-30"', '"2024-13-01"', '"today"']),
        ({"type": "string", "format": "uuid", "maxLength": 36}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
        ({"type": "string", "format": "date", "maxLength": 20}, ['"2024-02-28"'], ['"28.2.2024"']),
        ({"format": "unheard-of"}, ['"anything"'], ["1"]),
        ({"type": "integer"}, ["0", "-12", "999999999999999"], ["1.0", "-", "00", "1e3", "1234567890123456"]),
        ({"type": "integer", "minimum": 3, "maximum": 12}, ["3", "9", "12"], ["2", "13", "-3", "03"]),
        ({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 1.5}, ["-2", "0", "1"], ["-3", "2"]),
        ({"type": "integer", "minimum": 10**18}, ["1000000000000000000", "9999999999999999999"], ["999999999999999999"]),
        ({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 100}, ["7", "98"], ["1", "15", "105"]),
        ({"type": "number"}, ["1.5", "-2e10", "3"], ["1.", ".5", "1e999", "1.2345678901234567"]),
        ({"type": "number", "minimum": 0.25, "maximum": 2}, ["0.25", "1", "1.99", "2", "2.0"], ["0.24", "0", "2.01", "3", "1e0"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.05", "0.000001", "12.5"], ["0", "0.0", "-1"]),
        ({"type": "number", "minimum": 5, "exclusiveMinimum": True}, ["5.1"], ["5"]),
        ({"type": "number", "multipleOf": 0.01}, ["1.25", "3"], ["1.255"]),
        ({"type": "number", "multipleOf": 2}, ["4"], ["3", "4.0"]),
        ({"minimum": -1e300}, ["5.5"], ["1e300"]),
        ({"enum": [1, "a", None, [1, {"b": "é"}], 'a"b']}, ["1", '"a"', "null", '[1,{"b":"é"}]', '"a\\"b"'], ["2", "a", "[1]", "true"]),
        ({"const": True}, ["true"], ["1", "false"]),
        ({"enum": [1, True, "x", 5], "type": "integer", "maximum": 4}, ["1"], ["true", "5", '"x"']),
        ({"enum": [3, 4, 6, 1e300], "multipleOf": 3}, ["3", "6"], ["4", "1e300"]),
        ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]}, ["{}", '{"a":1}'], ['{"b":1}']),
        ({"type": "object", "unevaluatedProperties": False}, ["{}"], ['{"b":1}']),
        ({"prefixItems": [{"const": 1}], "unevaluatedItems": False}, ["[1]"], ["[1,1]"]),
        ({"type": "array", "uniqueItems": False}, ["[1,1]"], []),
        ({"enum": ["a", "bbb"], "maxLength": 2}, ['"a"'], ['"bbb"']),
        ({"type": ["string", "null"], "maxLength": 1}, ['"a"', "null"], ['"ab"', "1"]),
        ({"type": "array", "items": {"type": "null"}}, ["[]", "[null,null]"], ["[1]", "[null,]", "[null null]"]),
        ({"type": "array", "items": True, "minItems": 2, "maxItems": 3}, ["[1,2]", "[1,2,3]"], ["[]", "[1]", "[1,2,3,4]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, ["[]", "[1]", '[1,"a",null]'], ['["a"]', "[1,1]"]),
        ({"prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 1}, ["[1]", "[1,2]"], ["[]", "[1,2,3]"]),
        ({"items": [{"const": 1}], "additionalItems": {"const": 0}}, ["[]", "[1,0,0]"], ["[0]", "[1,1]"]),
        ({"prefixItems": [{"const": 1}], "items": {"const": 0}, "minItems": 3}, ["[1,0,0]", "[1,0,0,0]"], ["[1,0]"]),
        (OBJECT, ['{"b":"x"}', '{"a":1,"b":"x","c":{}}'], ["{}", '{"a":1}', '{"b":"x","d":1}', '{"b":"x","a":1}', '{"b":"x",}']),
        ({**OBJECT, "additionalProperties": {"type": "null"}}, ['{"b":"","d":null}'], ['{"b":"","d":1}', '{"b":"","a":null}']),
        ({"type": "object"}, ["{}", '{"k":{"j":[1]}}'], ["[]"]),
        ({"type": "object", "properties": {}}, ["{}"], ['{"a":1}']),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a":1}']),
        ({"required": ["x"]}, ['{"x":1}'], ["{}", '{"y":1}']),
        ({"type": "object", "minProperties": 1}, ['{"a":1}'], ["{}"]),
        (
            {"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2, "maxProperties": 2},
            ['{"a":1,"c":2}'],
            ['{"b":1}', "{}", '{"a":1,"b":1,"c":1}'],
        ),
        (
            {"properties": {"a": {}}, "required": ["a"], "additionalProperties": True, "maxProperties": 2},
            ['{"a":1,"z":2}'],
            ['{"a":1,"y":1,"z":1}'],
        ),
        ({"type": "object", "propertyNames": {"pattern": "^[a-z]$"}}, ['{"a":1}', "{}"], ['{"A":1}', '{"ab":1}']),
        ({"type": "object", "propertyNames": {"enum": ["k"]}}, ['{"k":1}'], ['{"j":1}']),
        ({"type": "object", "patternProperties": {"^x": {"type": "integer"}}}, ['{"xy":1}'], ['{"a":1}', '{"x":""}']),
        ({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}, ["1", "[1]"], ['"1"']),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}}, ['{"a":1}', '{"b":1}'], ["{}"]),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ['"a"', "null"], ["1"]),
        (
            {"oneOf": [{"properties": {"k": {"const": n}, "v": {}}, "required": ["k"]} for n in "ab"]},
            ['{"k":"a","v":1}', '{"k":"b"}'],
            ['{"k":"c"}', '{"v":1}'],
        ),
        (
            {"allOf": [{"properties": {"a": {"minimum": 2}}}, {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}]},
            ['{"a":2,"b":1}'],
            ['{"a":1}', "{}"],
        ),
        ({"allOf": [{"type": "number"}, {"type": ["integer", "string"]}]}, ["3"], ["3.5", '"a"']),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}}, ["1"], ["2"]),
        (
            {"$defs": {"n": {"properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}}, "$ref": "#/$defs/n"},
            ["{}", '{"next":{"next":null}}'],
            ['{"next":1}'],
        ),
        ({"properties": {"child": {"$ref": "#"}}, "type": "object"}, ['{"child":{"child":{}}}'], ['{"child":1}']),
        ({"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": {"type": "integer"}}}, ["3"], ["4"]),
    ],
    ids=itertools.count(),
)
def test_a_schema_accepts_what_it_says_and_nothing_else(schema: Any, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not takes(schema, text)] == []
    assert [text for text in wrong if takes(schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (False, "no value satisfies"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no value satisfies"),
        ({"$ref": "#"}, "no value satisfies"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no value satisfies"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no value satisfies"),
        ({"type": "integer", "multipleOf": 50, "minimum": 1, "maximum": 49}, "no value satisfies"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no value satisfies"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no value satisfies"),
        ({"type": "array", "items": False, "minItems": 1}, "no value satisfies"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "no value satisfies"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 2}, "no value satisfies"),
        ({"required": ["a"], "additionalProperties": False}, "no value satisfies"),
        ({"enum": ["a"], "type": "integer"}, "no value satisfies"),
        ({"not": {"type": "string"}}, "'not' cannot be enforced"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "contains": {}}, "'contains'"),
        ({"properties": {"a": {"if": {}}}}, "'if'"),
        ({"unevaluatedProperties": {"type": "null"}}, "unevaluatedProperties is {"),
        ({"const": {"a": 1}, "required": ["b"]}, "an enum or const of an object"),
        ({"oneOf": [{"properties": {"a": {}}, "required": ["a", "b"]}, {"properties": {"b": {}}, "required": ["b"]}]}, "options 1 and 2"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "options 1 and 2 of a oneOf"),
        ({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, "options 1 and 2 of a oneOf"),
        ({"$ref": "https://example.org/s.json"}, "example.org"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": 5}, "reference 5"),
        ({"type": "text"}, "type is 'text'"),
        ({"type": []}, "type is []"),
        ({"enum": []}, "enum is []"),
        ({"anyOf": []}, "anyOf is []"),
        ({"minLength": -1}, "minLength is -1"),
        ({"minLength": True}, "minLength is True"),
        ({"maximum": "9"}, "maximum is '9'"),
        ({"multipleOf": 0}, "multipleOf is 0"),
        ({"type": "number", "multipleOf": 2.5}, "multipleOf is 2.5"),
        ({"minimum": 1e40}, "beyond 1e30"),
        ({"pattern": 3}, "pattern is 3"),
        ({"pattern": "("}, "cannot be compiled"),
        ({"pattern": "(?=a)b"}, "cannot be compiled"),
        ({"properties": []}, "properties is []"),
        ({"required": "a"}, "required is 'a'"),
        ({"items": 3}, "3 stands where a schema"),
        ({"prefixItems": {}}, "prefixItems is {}"),
        ({"enum": ["a"], "pattern": "b"}, "stands beside a pattern"),
        ({"properties": {"a": {}}, "patternProperties": {"^b": {"type": "null"}}}, "patternProperties stand beside"),
        ({"properties": {"a": {}}, "propertyNames": {}}, "propertyNames stand beside"),
        ({"minProperties": 5, "additionalProperties": {}}, "minProperties is 5"),
        ({"const": "x" * 20_000}, "20,002 characters"),
        ({"properties": {f"p{index}": {} for index in range(1001)}}, "1,001 properties"),
        ({"prefixItems": [{}] * 101}, "101 schemas"),
        ({"allOf": [{"anyOf": [{"minLength": i} for i in range(20)]} for _ in range(5)]}, "unfolds to more than"),
        (
            {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)} | {"d30": {}}, "$ref": "#/$defs/d0"},
            "unfolds",
        ),
        ({"description": "x" * 300_000}, "300,"),
    ],
    ids=itertools.count(),
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_name(schema: Any, said: str) -> None:
    assert said in refusal(schema).message


def test_deep_schemas_are_refused_not_crashed_on() -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"anyOf": [deep, {"type": "null"}]}
    assert "too deeply" in refusal(deep).message or "unfolds" in refusal(deep).message
    nested = json.loads('{"items":' * 60 + "{}" + "}" * 60)
    assert takes(nested, "[" * 20 + "]" * 20) and not takes(nested, "[" * 33 + "]" * 33)


def test_nesting_is_bounded_and_ends_from_everywhere() -> None:
    grammar = Grammar.json_object()
    assert accepts(grammar, '{"a":' * 31 + "[]" + "}" * 31)
    assert not accepts(grammar, '{"a":' * 32 + "[]" + "}" * 32)
    shallow = make_compiler(small_tokenizer(), split_regex=None, limits=GrammarLimits(max_depth=2))
    assert accepts(grammar, '{"a":[1]}', shallow) and not accepts(grammar, '{"a":[[]]}', shallow)


def test_white_space_is_none_or_bounded() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    assert takes(schema, '{"a":[1,2]}') and not takes(schema, '{"a": [1,2]}')
    loose = '{\n  "a" : [ 1 ,\t2 ]\n}'
    assert takes(schema, loose, whitespace=3) and takes(schema, '{"a":[1,2]}', whitespace=3)
    assert not takes(schema, '{"a":    [1]}', whitespace=3)
    assert not takes(schema, ' {"a":[1]}', whitespace=3) and not takes(schema, '{"a":[1]} ', whitespace=3)


def test_strings_are_as_long_as_the_shorter_bound() -> None:
    assert takes({"type": "string", "maxLength": 9}, '"abc"', max_string=3) and not takes({"type": "string"}, '"abcd"', max_string=3)
    assert not takes({"type": "object"}, '{"abcd":1}', max_string=3) and takes({"type": "object"}, '{"abc":"abc"}', max_string=3)
    with pytest.raises(FormatError, match="no value satisfies"):
        takes({"minLength": 4, "type": "string"}, "", max_string=3)


def test_the_order_is_the_schemas_and_names_are_spelled_once() -> None:
    schema = {"properties": {'q"\\\n': {"const": 1}, "é": {"const": 2}}, "required": ['q"\\\n', "é"], "additionalProperties": {"const": 3}}
    assert takes(schema, '{"q\\"\\\\\\n":1,"é":2}') and takes(schema, '{"q\\"\\\\\\n":1,"é":2,"z":3}')
    assert not takes(schema, '{"q\\"\\\\\\n":1,"é":2,"é":3}')


def test_many_optional_properties_compile_and_may_each_be_left_out() -> None:
    schema = {"properties": {f"p{index}": {"type": "integer"} for index in range(1000)}, "additionalProperties": False}
    assert takes(schema, "{}") and takes(schema, '{"p0":1,"p31":2,"p32":3,"p999":4}') and not takes(schema, '{"p5":1,"p4":1}')
    assert takes({**schema, "required": ["p500"]}, '{"p3":1,"p500":2,"p900":1}') and not takes({**schema, "required": ["p500"]}, '{"p3":1}')


def test_large_enums_compile() -> None:
    assert takes({"enum": [f"value number {index}" for index in range(5000)]}, '"value number 4999"')


def test_what_is_no_json_is_refused_before_any_compiler() -> None:
    for value in ({"a": {1, 2}}, {"const": float("nan")}, {"const": "\ud83d"}):
        with pytest.raises(FormatError) as caught:
            Grammar.json_schema(value)
        assert caught.value.hint
