"""A value ↔ the payload bytes that are stored for it.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""

from __future__ import annotations

from .form import Codec
from .registry import ClassCodecs, CustomCodec, Registry, class_codecs, return_codec, runs_code, settled
from .tagged import TAGGED
from .typed import codec_for

__all__ = [
    "TAGGED",
    "ClassCodecs",
    "Codec",
    "CustomCodec",
    "Registry",
    "class_codecs",
    "codec_for",
    "return_codec",
    "runs_code",
    "settled",
]
