"""Chat templates that only print the texts of messages, found by their syntax and applied once per sequence of roles.

Most templates choose the text around messages by their roles, and print each message's text unchanged. Then replacing
the texts in one rendering gives the rendering of any conversation with the same roles. The syntax tree proves it: a
message's text occurs only in printed output, alone or concatenated; it is not passed to a filter, test, macro or
variable; and only the roles and other fields of messages are used elsewhere.
"""

import re
from collections.abc import Sequence, Set
from itertools import chain
from typing import NamedTuple

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError

from rmtrain.data.types import Conversation, Message

_MESSAGES, _TEXT = "messages", "content"
_OTHERS = {"previtem", "nextitem", "changed"}  # loop variables with neighbouring messages
_MARK, _END = "\ue000", "\ue001"  # of private use, around the number of a message


class Skeleton(NamedTuple):
    """What a template prints for a sequence of roles: fixed texts, with messages between them."""

    fixed: Sequence[str]
    messages: Sequence[int]  # one fewer than the texts

    @classmethod
    def of(cls, rendered: str) -> "Skeleton":
        """Parse the rendering of `marked` messages."""
        parts = re.split(f"{_MARK}(\\d+){_END}", rendered)
        return cls(parts[::2], [int(number) for number in parts[1::2]])

    def filled(self, conversation: Conversation) -> str:
        """The rendering of a conversation of these roles."""
        texts = [conversation[number].content for number in self.messages]
        return "".join(chain.from_iterable(zip(self.fixed, [*texts, ""], strict=True)))


def marked(roles: Sequence[str]) -> Conversation:
    """A conversation with marks, whose rendering shows where each text is printed."""
    return tuple(Message(role, f"{_MARK}{number}{_END}") for number, role in enumerate(roles))


def prints_alone(template: str) -> bool:
    """Whether a template only prints the texts of messages; False if that can't be proved."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateError:
        return False
    loops = [loop for loop in tree.find_all(nodes.For) if _is_all(loop.iter)]
    names = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}
    return _MARK not in template and _harmless(tree, names, printed=True)


def _harmless(node: nodes.Node, names: Set[str], printed: bool) -> bool:
    """Whether a node, whose value may be printed unchanged, does not depend on the text of a message.

    `names` are those of the variables that hold a message.
    """
    if isinstance(node, (nodes.Getattr, nodes.Getitem)):
        return _reads_harmlessly(node, names, printed)
    if isinstance(node, nodes.Name):
        return node.name not in {_MESSAGES, "loop", *names}
    if isinstance(node, nodes.Filter) and node.name in ("length", "count") and node.node and _is_all(node.node):
        return True
    if isinstance(node, nodes.For):
        looked = [node.test, *(() if _is_all(node.iter) else (node.iter, node.target))]
        inner = [*node.body, *node.else_]
    elif isinstance(node, nodes.If):
        looked, inner = [node.test], [*node.body, *node.elif_, *node.else_]
    elif isinstance(node, (nodes.Template, nodes.Output, nodes.Add, nodes.Concat)):
        looked, inner = [], list(node.iter_child_nodes())
    else:
        looked, inner = list(node.iter_child_nodes()), []
    return all(each is None or _harmless(each, names, False) for each in looked) and all(
        _harmless(each, names, printed) for each in inner
    )


def _reads_harmlessly(node: "nodes.Getattr | nodes.Getitem", names: Set[str], printed: bool) -> bool:
    """`_harmless` for access to a field."""
    key, owner = _key_of(node), node.node
    if isinstance(owner, nodes.Name) and owner.name == "loop":
        return key is not None and key not in _OTHERS
    if isinstance(owner, nodes.Name) and owner.name in names:
        return _is_field(key) and (printed or key != _TEXT)
    if isinstance(owner, nodes.Getitem) and _is_all(owner.node) and not isinstance(owner.arg, nodes.Slice):
        return _is_field(key) and (printed or key != _TEXT) and _harmless(owner.arg, names, False)
    return key not in {_TEXT, *_OTHERS} and all(_harmless(each, names, False) for each in node.iter_child_nodes())


def _is_field(key: object) -> bool:
    """Whether a key is a constant, and not the name of a method of dictionaries."""
    return isinstance(key, str) and not hasattr(dict, key)


def _key_of(node: "nodes.Getattr | nodes.Getitem") -> object:
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) else None


def _is_all(node: nodes.Node) -> bool:
    """Whether a node is the list of messages, or a slice of it with constant bounds."""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _is_all(node.node) and all(isinstance(each, nodes.Const) for each in node.arg.iter_child_nodes())
    return isinstance(node, nodes.Name) and node.name == _MESSAGES
