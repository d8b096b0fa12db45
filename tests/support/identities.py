"""Create tokens and keys: NKeys and JWTs of NATS, unsecured tokens of Kafka."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass

import nkeys

from tests.support.canaries import remember


@dataclass(frozen=True)
class Key:
    """An NKey: ``seed`` is the secret, ``public`` the public key."""

    seed: str
    public: str

    def sign(self, data: bytes) -> bytes:
        return nkeys.from_seed(bytearray(self.seed.encode())).sign(data)


def make_key(prefix: int = nkeys.PREFIX_BYTE_USER) -> Key:
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    return Key(remember(seed.decode()), nkeys.from_seed(bytearray(seed)).public_key.decode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _part(content: dict[str, object]) -> str:
    return _base64(json.dumps(content, separators=(",", ":")).encode())


@dataclass(frozen=True)
class Operator:
    """An operator with one account, as `nsc` creates them; signs the JWTs of users."""

    key: Key
    account: Key

    def jwt(self) -> str:
        return _jwt(self.key, self.key, "operator", {})

    def account_jwt(self) -> str:
        limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}
        return _jwt(self.key, self.account, "account", {"limits": limits | {"wildcards": True}})

    def user_jwt(self, user: Key, *, expires: int | None = None, **permissions: object) -> str:
        """Return the JWT of ``user``; ``pub`` and ``sub`` are permissions such as ``{"deny": ["a.>"]}``."""
        limits = {"subs": -1, "data": -1, "payload": -1}
        token = _jwt(self.account, user, "user", limits | permissions, expires)
        remember(token.rpartition(".")[2])  # all JWTs have the same start; the signature is unique
        return token


def make_operator() -> Operator:
    return Operator(make_key(nkeys.PREFIX_BYTE_OPERATOR), make_key(nkeys.PREFIX_BYTE_ACCOUNT))


def _jwt(issuer: Key, subject: Key, kind: str, claims: dict[str, object], expires: int | None = None) -> str:
    """Return a JWT of version 2 (nats-io/jwt): Ed25519 over header and claims."""
    content: dict[str, object] = {
        "iat": int(time.time()),
        "iss": issuer.public,
        "name": kind,
        "sub": subject.public,
        "nats": claims | {"type": kind, "version": 2},
    }
    if expires is not None:
        content["exp"] = expires
    digest = hashlib.new("sha512_256", json.dumps(content).encode()).digest()
    content["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(content)}"
    return f"{signed}.{_base64(issuer.sign(signed.encode()))}"


def credentials_file(jwt: str, seed: str, newline: str = "\n") -> str:
    """Return a .creds file in the format of `nsc generate creds`."""
    lines = [
        "-----BEGIN NATS USER JWT-----",
        jwt,
        "------END NATS USER JWT------",
        "",
        "************************* IMPORTANT *************************",
        "NKEY Seed printed below can be used to sign and prove identity.",
        "",
        "-----BEGIN USER NKEY SEED-----",
        seed,
        "------END USER NKEY SEED------",
        "",
    ]
    return newline.join(lines)


def oauth_token(subject: str, *, lives: int = 3600) -> str:
    """Return an unsecured JWS (RFC 7515, appendix A.5) that expires in ``lives`` seconds."""
    now = int(time.time())
    claims = {"sub": subject, "iat": now - 3600, "exp": now + lives, "jti": os.urandom(32).hex()}
    token = f"{_part({'alg': 'none'})}.{_part(claims)}."
    remember(token[len(token) // 2 :])
    return remember(token)
