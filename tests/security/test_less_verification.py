"""Verification can be turned off on NATS and Kafka, piece by piece and never in silence."""

from __future__ import annotations

import pytest

from msight_bus import AuthenticationError
from tests.support.servers import CREDENTIALS, variables
from tests.support.talking import loudly, refused, talk


@pytest.mark.parametrize("kind", ["nats", "kafka"])
@pytest.mark.parametrize("wrong", [("expired", "ca"), ("server", "stranger"), ("elsewhere", "ca")])
async def test_without_verification_any_certificate_passes_loudly(secured, made, watch, kind, wrong):
    flavour, ca = wrong
    async with secured(kind).at(flavour) as way:
        tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": getattr(made, ca), "TLS_VERIFY": "false"}
        await talk(loudly(variables(kind, way.port, **CREDENTIALS[kind], **tls), watch, "TLS_VERIFY=false"))
        assert b"hello" not in way.bytes  # encrypted all the same


async def test_without_the_host_names_check_only_that_passes_loudly(secured, made, watch):
    tls = {"USE_TLS": "true", "TLS_CA_CERT_FILE": made.ca, "TLS_CHECK_HOSTNAME": "false"}
    async with secured("kafka").at("elsewhere") as way:
        environ = variables("kafka", way.port, **CREDENTIALS["kafka"], **tls)
        await talk(loudly(environ, watch, "TLS_CHECK_HOSTNAME=false"))
    for flavour, ca in (("expired", made.ca), ("server", made.stranger)):
        async with secured("kafka").at(flavour) as way:
            environ = variables("kafka", way.port, **CREDENTIALS["kafka"], **(tls | {"TLS_CA_CERT_FILE": ca}))
            settings = loudly(environ, watch, "TLS_CHECK_HOSTNAME=false")
            await refused(AuthenticationError, settings, watch, "(?i)certificate")
