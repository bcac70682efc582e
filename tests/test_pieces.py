"""Token bytes to text: characters stay whole, stop strings never show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyfastv.engine.active import Active
from pyfastv.engine.job import Job
from pyfastv.engine.pieces import PieceReader
from pyfastv.settings.setting import Setting


def read(tokens: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    reader = PieceReader(stop)
    pieces = [reader.feed(token) for token in tokens]
    return [*pieces, reader.finish()], reader.stopped


def test_a_character_cut_by_a_token_is_held_back_until_whole() -> None:
    sun = "\N{BLACK SUN WITH RAYS}".encode()
    assert read([b"a" + sun[:1], sun[1:2], sun[2:] + b"b"]) == (["a", "", sun.decode() + "b", ""], False)


def test_broken_utf8_becomes_the_replacement_character() -> None:
    assert "".join(read([b"a\xff", b"b", b"\xe2\x98"])[0]) == "a\ufffdb\ufffd"


def test_one_leading_space_is_left_out() -> None:
    assert "".join(read([b"", b" It", b" is"])[0]) == "It is"
    assert "".join(read([b"  It"])[0]) == " It"


def test_a_stop_string_across_tokens_never_shows() -> None:
    assert read([b"one EN", b"D", b" two"], ("END",)) == (["one ", "", "", ""], True)


def test_a_stop_string_that_only_began_is_given_out() -> None:
    assert read([b"one EN", b"X", b" E"], ("END",)) == (["one ", "ENX", " ", "E"], False)


def test_the_first_of_several_stop_strings_counts() -> None:
    assert "".join(read([b"a b c d"], ("d", "b c", "c"))[0]) == "a "


def test_a_stop_string_inside_a_longer_one_stops_at_once() -> None:
    assert read([b"xa", b"b", b"c"], ("abc", "b")) == (["x", "a", "", ""], True)


@given(
    st.lists(st.text("ab<", max_size=4)),
    st.lists(st.text("ab<", min_size=1, max_size=3), max_size=3),
)
def test_pieces_join_to_the_text_before_the_first_stop_string(tokens: list[str], stop: list[str]) -> None:
    text = "".join(tokens)
    # what a reader that sees every character at once would give
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stop)]
    expected = text
    if ends:
        longest = max(len(s) for s in stop if text[: ends[0]].endswith(s))
        expected = text[: ends[0] - longest]

    one_by_one, stopped = read([character.encode() for character in text], tuple(stop))
    assert ("".join(one_by_one), stopped) == (expected, bool(ends))
    by_token, stopped = read([token.encode() for token in tokens], tuple(stop))
    assert stopped == bool(ends)
    assert not any(s in "".join(by_token) for s in stop)


def test_a_text_that_goes_on_keeps_its_space() -> None:
    reader = PieceReader(keep_space=True)
    assert reader.feed(b" It") + reader.feed(b" is") + reader.finish() == " It is"


def test_probabilities_of_tokens_that_become_no_text_are_told() -> None:
    job = Job(lambda job: None)
    options = {"setting": Setting(), "image_decode_ms": 0.0, "n_pictures": 0}
    active = Active(job=job, request=None, stop=(), **options)  # type: ignore[arg-type]
    special = {"token": 5, "bytes": b"", "logprob": -0.5, "top": [(5, b"", -0.5)]}
    active.take({**special, "finish": "length"})
    job._end("length", None)
    assert [(piece.text, [prob.id for prob in piece.probs]) for piece in job] == [("", [5])]


def test_the_stop_string_that_came_is_told() -> None:
    for stops, came in ((["b", "ab"], "ab"), (["zz", "b"], "b"), (["zz"], "")):
        reader = PieceReader(stops)
        reader.feed(b"xa")
        reader.feed(b"b")
        assert reader.stop_string == came
        assert reader.stopped == bool(came)
