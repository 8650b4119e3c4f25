"""Prefix splitting, truncation and the cache of tokenised splits."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_groups, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmtrain.data import cache_entry, token_cache, tokenize, workers
from rmtrain.data.prepare import require_few_refusals
from rmtrain.data.render import Renderer
from rmtrain.data.responses import mark_responses
from rmtrain.data.template import TOO_LONG, UNKNOWN, TemplateRefusalError
from rmtrain.data.token_cache import TokenizedSplit, tokenize_split
from rmtrain.data.token_notes import token_notes
from rmtrain.data.token_report import OVER_LENGTH, Lost
from rmtrain.data.token_table import group_to_row, row_to_group
from rmtrain.data.tokenize import Tokenization, TokenizedGroup, split_prefix, tokenize_groups
from rmtrain.data.types import Message, Preference, PreferenceGroup, of_ids
from rmtrain.data.workers import PART
from rmtrain.errors import DataError
from rmtrain.recipe.data_schema import OverLength

BOS, EOS = 1, 2
CUT: OverLength = "truncate_completion"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer.for_tokenizer(make_tokenizer())


def group(prompt: tuple[str, ...], completions: tuple[str, ...], name: str = "g") -> PreferenceGroup:
    """A group whose prompt alternates between user and assistant."""
    turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(prompt))
    return PreferenceGroup(name, turns, tuple((Message("assistant", c),) for c in completions), ())


def sequences(tokenized: TokenizedGroup) -> list[list[int]]:
    return [[*tokenized.prefix.tolist(), *suffix.tolist()] for suffix in tokenized.spread(tokenized.suffixes)]


# The longest common prefix


@given(
    st.lists(st.integers(0, 3), max_size=6),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=6),
)
def test_a_split_loses_nothing_and_shares_all_it_can(shared: list[int], tails: list[list[int]]) -> None:
    wholes = [shared + tail for tail in tails]
    prefix, suffixes = split_prefix(wholes)
    assert [[*prefix.tolist(), *suffix.tolist()] for suffix in suffixes] == wholes
    assert all(len(suffix) >= 1 for suffix in suffixes)
    first_tokens = {int(suffix[0]) for suffix in suffixes}
    assert len(first_tokens) > 1 or min(len(suffix) for suffix in suffixes) == 1  # else one token more could be shared
    assert prefix.dtype == np.int32


def test_equal_sequences_share_all_but_the_last_token() -> None:
    prefix, suffixes = split_prefix([[5, 6, 7], [5, 6, 7]])
    assert (prefix.tolist(), [s.tolist() for s in suffixes]) == ([5, 6], [[7], [7]])


def test_groups_are_the_rendered_sequences(renderer: Renderer) -> None:
    groups = make_groups(5)
    for made, tokenized in zip(groups, tokenize_groups(groups, Tokenization(renderer, 4096, "error")), strict=True):
        assert tokenized is not None
        assert sequences(tokenized) == renderer.tokenize([made.prompt + completion for completion in made.completions])
        assert tokenized.lengths == tuple(map(len, sequences(tokenized)))
        assert (tokenized.id, tokenized.source, tokenized.preferences) == (made.id, made.source, made.preferences)
        assert not tokenized.truncated


# Truncation. The template adds 4 tokens to a question and an answer: BOS [INST] .. [/INST] .. EOS.


def one(renderer: Renderer, made: PreferenceGroup, length: int, rule: OverLength) -> TokenizedGroup:
    (tokenized,) = tokenize_groups([made], Tokenization(renderer, length, rule))
    assert tokenized is not None
    return tokenized


def words(renderer: Renderer, tokens: list[int]) -> str:
    return renderer.tokenizer.decode(tokens)


def test_the_start_of_the_prompt_goes_first(renderer: Renderer) -> None:
    made = group(("w1 w2 w3 w4 w5",), ("w6", "w7 w8"))
    tokenized = one(renderer, made, 9, "truncate_prompt")
    assert tokenized.truncated
    assert [words(renderer, s) for s in sequences(tokenized)] == [
        "<s> [INST] w3 w4 w5 [/INST] w6 </s>",
        "<s> [INST] w3 w4 w5 [/INST] w7 w8 </s>",
    ]


def test_a_completion_is_cut_at_its_end_only_where_the_whole_prompt_is_not_enough(renderer: Renderer) -> None:
    tokenized = one(renderer, group(("w1 w2",), ("w6", "w7 w8 w9 w10 w11")), 8, "truncate_prompt")
    assert [words(renderer, s) for s in sequences(tokenized)] == [
        "<s> [INST] [/INST] w6 </s>",
        "<s> [INST] [/INST] w7 w8 w9 w10 </s>",
    ]


def test_long_completions_are_cut_first_under_truncate_completion(renderer: Renderer) -> None:
    tokenized = one(renderer, group(("w1 w2",), ("w6", "w7 w8 w9 w10 w11")), 8, "truncate_completion")
    assert [words(renderer, s) for s in sequences(tokenized)] == [
        "<s> [INST] w1 w2 [/INST] w6 </s>",
        "<s> [INST] w1 w2 [/INST] w7 w8 </s>",
    ]
    both = one(renderer, group(("w1 w2 w3 w4 w5 w6",), ("w6",)), 7, "truncate_completion")
    assert words(renderer, sequences(both)[0]) == "<s> [INST] w4 w5 w6 [/INST] </s>"


def test_the_oldest_turns_of_a_conversation_go_first(renderer: Renderer) -> None:
    made = group(("w1 w2 w3", "w4 w5", "w6 w7"), ("w8",))
    assert len(renderer.tokenize([made.prompt + made.completions[0]])[0]) == 15
    texts = [words(renderer, sequences(one(renderer, made, n, "truncate_prompt"))[0]) for n in (14, 12, 10, 9)]
    assert texts == [
        "<s> [INST] w2 w3 [/INST] w4 w5 </s> [INST] w6 w7 [/INST] w8 </s>",
        "<s> [INST] [/INST] w4 w5 </s> [INST] w6 w7 [/INST] w8 </s>",
        "<s> [INST] [/INST] </s> [INST] w6 w7 [/INST] w8 </s>",
        "<s> [INST] [/INST] </s> [INST] w7 [/INST] w8 </s>",
    ]


# Token ids, which are taken as they are


def of_tokens(prompt: list[int], *answers: list[int]) -> PreferenceGroup:
    return PreferenceGroup("g", (of_ids(prompt),), tuple((of_ids(ids),) for ids in answers), (Preference(0, 1),))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 64), min_size=1, max_size=9),
    st.lists(st.lists(st.integers(0, 64), min_size=1, max_size=9), min_size=2, max_size=2),
    st.integers(2, 20),
    st.sampled_from(["truncate_prompt", "truncate_completion"]),
)
def test_token_ids_stay_as_they_are_and_are_cut_between_bos_and_the_last_one(
    renderer: Renderer, prompt: list[int], answers: list[list[int]], length: int, rule: OverLength
) -> None:
    made = one(renderer, of_tokens(prompt, *answers), length, rule)
    longest = max(len(prompt) + len(answer) for answer in answers)
    assert made.truncated == (longest > length)
    for found, answer in zip(sequences(made), answers, strict=True):
        whole = prompt + answer
        assert found == whole or longest > length
        assert len(found) <= length
        assert found[-1] == whole[-1]
        assert found[0] == BOS or prompt[0] != BOS
    if made.truncated:
        assert max(map(len, sequences(made))) == length  # nothing is cut in vain


def test_which_token_ids_a_rule_cuts(renderer: Renderer) -> None:
    group = of_tokens([BOS, 11, 12, 13, 14], [21, 22, 23, 24, EOS], [31, EOS])
    assert sequences(one(renderer, group, 8, "truncate_prompt")) == [
        [BOS, 13, 14, 21, 22, 23, 24, EOS],
        [BOS, 13, 14, 31, EOS],
    ]
    assert sequences(one(renderer, group, 8, "truncate_completion")) == [
        [BOS, 11, 12, 13, 14, 21, 22, EOS],
        [BOS, 11, 12, 13, 14, 31, EOS],
    ]
    assert sequences(one(renderer, group, 3, "truncate_prompt")) == [[BOS, 21, EOS], [BOS, 31, EOS]]
    assert list(tokenize_groups([group], Tokenization(renderer, 8, "drop"))) == [None]


def test_token_ids_and_texts_in_one_call(renderer: Renderer) -> None:
    groups = [of_tokens([7, 8], [9], [10]), group(("w1",), ("w2", "w3")), of_tokens([64], [0], [4])]
    made = list(tokenize_groups(groups, Tokenization(renderer, 99, "error")))
    assert [sequences(tokens)[0] for tokens in made if tokens] == [
        [7, 8, 9],
        renderer.tokenize([groups[1].prompt + groups[1].completions[0]])[0],
        [64, 0],
    ]
    assert all(tokens is not None and not tokens.omitted for tokens in made)


def test_token_ids_that_the_tokenizer_lacks(renderer: Renderer, tmp_path: Path) -> None:
    groups = [of_tokens([1, 7], [8], [9])._replace(id=f"g{index}") for index in range(9)]
    groups.append(of_tokens([1, 7], [8], [65])._replace(id="beyond"))
    made = split(groups, renderer, tmp_path)
    assert len(made) == 9
    why = "it holds the token id 65, but the tokenizer's ids go from 0 to 64"
    assert made.report.refused == {UNKNOWN: Lost(1, 2, 1, "beyond", why)}
    with pytest.raises(DataError, match="group beyond: it holds the token id 65"):
        list(tokenize_groups(groups, Tokenization(renderer, 99, "error")))


def test_the_response_to_token_ids_starts_behind_the_prompt(renderer: Renderer) -> None:
    group = of_tokens([BOS, 11, 12, 13], [21, 22, EOS], [21, EOS])
    for length, start in ((99, 4), (6, 3)):
        made = one(renderer, group, length, "truncate_prompt")
        (marked,) = mark_responses([group], [made], Tokenization(renderer, length, "truncate_prompt"))
        assert marked.starts == (start, start)


def test_drop_and_error_do_what_they_say(renderer: Renderer) -> None:
    groups = [group(("w1",), ("w2",), "short"), group(("w1 w2 w3",), ("w2", "w1"), "long")]
    short, long = tokenize_groups(groups, Tokenization(renderer, 6, "drop"))
    assert (short is None, long is None) == (False, True)
    with pytest.raises(DataError, match=r"group long: 8 tokens, more than data\.max_length 6"):
        list(tokenize_groups(groups, Tokenization(renderer, 6, "error")))


@pytest.mark.parametrize("rule", ["truncate_prompt", "truncate_completion"])
def test_a_template_that_alone_is_too_long_is_refused(renderer: Renderer, rule: OverLength) -> None:
    with pytest.raises(DataError, match=r"group g: the chat template alone takes more than 3 tokens"):
        one(renderer, group(("w1",), ("w2",)), 3, rule)


@pytest.mark.parametrize("rule", ["truncate_prompt", "truncate_completion"])
@pytest.mark.parametrize("long", [1, 2, 3])
def test_rows_of_too_many_turns_are_dropped_and_counted_up_to_a_fifth(
    renderer: Renderer, tmp_path: Path, rule: OverLength, long: int
) -> None:
    turns = tuple(f"w{k}" for k in range(15))
    groups = [group(turns if i < long else ("w1 w2",), ("w3", "w4 w5"), f"g{i}") for i in range(10)]
    how = Tokenization(renderer, 20, rule)
    made = tokenize_split(groups, how, tmp_path)
    why = "the chat template alone takes more than 20 tokens"
    assert made.report.refused == {TOO_LONG: Lost(long, 2 * long, 0, "g0", why)}
    assert [*made.table["id"]] == [f"g{i}" for i in range(long, 10)]
    texts = [str(note) for note in token_notes(made.report, "row {}".format, groups, renderer)]
    assert f"rows too long for data.max_length without any text, dropped: {long}; the first: row g0: {why}" in texts
    if long <= 2:
        require_few_refusals(made, "row {}".format)
        return
    with pytest.raises(DataError, match=r"3 of 10 rows are too long .* row g0: the chat template alone") as caught:
        require_few_refusals(made, "row {}".format)
    assert caught.value.hint == "raise data.max_length"


def test_rows_refused_for_several_causes_are_all_told(renderer: Renderer, tmp_path: Path) -> None:
    turns = tuple(f"w{k}" for k in range(15))
    groups = [
        group(turns, ("w3", "w4"), "long"),
        of_tokens([BOS, 65], [9], [8])._replace(id="ids"),
        group(("w1",), ("w2", "w3")),
    ]
    made = tokenize_split(groups, Tokenization(renderer, 20, "truncate_prompt"), tmp_path)
    assert {cause: lost.rows for cause, lost in made.report.refused.items()} == {TOO_LONG: 1, UNKNOWN: 1}
    notes = [note.text for note in token_notes(made.report, "row {}".format, groups, renderer)]
    assert {f"rows {cause}, dropped" for cause in (TOO_LONG, UNKNOWN)} <= {*notes}


texts = st.lists(st.sampled_from([f"w{i}" for i in range(9)]), max_size=12).map(" ".join)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(texts, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1),
    st.lists(texts, min_size=1, max_size=4),
    st.integers(20, 40),
    st.sampled_from(["truncate_prompt", "truncate_completion"]),
)
def test_truncation_keeps_its_promises(
    renderer: Renderer, prompt: list[str], completions: list[str], length: int, rule: OverLength
) -> None:
    made = group(tuple(prompt), tuple(completions))
    before = renderer.tokenize([made.prompt + completion for completion in made.completions])
    tokenized = one(renderer, made, length, rule)
    after = sequences(tokenized)
    assert tokenized.truncated == any(len(tokens) > length for tokens in before)
    special = [*renderer.tokenizer.all_special_ids, 3, 4]
    heads = set()
    for old, new, completion in zip(before, after, completions, strict=True):
        assert len(new) <= length
        assert [token for token in new if token in special] == [token for token in old if token in special]
        assert (new[0], new[-1]) == (BOS, EOS)
        border = len(new) - new[::-1].index(4)  # behind the last [/INST]
        heads.add(tuple(new[:border]))
        answer = renderer.tokenizer(completion, add_special_tokens=False)["input_ids"]
        assert new[border:-1] == answer[: len(new) - border - 1]
        if rule == "truncate_prompt" and len(new) - border - 1 < len(answer):
            assert all(token in special for token in new[:border])  # the prompt is used up
    assert len(heads) == 1  # judged on the same question


@pytest.fixture(scope="module")
def byte_renderer() -> Renderer:
    """A byte-level tokenizer without merges: a character takes as many tokens as UTF-8 bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}Q{{ m['content'] }}"
        "{% else %}A{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return Renderer.for_tokenizer(tokenizer)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=12), st.text(max_size=12), st.integers(4, 30), st.booleans())
def test_no_character_is_cut_into_bytes(
    byte_renderer: Renderer, question: str, answer: str, length: int, prompt_first: bool
) -> None:
    question, answer = (text.encode(errors="ignore").decode() for text in (question, answer))
    rule: OverLength = "truncate_prompt" if prompt_first else "truncate_completion"
    tokens = sequences(one(byte_renderer, group((question,), (answer,)), length, rule))[0]
    assert len(tokens) <= length
    left, right = byte_renderer.tokenizer.decode(tokens[2:-1]).split("A", 1) if "A" not in question else ("", "")
    assert question.endswith(left)
    assert answer.startswith(right)


def test_text_cut_within_wide_characters_still_fits(byte_renderer: Renderer) -> None:
    made = group(("日本語日本語",), ("é", "ü"))
    for length in range(6, 23):
        tokenized = one(byte_renderer, made, length, "truncate_prompt")
        assert max(tokenized.lengths) <= length
        text = byte_renderer.tokenizer.decode(sequences(tokenized)[0])
        assert "�" not in text
        assert length - max(tokenized.lengths) < 3 or text.startswith("<s>Q日本語日本語")  # no more is cut than needed


# Equal tokens


def test_completions_of_the_same_tokens_are_held_once(renderer: Renderer) -> None:
    texts = ("w1 w2", "w3", "w1 w2", "w1  w2", "w3 ", "w1 w2 w4")
    preferences = (Preference(0, 1), Preference(2, 3), Preference(5, 4))
    made = group(("w9",), texts)._replace(preferences=preferences)
    (tokenized,) = (one for one in tokenize_groups([made], Tokenization(renderer, 64, "error")) if one is not None)
    assert (tokenized.suffix_of, len(tokenized.suffixes)) == ((0, 1, 0, 0, 1, 2), 3)
    assert sequences(tokenized) == renderer.tokenize([made.prompt + completion for completion in made.completions])
    assert tokenized.preferences == preferences  # between completions as the source has them
    assert tokenized.identical == (False, True, False)


def test_a_group_of_equal_completions_is_one_sequence(renderer: Renderer) -> None:
    (tokenized,) = (
        one for one in tokenize_groups([group(("w9",), ("w1",) * 5)], Tokenization(renderer, 64, "error")) if one
    )
    assert (tokenized.suffix_of, [len(suffix) for suffix in tokenized.suffixes]) == ((0,) * 5, [1])


def test_what_the_length_makes_equal_is_held_once(renderer: Renderer) -> None:
    long = " ".join(["w1"] * 30)
    (tokenized,) = (
        one
        for one in tokenize_groups(
            [group(("w9",), (f"{long} w2", f"{long} w3", "w4"))], Tokenization(renderer, 16, CUT)
        )
        if one
    )
    assert tokenized.truncated
    assert tokenized.suffix_of == (0, 0, 1)


def test_equal_texts_are_tokenised_once(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Renderer.encode
    monkeypatch.setattr(Renderer, "encode", lambda self, texts: (seen.append(len(texts)), original(self, texts))[1])
    (tokenized,) = (
        one for one in tokenize_groups([group(("w9",), ("w1", "w2") * 500)], Tokenization(renderer, 64, "error")) if one
    )
    assert (seen, len(tokenized.suffix_of), len(tokenized.suffixes)) == ([2], 1000, 2)


# Rows


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=4), st.booleans())
def test_a_row_is_a_group_again(k: int, pairs: list[tuple[int, int]], scored: bool) -> None:
    preferences = tuple(Preference(a, b, 0.5 * a if scored else None) for a, b in pairs)
    suffixes = tuple(np.arange(i + 1, dtype=np.int32) for i in range(k))
    scores = tuple(0.5 * i for i in range(k)) if scored else None
    prefix = np.arange(7, dtype=np.int32)
    made = TokenizedGroup("id", "source", prefix, suffixes, preferences, truncated=scored, scores=scores)
    row = {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in group_to_row(made).items()
    }
    again = row_to_group(row)
    assert sequences(again) == sequences(made)
    assert len(again.prefix) == 7
    assert again[4:] == made[4:]


# The cache


def split(
    groups: list[PreferenceGroup], renderer: Renderer, cache: Path, length: int = 64, rule: OverLength = "drop"
) -> TokenizedSplit:
    return tokenize_split(groups, Tokenization(renderer, length, rule), cache)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every split that is really tokenised."""
    calls: list[int] = []
    original = token_cache.tokenize_groups

    def counting(groups: Any, *args: Any) -> Iterator[TokenizedGroup | None]:
        calls.append(len(groups))
        return original(groups, *args)

    monkeypatch.setattr(token_cache, "tokenize_groups", counting)
    return calls


def test_a_split_comes_back_from_the_cache(renderer: Renderer, tmp_path: Path, counted: list[int]) -> None:
    groups = make_groups(6)
    first = split(groups, renderer, tmp_path)
    second = split(groups, renderer, tmp_path)
    assert counted == [6]
    assert first.fingerprint == second.fingerprint
    direct = [made for made in tokenize_groups(groups, Tokenization(renderer, 64, "drop")) if made is not None]
    for made, cached in zip(direct, second.groups(), strict=True):
        assert sequences(cached) == sequences(made)
        assert cached.preferences == made.preferences
    assert second.lengths() == [(len(g.prefix), tuple(len(s) for s in g.suffixes)) for g in direct]
    assert sequences(second.group(2)) == sequences(direct[2])


def test_kept_and_dropped_make_the_whole(renderer: Renderer, tmp_path: Path) -> None:
    groups = make_groups(30)
    longest = [max(map(len, renderer.tokenize([g.prompt + c for c in g.completions]))) for g in groups]
    limit = sorted(longest)[15]
    dropped = split(groups, renderer, tmp_path, limit, "drop")
    long = [group for group, n in zip(groups, longest, strict=True) if n > limit]
    lost = Lost(len(long), 4 * len(long), sum(len(group.preferences) for group in long), long[0].id)
    assert dropped.report.dropped == {OVER_LENGTH: lost}
    assert len(dropped) + lost.rows == 30
    cut = split(groups, renderer, tmp_path, limit, "truncate_prompt")
    assert (len(cut), cut.report.dropped, cut.report.truncated) == (30, {}, lost.rows)


def test_whatever_changes_the_tokens_changes_the_key(renderer: Renderer, tmp_path: Path, counted: list[int]) -> None:
    groups = make_groups(4)
    template = make_tokenizer()
    template.chat_template += " "
    words = make_tokenizer()
    words.add_tokens(["w99"])
    first = groups[0]
    variants = [
        split(groups, renderer, tmp_path),
        split([first._replace(completions=first.completions[::-1]), *groups[1:]], renderer, tmp_path),
        split([first._replace(preferences=()), *groups[1:]], renderer, tmp_path),
        split(groups[::-1], renderer, tmp_path),
        split(groups, Renderer.for_tokenizer(template), tmp_path),
        split(groups, Renderer.for_tokenizer(words), tmp_path),
        split(groups, renderer, tmp_path, length=65),
        split(groups, renderer, tmp_path, rule="truncate_prompt"),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants) == len(counted)


def test_saving_the_tokenizer_does_not_change_the_key(renderer: Renderer, tmp_path: Path) -> None:
    own = Renderer.for_tokenizer(make_tokenizer())
    own.save_pretrained(tmp_path / "tokenizer")
    assert split(make_groups(2), own, tmp_path).fingerprint == split(make_groups(2), renderer, tmp_path).fingerprint


def test_an_empty_split_is_a_split(renderer: Renderer, tmp_path: Path) -> None:
    empty = split([], renderer, tmp_path)
    assert (len(empty), empty.groups(), empty.lengths()) == (0, [], [])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_groups_are_tokenised_alike_in_parts_of_any_size(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    groups = make_groups(20)
    groups[3] = groups[3]._replace(arguments='{"tools": []}')  # rendered one by one, as all of its batch
    expected = [renderer.tokenize([one.prompt + c for c in one.completions], one.arguments) for one in groups]
    monkeypatch.setattr(tokenize, "_CHUNK", size)
    monkeypatch.setattr(workers, "PART", size)
    made = split(groups, renderer, tmp_path, 4096, "error")
    assert [sequences(one) for one in made.groups()] == expected
    assert [one.preferences for one in made.groups()] == [one.preferences for one in groups]
    sizes = made.sizes()
    assert sizes.sequences.tolist() == [len(ids) for own in expected for ids in own]
    assert sizes.tokens == sum(prefix + sum(suffixes) for prefix, suffixes in made.lengths())
    assert sizes.tokens_repeated == sum(prefix + one for prefix, suffixes in made.lengths() for one in suffixes)


def test_a_batch_that_the_template_refuses_loses_the_refused_group_alone(renderer: Renderer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if 'w7' in messages[0]['content'] %}{{ raise_exception('no w7') }}{% endif %}" + tokenizer.chat_template
    )
    refusing, refused = Renderer.for_tokenizer(tokenizer), dict[str, TemplateRefusalError]()
    groups = [group(("w1",), ("w2", "w3"), "a"), group(("w7",), ("w2", "w3"), "b"), group(("w4",), ("w5", "w6"), "c")]
    made = list(tokenize_groups(groups, Tokenization(refusing, 64, "error"), refused))
    assert [one and one.id for one in made] == ["a", None, "c"]
    assert [*refused] == ["b"]


def with_identical() -> list[PreferenceGroup]:
    """Three groups: two preferences of four between the same tokens; both of two; none."""
    of_four = group(("w9",), ("w1", "w1 ", "w2", "w3"), "four")
    pairs = [(0, 1), (0, 2), (3, 1), (1, 0)]
    return [
        of_four._replace(preferences=tuple(Preference(*pair, 0.5) for pair in pairs)),
        group(("w9",), ("w5 w6", "w5  w6"), "same")._replace(preferences=(Preference(0, 1), Preference(1, 0))),
        group(("w9",), ("w5 w6", "w7"), "other")._replace(preferences=(Preference(1, 0),)),
    ]


def test_training_drops_preferences_between_the_same_tokens(renderer: Renderer, tmp_path: Path) -> None:
    groups = with_identical()
    for _ in range(2):  # made, and from the cache
        made = tokenize_split(groups, Tokenization(renderer, 64, "error"), tmp_path, drop_identical=True)
        assert [one.id for one in made.groups()] == ["four", "other"]
        assert [[p[:2] for p in one.preferences] for one in made.groups()] == [[(0, 2), (3, 1)], [(1, 0)]]
        assert made.report.dropped == {"identical after rendering": Lost(1, 2, 4, "four")}
        assert made.report.identical == {}
        assert not any(same for one in made.groups() for same in one.identical)


def test_evaluation_keeps_and_counts_them(renderer: Renderer, tmp_path: Path) -> None:
    groups = with_identical()
    long = " ".join(["w1"] * 30)
    groups.append(group(("w9",), (f"{long} w2", f"{long} w3"), "long")._replace(preferences=(Preference(0, 1),)))
    for _ in range(2):
        made = split(groups, renderer, tmp_path, 16, CUT)
        assert [one.preferences for one in made.groups()] == [one.preferences for one in groups]
        assert made.report.dropped == {}
        assert made.report.identical == {"identical after rendering": 4, "identical after truncation": 1}
    trained = tokenize_split(groups, Tokenization(renderer, 16, CUT), tmp_path, drop_identical=True)
    assert trained.report.dropped["identical after truncation"] == Lost(1, 2, 1, "long")
    assert trained.report.truncated == 0
    assert trained.fingerprint != made.fingerprint


def entry(made: TokenizedSplit, cache: Path) -> Path:
    return cache / f"{made.fingerprint[:32]}-{token_cache._LAYOUT}"


FILES = ("groups.arrow", "report.json", "checksums")


@pytest.mark.parametrize("damaged", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped", "longer"])
def test_a_damaged_entry_is_made_anew(
    renderer: Renderer, tmp_path: Path, counted: list[int], damaged: str, damage: str
) -> None:
    groups, told = make_groups(6), list[str]()
    first = split(groups, renderer, tmp_path)
    before = [sequences(made) for made in first.groups()]
    assert sorted(path.name for path in entry(first, tmp_path).iterdir()) == sorted(FILES)
    file = entry(first, tmp_path) / damaged
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flipped":
        content[len(content) // 2] ^= 16
    if damage != "gone":
        length = {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))
        file.write_bytes(content[:length] + b" " * (damage == "longer"))
    again = tokenize_split(groups, Tokenization(renderer, 64, "drop"), tmp_path, notify=told.append)
    assert [sequences(made) for made in again.groups()] == before
    assert again.report == first.report
    assert told == [f"the cached tokens in {entry(first, tmp_path)} are damaged, so they are made again"]
    tokenize_split(groups, Tokenization(renderer, 64, "drop"), tmp_path, notify=told.append)
    assert (counted, len(told)) == ([6, 6], 1)
    assert [sequences(made) for made in first.groups()] == before  # whoever had it open reads on


def test_every_flipped_bit_is_found(renderer: Renderer, tmp_path: Path) -> None:
    """One bit in each of 200 places, from the first byte of the table to the last."""
    folder = entry(split(make_groups(6), renderer, tmp_path), tmp_path)
    file = folder / FILES[0]
    whole = file.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 200).astype(int).tolist():
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        assert cache_entry.opened(folder, token_cache._read) is None
    file.write_bytes(whole)
    assert cache_entry.opened(folder, token_cache._read) is not None


def test_the_display_is_told_of_each_part(renderer: Renderer, tmp_path: Path) -> None:
    seen: list[int] = []
    tokenize_split(make_groups(PART + 3), Tokenization(renderer, 64, "drop"), tmp_path, seen.append)
    assert seen == [PART, PART + 3]


def _build(cache: str, started: Any) -> None:
    """In another process: tokenise a split once all are ready, slowly, and leave a mark if it was really tokenised."""
    renderer, original = Renderer.for_tokenizer(make_tokenizer()), token_cache.tokenize_groups

    def slow(*args: Any) -> Iterator[TokenizedGroup | None]:
        Path(f"{cache}-tokenised-by-{os.getpid()}").touch()
        time.sleep(1)
        return original(*args)

    token_cache.tokenize_groups = slow
    started.wait()
    made = split(make_groups(20), renderer, Path(cache))
    os._exit(0 if len(made) == 20 else 1)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_of_two_processes_at_once_one_tokenises_for_both(tmp_path: Path, renderer: Renderer, damaged: bool) -> None:
    context, cache = multiprocessing.get_context("spawn"), tmp_path / "cache"
    if damaged:
        file = entry(split(make_groups(20), renderer, cache), cache) / FILES[0]
        file.write_bytes(file.read_bytes().replace(b"made", b"maze"))
    barrier = context.Barrier(2)
    workers = [context.Process(target=_build, args=(str(cache), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list(tmp_path.glob("cache-tokenised-by-*"))) == 1
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1
    assert len(split(make_groups(20), renderer, cache)) == 20


def _die_while_writing(cache: str) -> None:
    """In another process: be killed when the table is written and not yet in place."""
    renderer = Renderer.for_tokenizer(make_tokenizer())
    Path.rename = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    split(make_groups(5), renderer, Path(cache))


@pytest.mark.slow
def test_what_a_killed_writer_left_is_not_read_and_is_cleared(
    tmp_path: Path, renderer: Renderer, counted: list[int]
) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=(str(tmp_path),))
    worker.start()
    worker.join(120)
    assert worker.exitcode == -signal.SIGKILL
    left = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(left) == 1
    (left[0] / "state.json").write_text("torn")
    made = split(make_groups(5), renderer, tmp_path)
    assert (len(made), counted) == (5, [5])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [entry(made, tmp_path).name]
