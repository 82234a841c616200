"""Publisher, journal and replay over real sockets, without a camera: verdicts come when the test says so."""

from __future__ import annotations

import time

import zmq
from helpers_daemon import free_endpoint, make_message

from inspectord.client import Client, Inspected
from inspectord.health import Health
from inspectord.journal import Journal
from inspectord.keys import LOCAL, Keys, keygen
from inspectord.messages import encode
from inspectord.publish import Publisher
from inspectord.replay import Replay, Replayer
from inspectord.settings import Publish, Security
from inspectord.zap import Gate


class Wire:
    """Publisher, journal and replay without a camera: verdicts come when the test says so."""

    def __init__(self, folder, depth=1000, encoding="json", boot_id="0" * 32, settings=None, mode="curve"):
        self.context = zmq.Context()
        endpoints = {"verdicts": free_endpoint(), "replay": free_endpoint()}
        self.settings = settings or Publish(**endpoints, replay_depth=depth, encoding=encoding)
        self.keys_dir = folder / "keys"
        keygen(self.keys_dir, LOCAL)
        self.keys = Keys.load(self.keys_dir) if mode == "curve" else None
        self.health = Health()
        security = Security(mode=mode, keys_dir=self.keys_dir)
        self.gate = Gate(self.context, security, self.settings, self.health)
        self.publisher = Publisher(self.context, self.settings, ["cam1"], self.gate)
        self.journal = Journal(folder / "journal.sqlite", 100, Health())
        self.boot_id = boot_id
        replayer = Replayer(self.boot_id, self.publisher.histories, self.journal.path, self.state)
        self.replay = Replay(self.context, self.settings, replayer, self.gate, self.health)
        self.seq = 0

    def state(self):
        last_seq = self.publisher.histories["cam1"].last_seq
        return {
            "schema": "inspectord/heartbeat/1",
            "station": "s1",
            "boot_id": self.boot_id,
            "state": "ready",
            "cameras": {"cam1": {"last_seq": last_seq}},
        }

    def send(self, count, lost=False):
        """Publish, or only remember, as if the network had lost it."""
        for _ in range(count):
            self.seq += 1
            message = make_message(self.seq, boot_id=self.boot_id)
            if lost:
                self.publisher.histories["cam1"].put(self.seq, encode(message))
            else:
                self.publisher.send(message)
            self.journal.put(message)

    def socket(self, kind, endpoint, keys=None):
        """A connected client socket of the test's own, let in unless other keys are given."""
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.RCVTIMEO, 3000)
        socket.setsockopt(zmq.LINGER, 0)
        if keys or self.keys:
            (keys or self.keys).apply(socket)
        socket.connect(endpoint)
        return socket

    def heartbeat(self):
        self.publisher.listen()
        self.publisher.send_heartbeat(self.state())

    def client(self, **more):
        client = Client(self.settings.verdicts, self.settings.replay, **({"keys": self.keys} | more))
        before = self.publisher.subscriptions
        client.start()
        wait_until(lambda: self.publisher.listen() or self.publisher.subscriptions == before + 2)
        return client

    def close(self):
        self.replay.close()
        self.journal.close()
        self.publisher.close()
        self.gate.close()
        self.context.destroy(linger=0)


def wait_until(true, timeout_s=5.0):
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def seq_is(number):
    return lambda event: isinstance(event, Inspected) and event.message.seq == number
