"""Connections between nodes, as safe as Ray's own: under RAY_USE_TLS both ends show a certificate of the cluster's."""

from __future__ import annotations

import os
import ssl


def tls(purpose: ssl.Purpose) -> ssl.SSLContext | None:
    """For the end that connects (SERVER_AUTH) or listens (CLIENT_AUTH); None where Ray's traffic is plain, too.

    The certificates are those that Ray is given: RAY_TLS_CA_CERT has signed RAY_TLS_SERVER_CERT, and whoever has one of
    its signing is of the cluster, at whatever address. Raises OSError for files that cannot be read.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.create_default_context(purpose, cafile=os.environ["RAY_TLS_CA_CERT"])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    return context
