"""Texts → token ids. Texts are first split at special tokens, so that pieces shared by several texts are encoded once.

The tokenizers library first finds added tokens, and encodes the texts between them separately. So a text's tokens are
the concatenated tokens of its pieces, if every split is before an added token. Some added tokens are excluded: those
found in the normalised text, and those that absorb the white space before them, may start elsewhere once the text is
split. If a token must not be next to a letter, no text is split.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

_PROBES = "A question?\n", " and an answer ", "", "\n"


@dataclass(frozen=True)
class PieceEncoder:
    """A tokenizer, and the tokens before which texts are split."""

    backend: Any  # tokenizers.Tokenizer
    tokens: re.Pattern[str] | None  # all added tokens that are found in the unnormalised text
    cuts: frozenset[str]  # those before which a text is split

    @classmethod
    def of(cls, tokenizer: Any) -> "PieceEncoder":
        """The encoder of a fast tokenizer of transformers; it splits no text if a probe shows a difference."""
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        added = list(backend.get_added_tokens_decoder().values())
        sought = [token.content for token in added if not token.normalized]
        cuts = frozenset(token.content for token in added if not token.normalized and not token.lstrip)
        whole = cls(backend, None, frozenset())
        if not sought or tokenizer.split_special_tokens or any(token.single_word for token in added):
            return whole
        cutting = cls(backend, re.compile(_any_of(sought)), cuts)
        probes = [f"{before}{cut}{after}{cut}{before}" for cut in cuts for before, after in pairwise(_PROBES)]
        return cutting if cutting.encode(probes) == whole.encode(probes) else whole

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens added around it."""
        cut = [self._pieces(text) for text in texts]
        distinct = list(dict.fromkeys(chain.from_iterable(cut)))
        encoded = self.backend.encode_batch_fast(distinct, add_special_tokens=False)
        ids = {piece: encoding.ids for piece, encoding in zip(distinct, encoded, strict=True)}
        return [list(chain.from_iterable(ids[piece] for piece in pieces)) for pieces in cut]

    def _pieces(self, text: str) -> list[str]:
        added = self.tokens.finditer(text) if self.tokens is not None else ()
        borders = [0, *(match.start() for match in added if match[0] in self.cuts), len(text)]
        return [text[start:end] for start, end in pairwise(borders) if start < end]


def _any_of(words: Sequence[str]) -> str:
    """A regular expression that matches the longest word; it groups words by prefix, so that thousands stay fast."""
    rests: dict[str, list[str]] = {}
    for word in filter(None, words):
        rests.setdefault(word[0], []).append(word[1:])
    branches = "|".join(re.escape(first) + _any_of(rest) for first, rest in rests.items())
    return f"(?:{branches})" + "?" * ("" in words) if branches else ""
