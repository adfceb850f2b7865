#!/usr/bin/env python3
"""Reads the messages of clients from Belfry's inbound stream, as one of a group of consumers.

Each message is handled at least once: it is acknowledged after it was handled, and what a consumer
that died had taken is claimed by another. A message that fails again and again is given up.
"""

import argparse
import json
import os
import signal
import socket
import time

import redis

# A message that another consumer took so long ago, and has not acknowledged, is taken over.
IDLE_MS = 30_000
# A message that was taken so often is given up.
MOST_TRIES = 5
PAGE = 64


def handle(user, connection, message):
    """Your own work. To raise leaves the message for another try, after IDLE_MS."""
    print(f"{user} ({connection}): {json.dumps(message, ensure_ascii=False)}", flush=True)


class Consumer:
    def __init__(self, client, prefix, group, name, answer):
        self.client, self.group, self.name = client, group, name
        self.stream, self.publish = prefix + "inbound", prefix + "publish"
        self.answer = answer
        self.running = True

    def run(self):
        ready = False
        while self.running:
            try:
                if not ready:
                    self.create_group()
                    ready = True
                self.give_up()
                self.work_on(self.abandoned())
                self.work_on(self.next())
            except redis.exceptions.ResponseError as error:
                # Redis has lost its data, and the group with it.
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                ready = False
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
                print(f"Redis is away: {error}", flush=True)
                time.sleep(1)

    def create_group(self):
        try:
            # From the first message that is there; "$" would begin with the next one.
            self.client.xgroup_create(self.stream, self.group, id="0", mkstream=True)
        except redis.exceptions.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def next(self):
        answer = self.client.xreadgroup(
            self.group, self.name, {self.stream: ">"}, count=PAGE, block=1000
        )
        return answer[0][1] if answer else []

    def abandoned(self):
        answer = self.client.xautoclaim(
            self.stream, self.group, self.name, min_idle_time=IDLE_MS, count=PAGE
        )
        return answer[1]

    def give_up(self):
        pending = self.client.xpending_range(
            self.stream, self.group, min="-", max="+", count=PAGE, idle=IDLE_MS
        )
        for entry in pending:
            if entry["times_delivered"] >= MOST_TRIES:
                print(f"given up: {entry['message_id'].decode()}", flush=True)
                self.client.xack(self.stream, self.group, entry["message_id"])

    def work_on(self, entries):
        for entry, fields in entries:
            # Bytes: the message is JSON as the client wrote it, user and connection are Belfry's.
            user, connection = fields[b"user"].decode(), fields[b"connection"].decode()
            try:
                handle(user, connection, json.loads(fields[b"message"]))
                if self.answer:
                    self.reply(entry, user, fields[b"message"])
            except Exception as error:  # Whatever it was: this one message, and not the consumer.
                print(f"failed: {entry.decode()}: {error}", flush=True)
                continue
            self.client.xack(self.stream, self.group, entry)

    def reply(self, entry, user, message):
        """An event for all tabs of the user, once for each message."""
        event = {"to": {"user": user}, "type": "echo", "data": json.loads(message)}
        self.client.xadd(
            self.publish,
            {"event": json.dumps(event), "idempotency_key": f"echo-{entry.decode()}"},
            maxlen=100_000,
            approximate=True,
        )

    def stop(self, *_):
        self.running = False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redis", default="redis://127.0.0.1:6379", help="the Redis of Belfry")
    parser.add_argument("--prefix", default="ws:", help="redis.prefix of Belfry")
    parser.add_argument("--group", default="shop", help="consumers of one group share the messages")
    parser.add_argument("--name", default=f"{socket.gethostname()}-{os.getpid()}")
    parser.add_argument("--echo", action="store_true", help="answer by the publish stream")
    args = parser.parse_args()
    # Text is left as bytes: what a client sends is only what it is.
    client = redis.Redis.from_url(args.redis)
    consumer = Consumer(client, args.prefix, args.group, args.name, args.echo)
    signal.signal(signal.SIGTERM, consumer.stop)
    signal.signal(signal.SIGINT, consumer.stop)
    consumer.run()


if __name__ == "__main__":
    main()
