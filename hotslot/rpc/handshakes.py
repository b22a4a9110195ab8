"""Reasons for which a connection does not stand, from gRPC's texts: in words, and without its `OK` at the end."""

import re

_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^:\]]+)")
_NONE_STOOD = "connections to all backends failing"


def unreached_reason(details: str, *, uses_tls: bool) -> str:
    """Reason in a few words, and the other end's side of it where one end speaks TLS and the other does not."""
    if (found := _UNTRUSTED.search(details)) is not None:
        return f"its certificate is not trusted: {found[1].strip()}"
    if "WRONG_VERSION_NUMBER" in details:
        return "it does not speak TLS, and certificates to trust are named"
    if "Hostname Verification Check failed" in details:
        return "its certificate has another name"
    # A resolver lists its failures in brackets, and the last one is the cause.
    reason = details.removesuffix(": OK").rpartition(": ")[2].rstrip("])") or "no answer"
    if reason == "Socket closed" and details.startswith(_NONE_STOOD):
        wanted = "a certificate of yours" if uses_tls else "TLS, and no certificates to trust are named"
        return f"{reason}: it may want {wanted}"
    return reason
