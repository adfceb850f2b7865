"""The servers that are compared: how each is started, and how the neutral generator reaches it."""

import os

import lab


class Subject:
    """A running server. `broadcast` and `direct` are the generator's arguments that publish raw, by
    Redis or what the server has in its place; `post` the same by HTTP and kept, where there is that."""

    def __init__(self, name, process, url, broadcast, direct=None, direct_url=None, post=None,
                 direct_post=None, skip=0):
        self.name, self.process, self.url = name, process, url
        self.broadcast, self.direct = broadcast, direct or broadcast
        self.direct_url = direct_url or url
        self.post, self.direct_post, self.skip = post, direct_post, skip

    def pids(self):
        return self.process.pids()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stop()


OURS = ("belfry", "baseline")


def belfry(options, redis, name="belfry", binary=None, **variant):
    """Belfry as it ships, but for the limit of handshakes each second: no peer has one, and the
    generator takes no for an answer."""
    settings = {"limits__handshakes_per_second": "0", **variant}
    process = lab.Belfry(binary or options.belfry, options.out, redis, name=name, **settings)
    api = f"http://127.0.0.1:{process.internal}/v1/events"

    def post(to):
        message = f'{{"to":{to},"type":"bench","data":{{payload}}}}'
        return ["--post", api, "--post-header", f"Authorization: Bearer {lab.KEY}",
                "--post-header", "Content-Type: application/json", "--message", message]
    raw = ["--redis", redis.removeprefix("redis://")] if redis else []
    return Subject(name, process, f"ws://127.0.0.1:{process.public}/ws/notifications?token={{token}}",
                   raw, post=post('{"broadcast":true}'), direct_post=post('{"user":"{user}"}'), skip=1)


def peer(options, redis, name):
    port, control = lab.free_port(), lab.free_port()
    env = {"BENCH_TMP": options.peers_tmp, "JWT_SECRET": lab.SECRET, "REDIS_URL": redis}
    script = os.path.join(options.peers, name.removesuffix("-joined"), "start.sh")
    log = os.path.join(options.out, f"{name}.log")

    def start(*args):
        process = lab.Process(lab.SERVER + ["sh", script, *args], log, env)
        # The first start may have to build or to fetch it.
        lab.wait_for(port, process.process, 300)
        return process
    if name in ("floor", "floor-joined"):
        joined = ["coalesce"] if name == "floor-joined" else []
        return Subject(name, start(str(port), str(control), *joined),
                       f"ws://127.0.0.1:{port}/?user={{user}}", ["--redis", f"127.0.0.1:{control}"])
    if name == "node-ws":
        return Subject(name, start(str(port)), f"ws://127.0.0.1:{port}/?token={{token}}",
                       ["--redis", redis.removeprefix("redis://")])
    if name == "nchan":
        base = f"http://127.0.0.1:{port}/pub"
        return Subject(name, start(str(port), "1"), f"ws://127.0.0.1:{port}/ws?user={{user}}",
                       ["--post", f"{base}/broadcast"], ["--post", f"{base}/{{user}}"],
                       f"ws://127.0.0.1:{port}/user?user={{user}}")
    raise ValueError(f"no such server: {name}")


def start(options, redis, name, **variant):
    if name == "belfry":
        return belfry(options, redis, **variant)
    if name == "baseline":
        return belfry(options, redis, name, options.baseline, **variant)
    return peer(options, redis, name)
