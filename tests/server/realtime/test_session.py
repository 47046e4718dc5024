"""One session of the realtime protocol, event by event, without a socket and with a clock that is set."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localwhisper_server.errors import Busy, EngineFailed
from localwhisper_server.realtime import session as protocol
from localwhisper_server.types import Draft
from tests.server.live_double import Client, answer, pcm, sound, transcript

if TYPE_CHECKING:
    from localwhisper_server.realtime.item import Pass

PREFIX = "conversation.item.input_audio_transcription."


def without_ids(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event without the ids that the server makes up."""
    return {key: value for key, value in event.items() if key not in ("event_id", "item_id")}


def update(client: Client, **audio: Any) -> list[dict[str, Any]]:
    """Send a session.update with these fields of `audio.input`."""
    return client.send("session.update", session={"type": "transcription", "audio": {"input": audio}})


def error(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the only event's error."""
    (event,) = events
    assert event["type"] == "error"
    assert list(event["error"]) == ["message", "type", "param", "code", "event_id"]
    return event["error"]


def test_a_turn_from_speech_to_text() -> None:
    """Silence, a second and a half of speech, silence: every event in its order, with OpenAI's fields."""
    client = Client()
    assert client.kinds() == ["session.created"]
    client.speak(1.0, 1.5, 1.0)
    assert client.kinds() == [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "completed",
    ]
    started, stopped, committed, completed = (
        event for event in client.events[1:] if not event["type"].endswith("delta")
    )
    assert started["audio_start_ms"] == pytest.approx(1000 - 300, abs=33)  # with the padding
    assert stopped["audio_end_ms"] == pytest.approx(2500 + 500, abs=65)  # with the silence
    assert without_ids(committed) == {"type": "input_audio_buffer.committed", "previous_item_id": None}
    assert without_ids(completed) == {
        "type": f"{PREFIX}completed",
        "content_index": 0,
        "transcript": "w0 w1 w2",
        "usage": {"type": "duration", "seconds": 3},
    }
    items = {event["item_id"] for event in client.events[1:]}
    assert len(items) == 1
    ids = [event["event_id"] for event in client.events]
    assert len(set(ids)) == len(ids)
    assert all(
        list(event) == ["type", "event_id", "item_id", "content_index", "delta"]
        for event in client.events
        if event["type"].endswith("delta")
    )


def test_words_come_while_they_are_spoken() -> None:
    """After four seconds of speech without a pause most of it is said; and all of it after the pause, once."""
    client = Client()
    client.speak(0.5, 4.0)
    (partial,) = client.said().values()
    assert partial.split()[:5] == ["w0", "w1", "w2", "w3", "w4"]
    assert client.completed() == {}
    client.speak(1.0)
    assert list(client.completed().values()) == ["w0 w1 w2 w3 w4 w5 w6 w7"]
    assert client.said() == client.completed()


def test_the_text_is_ready_when_the_pause_is_over() -> None:
    """A pass that begins early in the pause has heard everything, so that the end of the turn needs none."""
    client = Client()
    client.speak(0.5, 2.0, 0.4)
    before = len(client.passes)
    client.speak(0.6)
    assert len(client.passes) == before
    assert len(client.completed()) == 1


def test_two_turns_name_each_other() -> None:
    """The second item's predecessor is the first."""
    client = Client()
    client.speak(0.2, 1.0, 1.0, 1.0, 1.0)
    first, second = (event for event in client.events if event["type"] == "input_audio_buffer.committed")
    assert (first["previous_item_id"], second["previous_item_id"]) == (None, first["item_id"])
    assert list(client.completed()) == [first["item_id"], second["item_id"]]


def test_without_turn_detection_the_client_commits() -> None:
    """As wyoming-openai does: no speech events, words before the commit, one item."""
    client = Client()
    (updated,) = update(client, turn_detection=None)
    assert updated["session"]["audio"]["input"]["turn_detection"] is None
    client.speak(0.5, 2.0, 2.0, 1.0)
    assert client.kinds() == ["session.created", "session.updated"]
    assert list(client.said().values()) == ["w0 w1 w2 w3 w0"]
    client.send("input_audio_buffer.commit")
    assert client.kinds()[2:] == ["input_audio_buffer.committed", "completed"]
    assert list(client.completed().values()) == ["w0 w1 w2 w3 w0 w1"]  # the second part was decoded alone
    assert client.said() == client.completed()


def test_the_end_as_agents_send_it() -> None:
    """`commit` and `clear` with an empty buffer: an error with their event's id, then `cleared`."""
    client = Client()
    assert error(client.send("input_audio_buffer.commit", event_id="last")) == {
        "message": "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but "
        "buffer only has 0.00ms of audio.",
        "type": "invalid_request_error",
        "param": None,
        "code": "input_audio_buffer_commit_empty",
        "event_id": "last",
    }
    assert [without_ids(event) for event in client.send("input_audio_buffer.clear")] == [
        {"type": "input_audio_buffer.cleared"}
    ]


def test_commit_in_the_middle_of_speech() -> None:
    """The item ends there, and speech that goes on begins another one."""
    client = Client()
    client.speak(0.5, 1.0)
    client.send("input_audio_buffer.commit")
    client.speak(0.0, 1.0, 1.0)
    assert client.kinds()[1:] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.committed",
        "completed",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "completed",
    ]
    assert list(client.completed().values()) == ["w0 w1", "w0 w1"]


def test_a_commit_of_silence_is_an_empty_item() -> None:
    """It is not decoded: Whisper would invent words."""
    client = Client()
    client.speak(1.0)
    client.send("input_audio_buffer.commit")
    assert client.kinds()[1:] == ["input_audio_buffer.committed", "completed"]
    assert list(client.completed().values()) == [""]
    assert client.passes == []


def test_clear_drops_what_is_not_committed() -> None:
    """No text of it comes later, even if a pass is at work; the next item is whole."""
    client = Client(answers=None)
    client.speak(0.5, 1.0)
    assert client.work is not None
    client.send("input_audio_buffer.clear")
    client.finish(transcript(" w0 w1"))
    client.answers = lambda work: answer(work.samples, work.decoding)
    client.speak(0.2, 1.0, 1.0)
    assert list(client.completed().values()) == ["w0 w1"]
    assert client.said() == client.completed()
    started = [event["item_id"] for event in client.events if event["type"].endswith("speech_started")]
    assert len(started) == 2
    assert list(client.completed()) == started[1:]


def test_an_item_committed_while_a_pass_runs_waits_for_it() -> None:
    """The pass has heard everything, so its text is the item's."""
    client = Client(answers=None)
    client.speak(0.5, 1.0, 0.6)
    while client.work is not None and client.session.next_pass() is None and not client.completed():
        client.finish(transcript(" one two"))
        client.run()
    assert list(client.completed().values()) == ["one two"]


def test_a_pass_that_misses_the_end_of_a_phrase_is_replaced() -> None:
    """Its outcome is not waited for: the next pass hears all of the phrase, and its text is the item's."""
    client = Client(answers=None)
    client.speak(0.5, 1.0)
    outdated = client.work
    assert outdated is not None
    client.speak(0.0, 0.5, 0.1)
    assert client.work is outdated  # the pause is not long enough yet
    client.speak(0.1)
    assert client.work is not outdated
    assert client.work is not None
    client.finish(answer(client.work.samples, client.work.decoding))
    client.speak(0.5)
    assert list(client.completed().values()) == ["w0 w1 w2"]


def rejecting(client: Client) -> list[Pass]:
    """Reject every text in the pause after a second of speech, until a pass is thorough; return the last three."""
    client.speak(0.5, 1.0, 0.2)
    client.finish(Draft(transcript(" w0 w")))
    client.run()
    assert client.work is None  # there is not enough silence yet
    client.speak(0.15)
    client.finish(None)
    client.run()
    return client.passes[-3:]


def test_a_phrase_whose_text_is_rejected_is_decoded_again_before_the_turn_is_over() -> None:
    """With more silence, and then thoroughly. That pass is of the same sound, and its text is that of the turn."""
    client = Client(answers=None)
    early, second, again = rejecting(client)
    assert [(work.thorough, work.settles) for work in (early, second, again)] == [(False, False)] * 2 + [(True, False)]
    assert early.end < second.end == again.end
    assert again.samples.tolist() == second.samples.tolist()
    assert again.speech == second.speech
    client.speak(0.4)  # the turn ends, and waits for the pass
    assert client.work is again
    client.finish(answer(again.samples, again.decoding))
    client.run()
    assert client.completed() == client.said() == {client.events[1]["item_id"]: "w0 w1"}
    assert client.passes[-1] is again


def test_a_text_that_is_rejected_after_the_turn_is_decoded_again_from_there() -> None:
    """The pass that settles the turn is of the rejected sound, unless that has too little silence."""
    for silence, same in ((0.2, False), (0.35, True)):
        client = Client(answers=None)
        client.speak(0.5, 1.0, 0.2)
        if same:
            client.finish(None)
            client.speak(0.15)
        rejected = client.work
        assert rejected is not None
        client.speak(0.6 - silence)
        assert client.work is rejected
        client.finish(None)
        client.run()
        settling = client.passes[-1]
        assert (settling.settles, settling.thorough) == (True, True)
        assert (settling.end == rejected.end) == same
        client.finish(answer(settling.samples, settling.decoding))
        assert list(client.completed().values()) == ["w0 w1"]


def test_a_speaker_who_goes_on_is_heard_before_the_pause_is_decoded_again() -> None:
    """The pass for a turn's end that has not come is replaced, once there is enough new sound; no word is lost."""
    client = Client(answers=None)
    again = rejecting(client)[-1]
    client.speak(0.0, 0.1)
    assert client.work is again
    client.speak(0.0, 0.4)
    assert client.work is not None
    assert not client.work.thorough
    client.answers = lambda work: answer(work.samples, work.decoding)
    client.run()
    client.speak(0.6)
    assert list(client.completed().values()) == ["w0 w1 w2"]


def test_a_busy_engine_is_not_asked_again_and_again_in_a_pause() -> None:
    """Only when the turn is over."""
    client = Client(answers=None)
    rejecting(client)
    client.finish(Busy("The server is busy.", retry_after=3))
    client.run()
    assert client.work is None
    client.answers = lambda work: answer(work.samples, work.decoding)
    client.speak(0.4)
    assert list(client.completed().values()) == ["w0 w1"]


def test_a_pass_of_sound_that_was_cleared_is_replaced() -> None:
    """The next item need not wait for it."""
    client = Client(answers=None)
    client.speak(0.5, 1.0)
    cleared = client.work
    client.send("input_audio_buffer.clear")
    assert client.work is cleared
    client.speak(0.5, 1.0)
    assert client.work is not None
    assert client.work is not cleared


def test_speech_without_a_pause_is_cut() -> None:
    """Half a minute of it: no pass is longer than 12 s, and every word is said once."""
    client = Client()
    client.speak(0.2, 30.0, 1.0)
    assert max(work.samples.size for work in client.passes) <= 12 * 16_000
    (text,) = client.completed().values()
    assert len(text.split()) == pytest.approx(60, abs=3)
    assert client.said() == client.completed()


def test_a_window_that_gets_long_in_a_pause_is_not_cut_in_an_earlier_one() -> None:
    """The pass in the pause hears all of it, and no other is needed when the turn ends there."""
    client = Client()
    client.speak(0.2, 5.0, 0.4, 3.2, 0.6)
    assert not any(work.settles for work in client.passes)
    assert max(work.samples.size for work in client.passes) > 8.8 * 16_000
    (text,) = client.completed().values()
    assert len(text.split()) == 16


def test_a_whole_recording_at_once() -> None:
    """Two minutes in one event, without a real-time clock: heard in slices, with a bounded backlog, nothing lost."""
    client = Client()
    update(client, turn_detection=None)
    most = 0.0

    def decode(work: Any) -> Any:
        nonlocal most
        most = max(most, client.session._turns.backlog)
        return answer(work.samples, work.decoding)

    client.answers = decode
    samples = sound(*[1.0, 5.0] * 20, rate=24_000)
    client.send("input_audio_buffer.append", audio=base64.b64encode(pcm(samples)).decode())
    client.send("input_audio_buffer.commit")
    (text,) = client.completed().values()
    assert len(text.split()) == 200
    assert most < protocol.MOST_BACKLOG_SECONDS + 13


def test_a_full_session_takes_no_more_sound() -> None:
    """While nothing is transcribed, a minute is held, and the rest waits."""
    client = Client(answers=None)
    update(client, turn_detection=None)
    samples = sound(0.0, 120.0, rate=24_000)
    client.send("input_audio_buffer.append", audio=base64.b64encode(pcm(samples)).decode())
    assert client.session.full
    assert client.session.unheard
    assert 60 < client.session._turns.backlog < 63
    client.answers = lambda work: answer(work.samples, work.decoding)
    client.run()
    assert not client.session.unheard


# What a session can be set to


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ({"type": "server_vad"}, (0.5, 300, 500)),
        (
            {"type": "server_vad", "threshold": 0.7, "prefix_padding_ms": 600, "silence_duration_ms": 350},
            (0.7, 600, 350),
        ),
        ({"type": "semantic_vad"}, (0.5, 300, 800)),
        ({"type": "semantic_vad", "eagerness": "high", "create_response": True}, (0.5, 300, 400)),
        ({"type": "semantic_vad", "eagerness": "low"}, (0.5, 300, 1500)),
    ],
)
def test_turn_detection_is_answered_as_server_vad(sent: dict[str, Any], shown: tuple[float, int, int]) -> None:
    """What it will go by; a semantic detector's eagerness is a pause here."""
    (updated,) = update(Client(), turn_detection=sent)
    keys = ("type", "threshold", "prefix_padding_ms", "silence_duration_ms")
    assert updated["session"]["audio"]["input"]["turn_detection"] == dict(
        zip(keys, ("server_vad", *shown), strict=True)
    )


def test_the_session_object() -> None:
    """As in OpenAI's answers; what an update does not name stays."""
    client = Client()
    update(
        client, noise_reduction={"type": "near_field"}, transcription={"model": "gpt-transcribe", "languages": ["en"]}
    )
    logprobs = ["item.input_audio_transcription.logprobs"]
    (updated,) = client.send("session.update", session={"type": "transcription", "include": logprobs})
    assert updated["session"] == {
        "id": "sess_1",
        "object": "realtime.transcription_session",
        "expires_at": 1_800_003_600,
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "gpt-transcribe", "languages": ["en"]},
                "noise_reduction": {"type": "near_field"},
                "turn_detection": {
                    "type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500,
                },
            }
        },
        "include": logprobs,
    }  # fmt: skip


def test_options_reach_the_decoder() -> None:
    """Language, prompt and keywords, for the items that begin after the update."""
    client = Client()
    update(
        client, transcription={"model": "whisper-1", "language": "de", "prompt": "Hallo", "keywords": ["Zoë", "Ann"]}
    )
    client.speak(0.2, 1.0, 1.0)
    assert {(work.decoding.language, work.decoding.prompt, work.decoding.hotwords) for work in client.passes} == {
        ("de", "Hallo", "Zoë, Ann")
    }


def test_the_language_is_kept_within_an_item() -> None:
    """Detected once words are said of it, and again for the next item."""
    client = Client()
    client.speak(0.2, 4.0, 1.0, 1.0, 1.0)
    languages: dict[str, list[str | None]] = {}
    for work in client.passes:
        languages.setdefault(work.item.id, []).append(work.decoding.language)
    first, second = languages.values()
    assert (first[:2], first[-1]) == ([None, None], "en")
    assert second[0] is None


def test_gpt_transcribe_lists_languages() -> None:
    """LiveKit takes them before its own hint."""
    client = Client()
    update(client, transcription={"model": "gpt-live-transcribe"})
    client.speak(0.2, 1.0, 1.0)
    assert client.events[-1]["languages"] == [{"code": "en"}]


def test_logprobs_of_deltas_add_up() -> None:
    """Each token is in one delta, and all are in the end."""
    client = Client()
    client.send("session.update", session={"include": ["item.input_audio_transcription.logprobs"]})
    client.speak(0.2, 3.0, 1.0)
    deltas = [entry for event in client.events if event["type"].endswith("delta") for entry in event["logprobs"]]
    completed = client.events[-1]
    assert deltas == completed["logprobs"]
    assert "".join(entry["token"] for entry in deltas).strip() == completed["transcript"]
    assert deltas[1] == {"token": "w", "logprob": -0.5, "bytes": [119]}


@pytest.mark.parametrize(
    ("form", "rate", "codes"),
    [
        ({"type": "audio/pcm", "rate": 16000}, 16_000, None),
        ({"type": "audio/pcmu"}, 8000, (0xFF, 0x90)),
        ({"type": "audio/pcma"}, 8000, (0xD5, 0xB5)),
    ],
)
def test_formats(form: dict[str, Any], rate: int, codes: tuple[int, int] | None) -> None:
    """A second and a half of speech is that in each; `codes` are the bytes for silence and for a loud sound."""
    client = Client()
    (updated,) = update(client, format=form)
    assert updated["session"]["audio"]["input"]["format"] == form
    samples = sound(1.0, 1.5, 1.0, rate=rate)
    data = pcm(samples) if codes is None else bytes(codes[int(sample > 0)] for sample in samples)
    client.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())
    assert list(client.completed().values()) == ["w0 w1 w2"]


def test_a_rate_that_is_written_as_a_fraction() -> None:
    """Some languages have no other numbers."""
    client = Client()
    form = {"type": "audio/pcm", "rate": 16000.0}
    (updated,) = client.send("session.update", session={"audio": {"input": {"format": form}}})
    assert updated["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 16_000}


def test_what_is_only_shown_is_short() -> None:
    """Otherwise a client could have megabytes kept, and sent with every answer to an update."""
    client = Client()
    given = {"noise_reduction": {"type": "x" * 1000}, "transcription": {"delay": [[[["deep"]]]]}}
    (updated,) = client.send("session.update", session={"audio": {"input": given}})
    shown = updated["session"]["audio"]["input"]
    assert (shown["noise_reduction"], shown["transcription"]) == ({}, {"model": "base"})


def test_the_beta_form() -> None:
    """As a Home Assistant integration speaks it: another update, other names, 16 kHz, and a commit at the end."""
    client = Client(beta=True)
    assert client.kinds() == ["transcription_session.created"]
    (updated,) = client.send(
        "transcription_session.update",
        session={
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "gpt-4o-transcribe", "prompt": "", "language": "en"},
            "turn_detection": {"type": "server_vad"},
            "input_audio_noise_reduction": None,
        },
    )
    assert updated["type"] == "transcription_session.updated"
    assert updated["session"]["input_audio_format"] == "pcm16"
    assert updated["session"]["input_audio_transcription"]["language"] == "en"
    assert updated["session"]["turn_detection"]["type"] == "server_vad"
    client.speak(0.3, 1.5, 0.2)
    client.send("input_audio_buffer.commit")
    assert list(client.completed().values()) == ["w0 w1 w2"]


# What goes wrong


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid_json"),
        ("[]", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ('{"type": "\\ud800"}', "invalid_json"),  # half a character
        ('{"type": "x", "event_id": "\\ud83d\\ude00"}', "invalid_value"),  # a whole one
        (None, "invalid_event"),
        ("{}", "invalid_value"),
        ('{"type": "response.create"}', "invalid_value"),
        ('{"type": ["session.update"]}', "invalid_value"),
        ('{"type": "input_audio_buffer.append"}', "invalid_type"),
        ('{"type": "input_audio_buffer.append", "audio": "?"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "é"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "AAA"}', "invalid_value"),
        (json.dumps({"type": "input_audio_buffer.append", "audio": "A" * (15 * 2**20 + 4)}), "string_above_max_length"),
    ],
)
def test_broken_events(text: str | None, code: str) -> None:
    """Each is answered by an error, and the session goes on."""
    client = Client()
    assert error(client.send_text(text))["code"] == code
    client.speak(0.2, 1.0, 1.0)
    assert list(client.completed().values()) == ["w0 w1"]


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"type": "realtime"}, "session.type"),
        ({"audio": []}, "session.audio"),
        ({"audio": {"input": {"format": {"type": "audio/mp3"}}}}, "session.audio.input.format"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 44100}}}}, "session.audio.input.format.rate"),
        ({"audio": {"input": {"turn_detection": {"type": "psychic"}}}}, "session.audio.input.turn_detection.type"),
        (
            {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}},
            "session.audio.input.turn_detection.threshold",
        ),
        (
            {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "mad"}}}},
            "session.audio.input.turn_detection.eagerness",
        ),
        ({"audio": {"input": {"transcription": {"model": "gpt-9"}}}}, "session.audio.input.transcription.model"),
        ({"audio": {"input": {"transcription": {"language": 7}}}}, "session.audio.input.transcription.language"),
        ({"audio": {"input": {"transcription": {"keywords": "a"}}}}, "session.audio.input.transcription.keywords"),
        ({"include": ["everything"]}, "session.include"),
        ({"turn_detection": 7}, "session.turn_detection"),
        ("transcription", "session"),
    ],
)
def test_an_update_that_cannot_be_honoured(sent: Any, param: str) -> None:
    """It names the field and changes nothing."""
    client = Client()
    before = client.session._set
    refusal = error(client.send("session.update", event_id="mine", session=sent))
    assert (refusal["param"], refusal["event_id"], refusal["type"]) == (param, "mine", "invalid_request_error")
    assert client.session._set == before


def test_a_draft_settles_nothing() -> None:
    """Words are said of it, but the end needs a pass that is accepted."""
    client = Client()
    client.answers = lambda work: None if work.settles else Draft(answer(work.samples, work.decoding))
    client.speak(0.2, 3.0)
    (said,) = client.said().values()
    assert said.startswith("w0 w1 w2")
    client.answers = lambda work: transcript(f" {said} end") if work.settles else None
    client.speak(1.0)
    assert list(client.completed().values()) == [f"{said} end"]


def test_a_failed_pass_fails_its_item_alone() -> None:
    """With OpenAI's event; the next item is transcribed."""
    client = Client()
    client.answers = lambda work: EngineFailed() if work.settles else None
    client.speak(0.2, 1.0, 1.0)
    failed = client.events[-1]
    assert without_ids(failed) == {
        "type": f"{PREFIX}failed",
        "content_index": 0,
        "error": {
            "message": "The server had an error while processing your request.",
            "type": "server_error",
            "param": None,
            "code": None,
        },
    }
    client.answers = lambda work: answer(work.samples, work.decoding)
    client.speak(0.2, 1.0, 1.0)
    assert list(client.completed().values()) == ["w0 w1"]


def test_a_busy_engine_says_when_to_come_back() -> None:
    """In words, and as a number beside OpenAI's fields."""
    client = Client()
    client.answers = lambda work: Busy("The server is busy.", retry_after=3) if work.settles else None
    client.speak(0.2, 1.0, 1.0)
    failed = client.events[-1]["error"]
    assert (failed["code"], failed["retry_after"]) == ("server_is_overloaded", 3)
    assert failed["message"] == "The server is busy. (Retry after 3 s.)"


# How it ends


def test_a_session_ends_after_an_hour() -> None:
    """With OpenAI's words."""
    client = Client()
    while client.now < protocol.LONGEST_SECONDS:
        assert client.session.deadline > client.now
        assert client.session.tick(client.now) == []
        client.now += protocol.IDLE_SECONDS / 2
        client.send("input_audio_buffer.clear")
    ended = error(client.session.tick(client.now))
    assert (ended["code"], ended["message"]) == (
        "session_expired",
        "Your session hit the maximum duration of 60 minutes.",
    )
    assert client.session.over


def test_an_idle_session_ends() -> None:
    """Nothing sent for ten minutes; it says so."""
    client = Client()
    assert client.session.deadline == protocol.IDLE_SECONDS
    assert error(client.session.tick(protocol.IDLE_SECONDS))["code"] == "session_idle_timeout"
    assert client.session.over


def test_a_session_that_ends_says_its_last_text() -> None:
    """What was committed is transcribed first; what is sent then is not taken."""
    client = Client(answers=None)
    client.speak(0.2, 1.0)
    client.send("input_audio_buffer.commit")
    assert client.session.tick(protocol.IDLE_SECONDS) == []
    assert client.send("input_audio_buffer.commit") == []
    while client.work is not None:
        client.finish(transcript(" w0 w1"))
        client.run()
    assert client.kinds()[-2:] == ["completed", "error"]
    assert client.session.over


def test_a_session_waits_only_so_long_for_its_last_text() -> None:
    """An engine that is stuck does not keep it open."""
    client = Client(answers=None)
    client.speak(0.2, 1.0)
    client.send("input_audio_buffer.commit")
    client.session.tick(protocol.IDLE_SECONDS)
    assert client.session.deadline == protocol.IDLE_SECONDS + protocol.LAST_SECONDS
    assert error(client.session.tick(client.session.deadline))["code"] == "session_idle_timeout"
    assert client.session.over


@pytest.mark.parametrize("detection", [{"type": "server_vad"}, None], ids=["vad", "by commits"])
def test_a_server_that_stops_says_the_last_text(detection: Any) -> None:
    """What is being spoken is committed and transcribed; then the session is over, without an error."""
    client = Client(answers=None)
    update(client, turn_detection=detection)
    client.speak(0.2, 1.0)
    client.events += client.session.stop(client.now)
    assert client.send("input_audio_buffer.commit") == []  # it is too late
    assert not client.session.over
    while client.work is not None:
        client.finish(transcript(" w0 w1"))
        client.run()
    assert client.kinds()[-2:] == ["input_audio_buffer.committed", "completed"]
    assert list(client.completed().values()) == ["w0 w1"]
    assert client.session.over


@pytest.mark.parametrize("detection", [{"type": "server_vad"}, None], ids=["vad", "by commits"])
def test_a_server_that_stops_commits_no_silence(detection: Any) -> None:
    """The session is over at once."""
    client = Client()
    update(client, turn_detection=detection)
    client.speak(0.5)
    assert client.session.stop(client.now) == []
    assert client.session.over


def test_a_server_that_stops_hears_all_that_was_sent() -> None:
    """Sound that waits is heard before the commit."""
    client = Client()
    audio = base64.b64encode(pcm(sound(0.5, 4.0, rate=24_000))).decode()
    client.events += client.session.receive(json.dumps({"type": "input_audio_buffer.append", "audio": audio}), 0.0)
    assert client.session.stop(client.now) == []
    client.run()
    assert list(client.completed().values()) == ["w0 w1 w2 w3 w4 w5 w6 w7"]
    assert client.session.over


def test_a_server_that_stops_waits_only_so_long() -> None:
    """For an engine that is stuck, and also where the session is at its own end."""
    for idle in (False, True):
        client = Client(answers=None)
        client.speak(0.2, 1.0)
        client.send("input_audio_buffer.commit")
        if idle:
            client.session.tick(protocol.IDLE_SECONDS)
        assert client.session.stop(protocol.IDLE_SECONDS) == []
        assert client.session.deadline == protocol.IDLE_SECONDS + protocol.STOP_SECONDS
        client.session.tick(client.session.deadline)
        assert client.session.over


# Whatever comes in whatever order

ACTIONS: dict[str, Any] = {
    "commit": lambda client: client.send("input_audio_buffer.commit"),
    "clear": lambda client: client.send("input_audio_buffer.clear"),
    "null": lambda client: update(client, turn_detection=None),
    "vad": lambda client: update(client, turn_detection={"type": "semantic_vad", "eagerness": "high"}),
    "pcm": lambda client: update(client, format={"type": "audio/pcm", "rate": 16000}),
    "beta": lambda client: client.send("transcription_session.update", session={"input_audio_format": "pcm16"}),
    "broken": lambda client: client.send_text("{"),
    "finish": lambda client: client.work and client.finish(answer(client.work.samples, client.work.decoding)),
    "reject": lambda client: client.work and not client.work.settles and client.finish(None),
    "fail": lambda client: client.work and client.finish(EngineFailed()),
    "stop": lambda client: client.events.extend(client.session.stop(client.now)),
}
SPEECH = st.tuples(st.floats(0, 1.5), st.floats(0, 4))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(SPEECH, st.sampled_from(sorted(ACTIONS))), max_size=25))
def test_no_order_of_events_breaks_a_session(steps: list[tuple[float, float] | str]) -> None:
    """Every committed item ends once, in order; no text is taken back; no event comes for an item that has ended."""
    client = Client(answers=None)
    for step in steps:
        if isinstance(step, str):
            ACTIONS[step](client)
        else:
            client.speak(*step, piece=0.5)
        client.run()
    client.answers = lambda work: answer(work.samples, work.decoding)
    client.run()
    client.send("input_audio_buffer.commit")
    check(client.events)
    assert client.session._turns.idle
    assert not client.session.unheard


def check(events: list[dict[str, Any]]) -> None:
    """Check what holds for the events of every session."""
    texts, ended, committed = dict[str, str](), list[str](), list[str]()
    for event in events:
        item, kind = event.get("item_id", ""), event["type"]
        assert item not in ended, event
        if kind == "input_audio_buffer.committed":
            assert event["previous_item_id"] == (committed[-1] if committed else None)
            committed.append(item)
        elif kind == f"{PREFIX}delta":
            assert event["delta"]
            texts[item] = texts.get(item, "") + event["delta"]
        elif kind == f"{PREFIX}completed":
            assert event["transcript"] == texts.get(item, "")
            ended.append(item)
        elif kind == f"{PREFIX}failed":
            ended.append(item)
    assert ended == committed
