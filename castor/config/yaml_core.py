"""YAML by the core schema of YAML 1.2 (yaml.org/spec/1.2.2, section 10.3), for config files and for overrides.

PyYAML reads YAML 1.1, in which `on` is true, `12:30` is 750, `0012` is 10 and `1e-6` is a text. Here a plain scalar is
null (nothing, `~`, `null`), a number, or text. Two additions serve options whose type is known only later: a number
keeps the text it was written as, so that an option that takes a text gets `1e5` or `0012` as they stand; and `true` and
`false` stay text, which pydantic reads as a boolean where an option is one. Keys are always text, and none may stand
twice in a mapping. `<<` merges, and anchors work, but none may contain itself.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

_NULL = re.compile(r"~|null|Null|NULL|")
_DECIMAL = re.compile(r"[-+]?[0-9]{1,300}")  # Python refuses to read integers of thousands of digits
_OCTAL_OR_HEXADECIMAL = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY_OR_NAN = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MERGE = "tag:yaml.org,2002:merge"


class _Written:
    """A number whose `str` is the text it was written as."""

    text: str

    def __str__(self) -> str:
        return self.text


class WrittenInt(_Written, int):
    """An integer that keeps its text."""


class WrittenFloat(_Written, float):
    """A float that keeps its text."""


Scalar = None | WrittenInt | WrittenFloat | str


def plain_scalar(text: str) -> Scalar:
    """What `text` without quotes means: None, a number, or itself."""
    number: WrittenInt | WrittenFloat
    if _NULL.fullmatch(text):
        return None
    if _DECIMAL.fullmatch(text):
        number = WrittenInt(text)
    elif _OCTAL_OR_HEXADECIMAL.fullmatch(text):
        number = WrittenInt(text, 0)
    elif _FLOAT.fullmatch(text):
        number = WrittenFloat(text)
    elif _INFINITY_OR_NAN.fullmatch(text):
        number = WrittenFloat(text.replace(".", ""))
    else:
        return text
    number.text = text
    return number


def parse(text: str) -> Any:
    """The value of a YAML document: None, numbers, text, lists, and mappings with text as keys.

    Raises yaml.YAMLError, with a `problem` in words, for what is not YAML and for a key that stands twice.
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {"<": [(_MERGE, re.compile("<<"))]}  # noqa: RUF012  # PyYAML's own attribute

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.ScalarNode] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                earlier = first.setdefault(key.value, key)
                if earlier is not key:
                    lines = earlier.start_mark.line + 1, key.start_mark.line + 1
                    where = f"on lines {lines[0]} and {lines[1]}" if lines[0] != lines[1] else f"on line {lines[0]}"
                    raise ComposerError(None, None, f"the key {key.value!r} stands twice, {where}", key.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        self.flatten_mapping(node)
        return {self._key(key): self.construct_object(value, deep) for key, value in node.value}

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise ConstructorError(None, None, "a key must be a text, not a list or a mapping", node.start_mark)
        return str(node.value)

    def construct_plain_or_quoted(self, node: yaml.ScalarNode) -> Scalar:
        text = self.construct_scalar(node)
        return plain_scalar(text) if node.style is None else text

    # PyYAML's own constructors of collections let a mapping contain itself. These two construct it as a whole.
    def construct_whole_mapping(self, node: yaml.MappingNode) -> dict[Hashable, Any]:
        return self.construct_mapping(node, deep=True)

    def construct_whole_sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return self.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_plain_or_quoted)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_whole_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_whole_sequence)
