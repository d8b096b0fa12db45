"""``msight-bus doctor`` on wrong passwords and certificates: the advice ends the fault, and no secret is shown."""

from __future__ import annotations

import pytest

from tests.support.examining import examine_variables
from tests.support.servers import CREDENTIALS, EVERY, PREFIX, WRONG, variables


@pytest.mark.parametrize("kind", EVERY)
def test_a_wrong_password(kind, secured):
    right = CREDENTIALS[kind]
    name = next(name for name in right if name.endswith("PASSWORD"))
    port = secured(kind).ports["plain"]
    status, found = examine_variables(kind, **variables(kind, port, **right | {name: WRONG}))
    assert (status, list(found)) == (3, ["credentials"])
    assert f"`export {PREFIX[kind]}{name}=" in found["credentials"]["advice"]
    assert WRONG not in str(found)
    assert examine_variables(kind, **variables(kind, port, **right))[0] == 0


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    "wrong",
    [
        ("server", "stranger", "TLS_CA_CERT_FILE=ca.pem"),
        ("expired", "ca", "has expired"),
        ("elsewhere", "ca", "a name that the certificate has"),
        ("mutual", "ca", "TLS_CERT_FILE"),
    ],
    ids=["authority", "expired", "host", "client"],
)
def test_a_wrong_certificate(kind, wrong, secured, made):
    flavour, authority, advice = wrong
    tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": getattr(made, authority)}
    environment = variables(kind, secured(kind).ports[flavour], **CREDENTIALS[kind], **tls)
    status, found = examine_variables(kind, **environment)
    assert (status, list(found)) == (3, ["certificate"]), found
    assert advice in found["certificate"]["advice"]
    if authority == "stranger":
        environment[f"{PREFIX[kind]}TLS_CA_CERT_FILE"] = made.ca
        assert examine_variables(kind, **environment)[0] == 0
