"""Show that the grid in this process answers as Flower's own would, errors included."""

from __future__ import annotations

import pytest
from flwr.app import Context, Message, RecordDict

from fedopt import local_grid
from fedopt.local_grid import CLIENT_APP_RAISED, LocalGrid, claim_flower_identity
from privacy.errors import SettingsError


def echo(message: Message, context: Context) -> Message:
    if message.metadata.group_id == "bad":
        raise ValueError("no such thing")
    return Message(RecordDict(), reply_to=message)


def ask(grid: LocalGrid, labels: list[str]) -> list[Message]:
    (node,) = grid.get_node_ids()
    messages = [grid.create_message(RecordDict(), "train", node, label) for label in labels]
    return list(grid.send_and_receive(messages))


def test_every_message_is_answered_in_order_under_its_own_number() -> None:
    replies = ask(LocalGrid(echo), ["a", "b", "c"])
    assert [reply.metadata.group_id for reply in replies] == ["a", "b", "c"]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["1", "2", "3"]


def test_an_app_that_raises_answers_with_an_error_and_the_others_go_on() -> None:
    good, bad, after = ask(LocalGrid(echo), ["a", "bad", "c"])
    assert not good.has_error()
    assert not after.has_error()
    assert bad.error.code == CLIENT_APP_RAISED
    assert "ValueError: no such thing" in str(bad.error.reason)


def test_an_unknown_flower_is_refused_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_grid, "version", lambda name: "9.9.0")
    with pytest.raises(SettingsError, match=r"flwr must be version 1\.41\.x .* got 9\.9\.0"):
        claim_flower_identity()


def test_what_needs_a_flower_run_is_refused_in_a_sentence() -> None:
    grid = LocalGrid(echo)
    with pytest.raises(SettingsError, match="no Flower run"):
        _ = grid.run
    for call in (grid.push_messages, grid.pull_messages):
        with pytest.raises(SettingsError, match="send_and_receive"):
            call([])
