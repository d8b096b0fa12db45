"""A TLS server that forwards to a server without TLS, like stunnel.

The server uses threads, because asyncio closes the connection after a failed handshake without the alert that servers send.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading


class TlsFront:
    """Listens on ``port`` of loopback and forwards the decrypted data to the port ``target``."""

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                _serve(self.request, target, context)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.port: int = self._server.server_address[1]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


def _serve(client: socket.socket, target: int, context: ssl.SSLContext) -> None:
    try:
        secure = context.wrap_socket(client, server_side=True)
    except OSError:  # closing with unread data would discard the sent alert
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        return
    with secure, socket.create_connection(("127.0.0.1", target)) as server:
        back = threading.Thread(target=_pump, args=(server, secure), daemon=True)
        back.start()
        _pump(secure, server)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        with contextlib.suppress(OSError):  # already closed
            end.shutdown(socket.SHUT_RDWR)
