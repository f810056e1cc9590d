"""Look up the IP addresses of a host, and decide which of them are public."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

THREAD_NAME = "pixmatcher-resolve"
_CACHE_SECONDS = 60.0
_MAX_CACHED = 10_000
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
"""The only part of IPv6 whose addresses are given to public networks (RFC 4291)."""
_EXAMPLES_IPV6 = ipaddress.ip_network("3fff::/20")
"""Reserved for documents (RFC 9637), which older versions of Python do not know."""
_RESERVED_IPV4 = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("168.63.129.16/32"))
"""Reserved for protocols (RFC 6890), which older versions of Python take for public but for a part; and the address
under which machines of Azure reach their host. Some clouds hand out the secrets of a machine at such addresses."""


class Resolver:
    """Looks up hosts, and caches for a minute what it found or that it found nothing. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups: dict[str, tuple[float, Future[list[str] | OSError]]] = {}

    def addresses(self, host: str, port: int, seconds: float) -> list[str]:
        """Return the IP addresses of a host, one or more.

        Raises `OSError` if the host is unknown, `TimeoutError` if the answer takes longer than `seconds`.
        """
        now = time.monotonic()
        with self._lock:
            expires, lookup = self._lookups.get(host, (0.0, None))
            if lookup is None or now >= expires:
                if len(self._lookups) >= _MAX_CACHED:
                    self._lookups.clear()
                lookup = Future()
                self._lookups[host] = (now + _CACHE_SECONDS, lookup)
                # getaddrinfo has no time limit. A daemon thread may run on, and does not keep the process from ending.
                threading.Thread(target=_look_up, args=(host, port, lookup), name=THREAD_NAME, daemon=True).start()
        try:
            found = lookup.result(seconds)
        except FutureTimeoutError:  # another class than TimeoutError in Python 3.10
            raise TimeoutError from None
        if isinstance(found, OSError):
            raise OSError(*found.args)  # a new one for each caller: a traceback grows with every raise
        return found


def _look_up(host: str, port: int, lookup: Future[list[str] | OSError]) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        lookup.set_result([str(sockaddr[0]) for *_, sockaddr in found])
    except OSError as error:
        lookup.set_result(error)
    except UnicodeError as error:  # the text cannot be a domain name
        lookup.set_result(OSError(socket.EAI_NONAME, str(error)))
    except BaseException as error:  # the caller gets it, whatever it is
        lookup.set_exception(error)


def is_public(text: str) -> bool:
    """Return whether an IP address is public: neither private, loopback, reserved nor multicast."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        # NAT64 carries an IPv4 address in its last 32 bits (RFC 6052).
        if address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None:
            # Others may also carry a private address, such as ::10.0.0.1 and those of a NAT64 of one's own.
            return address.is_global and address in _PUBLIC_IPV6 and address not in _EXAMPLES_IPV6
        address = inner
    return address.is_global and not address.is_multicast and not any(address in each for each in _RESERVED_IPV4)
