"""The files that TLS takes, checked before anything is sent."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection_client._errors import InvalidInputError

__all__ = ["TlsFiles"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files; an empty name is none.

    Attributes:
        ca_file: The authorities to trust, in place of the system's.
        cert_file: The client's certificate, for servers that ask for one (mutual TLS).
        key_file: The private key of that certificate, without a password.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @classmethod
    def checked(
        cls,
        *,
        ca_file: str | os.PathLike[str],
        cert_file: str | os.PathLike[str],
        key_file: str | os.PathLike[str],
        uses_tls: bool,
    ) -> TlsFiles:
        """The files, where they are there and of use.

        Raises:
            InvalidInputError: One does not exist or holds something else, a certificate comes
                without its key, or the address is one without TLS.
        """
        files = cls(os.fspath(ca_file), os.fspath(cert_file), os.fspath(key_file))
        given = {name: path for name in cls.__slots__ if (path := getattr(files, name))}
        for name, path in given.items():
            if not Path(path).is_file():
                raise InvalidInputError(f"{name}: there is no file {path}")
        if bool(files.cert_file) != bool(files.key_file):
            raise InvalidInputError("cert_file and key_file go together: a certificate and its key")
        if files.cert_file:
            if not uses_tls:
                raise InvalidInputError(
                    "cert_file: the address has no TLS; write grpcs:// or https://"
                )
            files.context()  # the certificate and the key are read, and must match
        return files

    def context(self) -> ssl.SSLContext:
        """What Python's own TLS takes.

        Raises:
            InvalidInputError: A file does not hold what it should.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except ssl.SSLError:
            raise InvalidInputError(
                f"ca_file: {self.ca_file} holds no certificate in PEM form"
            ) from None
        if self.cert_file:
            try:
                # An empty password: a key that wants one is refused, rather than asked for.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
            except (ssl.SSLError, OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or str(error)
                raise InvalidInputError(
                    f"cert_file {self.cert_file} and key_file {self.key_file} are no certificate"
                    f" with its own unencrypted key, in PEM form ({reason})"
                ) from None
        return context

    def grpc_arguments(self) -> dict[str, Any]:
        """The same for tritonclient's gRPC clients."""
        return {
            "root_certificates": self.ca_file or None,
            "certificate_chain": self.cert_file or None,
            "private_key": self.key_file or None,
        }
