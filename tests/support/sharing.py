"""Requests from the workers of a parallel run to the process that distributes the tests."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from threading import Thread
from typing import Any


def serve() -> str:
    """Answer each question, a function without arguments, with its result, in a thread; return the address."""
    listener = Listener(family="AF_UNIX")

    def respond(connection: Connection) -> None:
        with connection:
            try:
                connection.send(connection.recv()())
            except Exception as error:
                connection.send(error)

    def accept() -> None:
        while True:
            Thread(target=respond, args=(listener.accept(),), daemon=True).start()

    Thread(target=accept, daemon=True).start()
    return str(listener.address)


def ask(address: str, question: Callable[[], Any]) -> Any:
    """Return what ``question`` returns in the other process, or raise the error that it raised there."""
    with Client(address) as connection:
        connection.send(question)
        answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer
