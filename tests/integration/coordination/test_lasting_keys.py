"""The check after every test finds a key that would stay for ever."""

from hotslot.local.embedded_valkey import EmbeddedValkey
from shared.coordination.connection import RedisConnection
from tests.support.lasting_keys import lasting_keys


async def test_a_key_without_a_time_to_live_is_found(redis: RedisConnection, valkey: EmbeddedValkey) -> None:
    await redis.run(lambda client: client.set("{hotslot:x}:ends", "1", px=60_000))
    assert lasting_keys() == {}
    await redis.run(lambda client: client.set("{hotslot:x}:lasts", "1"))
    assert lasting_keys() == {valkey.port: ["{hotslot:x}:lasts"]}
    await redis.run(lambda client: client.delete("{hotslot:x}:lasts"))
