"""The public tests that do not pass, and why: by choice, or because of ASGI. docs/http-cache.md has the same list."""

from __future__ import annotations

_COOKIE = "by choice: a response with Set-Cookie is stored only if it also says `public` and a lifetime"
_INTERIM = "ASGI: there is no message for interim responses (1xx), so neither the cache nor the server sees one"
_PART = "by choice: the part has 5 bytes and Content-Range announces 6, so nobody knows which bytes these are"
_SUPERSEDED = "RFC 9111 §5.1 says the opposite of this older test, and the newest release was corrected"
_CLOSED = (
    "the origin closes the connection and the test wants an answer of the origin; the newest release wants an error"
)

_BOTH = {
    "method-POST": (
        "by choice: a POST ends the leases of its URL, so its own response could be older than that of another POST"
    ),
    "vary-normalise-lang-select": (
        "by choice: RFC 9111 §4.1 wants equal fields; who asks for `en, de` and gets `de` may get another text than "
        "who asks for `de`"
    ),
    "vary-normalise-lang-order": (
        "by choice: applications take the first of several languages with equal weight, so their order has a meaning"
    ),
    "conditional-lm-fresh-no-lm": (
        "RFC 9111 §4.3.2: without Last-Modified the Date counts; it is later than If-Modified-Since, so 304 is wrong"
    ),
    "headers-store-Set-Cookie": _COOKIE,
    "headers-store-Set-Cookie2": _COOKIE,
    "other-set-cookie": _COOKIE,
    "headers-store-Transfer-Encoding": "the origin's answer is no valid HTTP/1.1, and the proxy's client refuses it",
    "partial-store-partial-reuse-partial": _PART,
    "partial-store-partial-reuse-partial-byterange": _PART,
    "partial-store-partial-reuse-partial-absent": _PART,
    "partial-store-partial-reuse-partial-suffix": _PART,
    "partial-store-partial-complete": (
        "by choice: parts are joined only if a strong ETag proves that they belong together, and here is none "
        "(RFC 9110 §15.3.7.3), so asking for the rest would be a run in vain"
    ),
}

LEFT_OUT: dict[str, dict[str, str]] = {
    "latest": {
        **_BOTH,
        "interim-102": _INTERIM,
        "interim-103": _INTERIM,
        "interim-not-cached": _INTERIM,
        "interim-no-header-reuse": _INTERIM,
    },
    "npm": {
        **_BOTH,
        "age-parse-nonnumeric": _SUPERSEDED,
        "age-parse-negative": _SUPERSEDED,
        "age-parse-float": _SUPERSEDED,
        "age-parse-prefix-twoline": _SUPERSEDED,
        "age-parse-dup-0": _SUPERSEDED,
        "age-parse-dup-0-twoline": _SUPERSEDED,
        "age-parse-dup-old": _SUPERSEDED,
        "age-parse-parameter": _SUPERSEDED,
        "age-parse-numeric-parameter": _SUPERSEDED,
        "stale-close-must-revalidate": _CLOSED,
        "stale-close-proxy-revalidate": _CLOSED,
        "stale-close-no-cache": _CLOSED,
        "stale-close-s-maxage=2": _CLOSED,
        "304-etag-update-response-ETag": (
            "RFC 9111 §4.3.4: a 304 with another strong ETag is not about the stored response; the newest release only "
            "asks what caches do"
        ),
        "304-etag-update-response-Set-Cookie": _COOKIE,
        "304-etag-update-response-Set-Cookie2": _COOKIE,
    },
}
