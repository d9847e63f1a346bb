"""The exchanges and queues of one measurement, and the watch on what comes out of them."""
import json
import os
import subprocess
import time
import uuid

import pika

URL = os.environ["DECKSWAIN_BROKER"]
RETRY_DELAYS = ["1s", "5s", "30s", "2m", "10m"]
STALLED_S = 120
POLL_S = 0.02


def binary():
    """The deckswain that is measured now; a comparison of two builds switches it."""
    return os.environ["DECKSWAIN_BIN"]


class Queues:
    """Declared on entry under a prefix of their own, gone on exit."""

    def __enter__(self):
        self.prefix = "b" + uuid.uuid4().hex[:10]
        self.results, self.texts = f"{self.prefix}.results", f"{self.prefix}.texts"
        subprocess.run([binary(), "topology", "--declare", "--prefix", self.prefix], check=True, capture_output=True)
        parameters = pika.URLParameters(URL)
        # The connection is left alone while a backlog is submitted.
        parameters.heartbeat = 0
        self.connection = pika.BlockingConnection(parameters)
        self.channel = self.connection.channel()
        return self

    def __exit__(self, *_):
        for name in ["actions", "results", "dead", "texts"] + ["retry." + delay for delay in RETRY_DELAYS]:
            self.channel.queue_delete(f"{self.prefix}.{name}")
        for name in ["actions", "results", "dead"]:
            self.channel.exchange_delete(f"{self.prefix}.{name}")
        self.connection.close()

    def submit(self, actions):
        text = "\n".join(json.dumps(action) for action in actions)
        command = [binary(), "submit", "--prefix", self.prefix]
        subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def publish_texts(self, texts):
        """Puts texts, for what cannot parse JSON, into a queue of the same type as that of the actions."""
        self.channel.queue_declare(self.texts, durable=True, arguments={"x-queue-type": "quorum"})
        for text in texts:
            self.channel.basic_publish("", self.texts, text, pika.BasicProperties(delivery_mode=2))
        self.wait_for(self.texts, len(texts))

    def depth(self, queue):
        return self.channel.queue_declare(queue, passive=True).method.message_count

    def wait_for(self, queue, count):
        """Looks at the depth only, which costs the machine next to nothing; gives the time."""
        depth, grew = -1, time.monotonic()
        while True:
            before, depth = depth, self.depth(queue)
            now = time.monotonic()
            if depth >= count:
                return now
            if depth != before:
                grew = now
            assert now - grew < STALLED_S, f"{depth} of {count} in {queue}, and no more for two minutes"
            time.sleep(POLL_S)

    def check_results(self, count):
        """Takes the results, off the clock, and stops at one that is no success."""
        for _, _, body in self.channel.consume(self.results, auto_ack=True):
            result = json.loads(body)
            assert result["success"], result
            count -= 1
            if count == 0:
                break
        self.channel.cancel()

    def times_of_tenths(self, count):
        """Takes the results as they come; gives when each tenth of them was there."""
        times, taken = [], 0

        def take(_channel, _method, _properties, body):
            nonlocal taken
            assert b'"success":true' in body, body
            taken += 1
            if taken * 10 % count == 0:
                times.append(time.monotonic())

        tag = self.channel.basic_consume(self.results, take, auto_ack=True)
        while taken < count:
            before = taken
            self.connection.process_data_events(STALLED_S)
            assert taken > before, f"{taken} of {count} results, and no more for two minutes"
        self.channel.basic_cancel(tag)
        return times
