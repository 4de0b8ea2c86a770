"""Addresses as text: "host:port", an IPv6 host in brackets. Pure; `net/accept.py` has those of sockets."""

from __future__ import annotations

import re

#: Characters of an address in the configuration and in a member's record.
MAX_ADDRESS = 240

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?")


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[IPv6]:port", whatever the host is: it may be empty, which stands for all
    interfaces. Raises ValueError with the reason."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"0*[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f'{text!r} is no address: write "host:port" with a port from 0 to 65535')
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host:
        raise ValueError(f'{text!r}: write an IPv6 address in brackets, such as "[::1]:2379"')
    return host, int(port)


def check_address(text: str) -> tuple[str, int]:
    """The same for what a person has written, whose host must be one. Raises ValueError with the reason."""
    if len(text) > MAX_ADDRESS:
        raise ValueError(f"an address of {len(text)} characters; at most {MAX_ADDRESS}")
    if "://" in text:
        raise ValueError(f'{text!r}: write the address without a scheme, such as "127.0.0.1:2379"')
    host, port = split_address(text)
    if text.startswith(f"[{host}]"):
        if not _IPV6.fullmatch(host):
            raise ValueError(f"{text!r}: there is no IPv6 address in the brackets")
    elif not _HOST.fullmatch(host):
        raise ValueError(f'{text!r} has no host name: write "host:port"; "0.0.0.0" listens on all interfaces')
    return host, port
