"""The talk between a monitor and its child, where one of them has gone."""

from __future__ import annotations

import pytest

from deskd.runtime.handshake import Channel, Disconnected, Message, StepFailed


def test_a_childs_last_words_are_heard_after_its_end() -> None:
    ours, theirs = Channel.pair()
    ours.send(Message.MAPPED)  # it leaves this unread
    assert not ours.ended
    theirs.send(Message.FAILED, step="root", text="no", errno=2, kind="NotFound", exit_code=0)
    assert not ours.ended
    theirs.close()
    assert ours.ended
    with pytest.raises(StepFailed, match="no"):
        ours.receive()
    with pytest.raises(Disconnected):
        ours.receive()
    ours.close()
