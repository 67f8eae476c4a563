"""What Redis knows of an entry: the whole protocol on one screen.

K is the Redis key of an entry. M is the marker of a namespace or of a tag. Both are hashes, and all times in them are
the server's, in ms. `names` makes K and M, `envelope` the bytes under ``v``, `messages` what is published. `calls`
makes every call and reads its reply; `entry` holds the results. The scripts are in ``lua/``; `model` is the same
protocol without Redis.

===========  ==========================================================================================================
field of K   meaning
===========  ==========================================================================================================
``v``        the envelope
``g``        stale window in ms: the entry is fresh while PTTL > g
``n``        the value has a version, which then is ``f``
``f``        version floor: older fills are refused; text of fixed width
``t u``      the lease: its token, and when it ends
``x``        the token of a lease whose load failed, a space, and what the load died of
``q``        quarantine: what is stored before this time dies at this time
``w:<id>``   a write is under way, and when that ends at the latest
``r``        tokens of the last eight ADD and REPLACE that changed the value: one that is repeated counts once
===========  ==========================================================================================================

A marker has ``v`` (its nonce), ``c`` (made when), ``l`` (in a namespace: when a tag of it was invalidated last), ``q``.

===========  ===========================================================  =============================================
call         ARGV (each has one key: K, or M where ARGV says so)          reply
===========  ===========================================================  =============================================
READ         ``HMGET K v g``, ``PTTL K``, ``HGET M v`` for each marker    [envelope, stale], pttl, a nonce each
(near)       ``HGETALL K``, ``PTTL K``, ``HGET M v``: from a replica      all fields, pttl, a nonce each
SCAN         ``SCAN cursor MATCH pattern COUNT count``                    cursor, names
HEAD         bytes                                                        first bytes of v, g, pttl
MARK         M: nonce, keep ms                                            nonce, made at, ms of quarantine left
TAGGED       M: (none); ``HGET M l`` asks for it                          1
LEASE        token, lease ms, grace ms, floor ms, awaited, unusable           HIT v g pttl; GRANTED now v g pttl;
                                                                          WAIT ms holder v g pttl; BYPASS ms;
                                                                          FAILED what the awaited load died of
FILL         token, envelope, fresh ms, stale ms, version                 1; 2 until the quarantine ends; 0 no lease;
                                                                          -1 older than the floor
RENEW        token, lease ms, grace ms                                    1; 0 no lease
RELEASE      token, what the load died of, ms that this is kept           1; 0 no lease
INVALIDATE   K or M: channel, message, quarantine ms, floor, floor ms,    1; 2 the value stays, it is that new;
             begin id, intent ms, end id, [bytes]                         with bytes: first bytes of v, g, pttl
EXPIRE       channel, message                                             1; 0 no value
TOUCH        fresh ms, stale ms, channel, message                         1; 0 no fresh value
STORE        envelope, fresh ms, stale ms, version, channel, message      1; 0 a write is under way; -1 older than f
ADD          token, envelope, fresh ms, stale ms, unusable, channel, message  1; 0 a write is under way; 2 v g pttl
REPLACE      token, stamp, envelope, channel, message                     1; 0 no fresh value; 2 v g pttl
DIRTY        ``PUBLISH channel message``: Redis refuses to remove K       (not read)
===========  ===========================================================  =============================================

*unusable* and *stamp* are the SHA-1 of an envelope. Every call may be repeated after a lost reply.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
