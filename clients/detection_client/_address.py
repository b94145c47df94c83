"""The server's address, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from detection_client._errors import InvalidInputError

__all__ = ["ServerAddress", "join_addresses", "parse_addresses"]

_DEFAULT_PORTS = {"grpc": 8001, "http": 8000, "grpcs": 443, "https": 443}
_EXAMPLES = "grpc://localhost:8001 or http://localhost:8000"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens, and in what protocol.

    Attributes:
        scheme: ``grpc``, ``grpcs``, ``http`` or ``https``; ``local`` where there is no server.
        host: Name or address, without the brackets of IPv6.
        port: 1 to 65535.
        path: What stands before ``/v2`` behind a proxy; empty for gRPC.
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> ServerAddress:
        """Read ``scheme://host[:port][/path]``.

        Without a port, Triton's own are taken: 8001 for gRPC, 8000 for HTTP; 443 with TLS.

        Raises:
            InvalidInputError: The URL is of another form; the message says what is wrong.
        """
        scheme, separator, _ = url.partition("://")
        if not separator:
            raise InvalidInputError(
                f"{url!r} does not name a protocol; write for example {_EXAMPLES}"
            )
        if scheme.lower() not in _DEFAULT_PORTS:
            raise InvalidInputError(
                f"{url!r}: the protocol {scheme!r} is none of grpc, grpcs, http, https"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidInputError(f"{url!r} is not a server's address: {error}") from None
        if not parts.hostname or any(character.isspace() for character in url):
            raise InvalidInputError(f"{url!r} does not name a host; write for example {_EXAMPLES}")
        if port == 0:
            raise InvalidInputError(f"{url!r}: 0 is no port to connect to")
        if parts.username is not None or parts.password is not None:
            raise InvalidInputError("a server's address holds no user; pass headers= instead")
        if parts.query or parts.fragment:
            raise InvalidInputError(f"{url!r}: a server's address has no query and no fragment")
        path = parts.path.rstrip("/")
        if path and scheme.lower().startswith("grpc"):
            raise InvalidInputError(f"{url!r}: a gRPC address has no path")
        scheme = scheme.lower()
        return cls(scheme, parts.hostname, port or _DEFAULT_PORTS[scheme], path)

    @property
    def is_grpc(self) -> bool:
        """Whether the protocol is gRPC; else it is HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme.endswith("s")

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, where no proxy can help."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def authority(self) -> str:
        """``host:port[/path]``, as the libraries want it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{self.path}"

    def __str__(self) -> str:
        if self.scheme == "local":  # the path is a model repository
            return f"local:{self.path}"
        return f"{self.scheme}://{self.authority}"


def parse_addresses(url: str | Sequence[str]) -> tuple[ServerAddress, ...]:
    """Read one address or several.

    Args:
        url: ``grpc://a:8001``, ``grpc://a:8001,b:8001`` or a sequence of addresses. Where one of
            several names no protocol, it is the first one's.

    Raises:
        InvalidInputError: There is none, one is of another form or named twice, or their protocols
            differ.
    """
    texts = [part.strip() for part in url.split(",")] if isinstance(url, str) else list(url)
    if not texts:
        raise InvalidInputError(f"name a server, for example {_EXAMPLES}")
    scheme, separator, _ = texts[0].partition("://")
    addresses: list[ServerAddress] = []
    for text in texts:
        if "://" not in text and addresses and separator:
            text = f"{scheme}://{text}"
        address = ServerAddress.parse(text)
        if address in addresses:
            raise InvalidInputError(f"the server {address} is named twice")
        if addresses and address.scheme != addresses[0].scheme:
            raise InvalidInputError(
                f"several servers must speak one protocol: {addresses[0]} and {address} do not"
            )
        addresses.append(address)
    return tuple(addresses)


def join_addresses(addresses: Sequence[ServerAddress]) -> str:
    """Several addresses as `parse_addresses` reads them."""
    first, *others = addresses
    return ",".join([str(first), *(address.authority for address in others)])
