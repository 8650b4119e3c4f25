"""`KEY=VALUE` of the command line, put into a recipe's values as if the file had said it."""

import re
from copy import deepcopy

from rmtrain.recipe import wording
from rmtrain.recipe.document import Document, Place, parse_document
from rmtrain.recipe.faults import Fault, KeyPath, Source, Span, dotted

_KEY = re.compile(r"[^\s.=]+(\.[^\s.=]+)*")


def override(document: Document, source: Source) -> Document:
    """The document with one `KEY=VALUE` put in, its place and its faults included.

    A value replaces the whole of what stood at its key; sections on the way to it are made where there are none.
    """
    key, equals, _ = source.text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        fault = Fault((), "expected KEY=VALUE", Span(source, 0, 0, len(key)), "such as optim.learning_rate=2e-5")
        return document._replace(faults=[*document.faults, fault])
    path: KeyPath = tuple(key.split("."))
    given = parse_document(source, len(key) + 1, path)
    faults = document.faults + given.faults
    if not (document.complete and given.complete):
        return document._replace(faults=faults, complete=False)

    tree = deepcopy(document.value)
    places = {p: place for p, place in document.places.items() if p[: len(path)] != path}
    section, start = tree, 0
    for depth, part in enumerate(path[:-1], 1):
        span = Span(source, 0, start, start + len(str(part)))
        start = span.end + 1
        if section.get(part) is None:
            section[part] = {}
            places[path[:depth]] = Place(span, span)
        section = section[part]
        if not isinstance(section, dict):
            outer = dotted(path[:depth])
            message = f"{outer} is {wording.found(section)} and has no keys"
            fault = Fault(path, message, span, f"override {outer} as a whole: {outer}={{...}}")
            return document._replace(faults=[*faults, fault])
    section[path[-1]] = given.value
    places |= given.places
    places[path] = Place(Span(source, 0, start, len(key)), given.places[path].value)
    return Document(tree, places, faults, complete=True)
