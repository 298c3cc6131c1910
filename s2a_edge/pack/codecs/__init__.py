"""Codecs: how a value is kept in few bits between the forward and the backward."""

from s2a_edge.pack.codecs.choose import SCALED, codec_for
from s2a_edge.pack.codecs.codec import Codec

__all__ = ["SCALED", "Codec", "codec_for"]
