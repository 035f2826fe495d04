"""No TLS before 1.3 in this process."""

import os
from typing import Final

_CIPHERS: Final = "GRPC_SSL_CIPHER_SUITES"
_ONLY_RSA: Final = "ECDHE-RSA-AES128-GCM-SHA256"


def refuse_old_tls() -> None:
    """Have gRPC agree on TLS 1.3 only. To be called before gRPC is imported, which is when it looks.

    It has no setting for that in Python. This one chooses ciphers of TLS 1.2 and leaves those of 1.3 alone; the one chosen goes
    with RSA certificates, which no node has, so nobody can agree on 1.2.
    """
    os.environ[_CIPHERS] = _ONLY_RSA
