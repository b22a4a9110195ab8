"""Paths of the gateway: each is public, or among those that are called with every kind of credential."""

from gateway_service.deployment import Deployment
from gateway_service.routes import Gateway, routes_of
from gateway_service.settings import GatewaySettings
from hotslot.rpc.security import NO_SECURITY
from tests.support.gateway_paths import PATHS, PUBLIC


async def test_every_path_is_public_or_is_called_with_every_kind_of_credential() -> None:
    gateway = Gateway(GatewaySettings(), Deployment("", "127.0.0.1:1", NO_SECURITY))
    served = {(method, one.path) for one in routes_of(gateway) for method in one.methods or () if method != "HEAD"}
    assert served == {*PATHS, *PUBLIC}
