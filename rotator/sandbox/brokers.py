"""The two brokers of the sandbox, under one name each.

Both are a `TokenSink`, both offer `host`, `port`, `observer_username`, `observer_password`, `publish`, `start` and
`stop`, and both tell of connections on `$SYS/broker/log/N` in Mosquitto's words.
"""

from rotator.sandbox.amqtt_broker import AmqttBroker
from rotator.sandbox.mosquitto import MosquittoBroker
from rotator.sandbox.token_sink import ForgetfulSink, TokenSink, events_topic

__all__ = ["AmqttBroker", "ForgetfulSink", "MosquittoBroker", "TokenSink", "events_topic"]
