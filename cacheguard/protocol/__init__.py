"""What Redis knows of an entry: the whole protocol on one page.

K is the Redis key of an entry, M the marker of a namespace or of a tag. Both are strings of the same layout. All times
are the server's, in ms. `names` makes K and M, `layout` reads the header, `envelope` the value, `messages` what is
published. `calls` makes every call and reads its reply; `entry` holds the results. The scripts are in ``lua/``; `model`
is the same protocol without Redis.

K = header · value · claims::

    header  layout · flags · fresh until · bytes of the claims · longest time to be fresh · dead from · stored at ·
            bytes of the value                                               34 bytes, in place (`layout.HEADER`)
    value   the sealed envelope; of a marker its nonce, and the nonce of the last invalidation of a tag beneath it
    claims  what goes on around the value, if anything does: a map, in MessagePack, for the scripts alone

A value is *fresh* while ``0 < fresh until - now <= longest time to be fresh``: a moment further away was written by
another clock, and the value does not count. It may be served as *stale* until it is dead. Each claim has an end of its
own and a longest life, and is cut to that in the same way. Whatever they say of themselves, a lease lasts no longer
than five minutes and nothing longer than two years. The TTL of K is the latest of all these ends: it cleans up, and
decides nothing. So no operation ends a claim before its time, whatever it does to the value.

======  ===============================================================================================================
claim   meaning
======  ===============================================================================================================
``l``   the lease: its token; whether somebody waits for it; the version of the quarantine that it was granted in
``w``   the writes under way, by their ids
``q``   quarantine: what is stored before its end dies at its end, unless its version is no older than that of the write
``f``   version floor: older fills are refused
``g``   floors that were raised under other nonces than that of ``f``
``b``   when the value ends at the latest: it was loaded in a quarantine, of its key or of a marker
``x``   a load has failed: its token, failures in a row, what it died of, for how long nobody loads
``r``   the last ADD and REPLACE that changed the value, by their tokens: a repeated one counts once
``n``   the version of the value; it goes with the value, and is the floor from then on
======  ===============================================================================================================

Versions count only under the nonces that the namespaces had when they were written (*under*): after `clear()`, a
restored database may fill again.

==========  ===========================================================  =============================================
call        ARGV (each has one key: K, or M where ARGV says so)          reply
==========  ===========================================================  =============================================
READ        ``MGET K.. M..``, ``TIME``; on several nodes a ``GET`` each  what lies under each; the server's time
(near)      ``GET K``, ``GET M``, ``TIME``: from a replica               the same; guarded values are not used
SCAN        ``SCAN cursor MATCH pattern COUNT count``                    cursor, names
HEAD        ``GETRANGE K 0 n``                                           header and first bytes of the value
MARK        M: nonce, keep ms                                            nonce, last tag nonce, ms of quarantine left
TAGGED      M: nonce                                                     1
LEASE       token, lease ms, grace ms, floor ms, awaited, unusable       HIT | GRANTED failures pause | WAIT ms holder
                                                                         | BYPASS ms | FAILED word failures pause;
                                                                         each with now, and header and value or nothing
FILL        token, envelope, fresh ms, stale ms, version, under, until,  1; 2 until a quarantine ends; 0 no lease;
            channel                                                      -1 older than the floor
RENEW       token, lease ms, grace ms                                    1; 0 no lease
RELEASE     token, what the load died of, failures, pause ms, kept ms,   1; 0 no lease
            channel
INVALIDATE  K or M: channel, echo, quarantine ms, floor, under, floor    1; 2 the value stays, it is that new; with
            ms, begin id, intent ms, end id, bytes                       bytes: header and first bytes, now
EXPIRE      channel, echo                                                1; 0 no value
TOUCH       fresh ms, stale ms, channel, echo                            1; 0 no fresh value
STORE       envelope, fresh ms, stale ms, version, under, channel, echo  1; 0 a write is under way; -1 older than f
ADD         token, envelope, fresh ms, stale ms, unusable, channel,      1; 0 a write is under way; 2 now, what is there
            echo
REPLACE     token, stamp, envelope, channel, echo                        1; 0 no fresh value; 2 now, what is there
DIRTY       ``PUBLISH channel message``: Redis refuses to remove K       (not read)
==========  ===========================================================  =============================================

*unusable* and *stamp* are the SHA-1 of an envelope. Every call may be repeated after a lost reply. The first write of
INVALIDATE, EXPIRE, RELEASE and TAGGED is one that a full server lets through, that of LEASE and FILL one that it
refuses.

Another release may write another layout: its number is the first byte. Under such a key nothing is read, leased or
filled; an invalidation removes it. A bus message of another format counts as a gap.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""
