"""Questions of the workers of a parallel run to the process that distributes the tests."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from threading import Thread
from typing import Any


def serve(answer: Callable[[Any], Any]) -> str:
    """Answer each question in a thread; return the address."""
    listener = Listener(family="AF_UNIX")

    def respond(connection: Connection) -> None:
        with connection:
            try:
                connection.send(answer(connection.recv()))
            except Exception as error:
                connection.send(error)

    def accept() -> None:
        while True:
            Thread(target=respond, args=(listener.accept(),), daemon=True).start()

    Thread(target=accept, daemon=True).start()
    return str(listener.address)


def ask(address: str, question: Any) -> Any:
    """Return the answer to ``question``, or raise the error that the other process raised."""
    with Client(address) as connection:
        connection.send(question)
        answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer
