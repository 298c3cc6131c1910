"""Two reliable byte streams, one each way, over frames that may be lost, doubled or damaged.

No input or output happens here: :meth:`Channel.receive` takes a frame's content, :meth:`Channel.
poll` gives the contents to send, and the caller says what time it is. That makes the same code the
host's and the board's, and lets tests run it on a simulated line.

Every frame has a new number, also when it repeats bytes; the bytes have an offset in the stream.
Acknowledgements say which numbers came (the largest and the 64 before it), how far the stream is
complete, and how far it may go. So a loss is known as soon as three later frames have come, the
round trip is measured without doubt, and what is repeated can be cut into smaller pieces: on a line
that damages many bytes only short frames get through, on a clean one long frames cost least.

docs/serial-protocol.md has the format of each frame. Standard library only.
"""

from __future__ import annotations

from s2a_edge.link.channel_frames import ACK, ACK_FRAME, DATA, DATA_HEADER
from s2a_edge.link.receiver import Receiver
from s2a_edge.link.sender import Sender


class Channel:
    """Both halves of one side.

    Args:
        session: number that both sides know; frames of another one are not for this channel.
    """

    def __init__(self, session: int) -> None:
        self.session = session
        self.sender = Sender(session)
        self.receiver = Receiver(session)

    def receive(self, content: bytes, now_s: float) -> bool:
        """Take a DATA or ACK frame; whether it was one of this channel."""
        kind = content[0]
        if kind == DATA and len(content) > DATA_HEADER.size:
            _, session, number, offset = DATA_HEADER.unpack_from(content)
            if session == self.session and offset < 2**48:
                self.receiver.take_data(number, offset, content[DATA_HEADER.size :])
                return True
        elif kind == ACK and len(content) == ACK_FRAME.size:
            _, session, following, limit, largest, mask = ACK_FRAME.unpack(content)
            if session == self.session:
                self.sender.take_ack(following, limit, largest, mask, now_s)
                return True
        return False

    def poll(self, now_s: float, *, may_send_data: bool = True) -> bytes | None:
        """The next frame to send, or None for now; acknowledgements come first."""
        ack = self.receiver.next_ack()
        if ack is not None:
            return ack
        return self.sender.next_frame(now_s) if may_send_data else None
