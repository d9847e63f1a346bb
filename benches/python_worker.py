"""The seed's way as a queue worker: pika, and one asyncio subprocess an action.

    python_worker.py URL PREFIX CLIENT SUFFIX CONCURRENCY

Each delivery is one `CLIENT exec`; its result is published and confirmed, then it is acked.
"""
import asyncio
import base64
import json
import shlex
import sys
import threading

import pika

url, prefix, client, suffix, concurrency = sys.argv[1:6]


def plant(action):
    path = shlex.quote(action["path"])
    content = base64.b64encode(action.get("content", "").encode()).decode()
    directory = shlex.quote(action["path"].rpartition("/")[0])
    command = f"mkdir -p {directory} && printf %s {content} | base64 -d > {path} && touch -d '2026-04-17 18:05' {path}"
    return [client, "exec", action["dst_name"] + suffix, "sh", "-c", command]


async def perform(body):
    action = json.loads(body)
    process = await asyncio.create_subprocess_exec(
        *plant(action), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 8)
    return json.dumps({"action_id": action["action_id"], "success": process.returncode == 0, "stderr": stderr.decode()})


def main():
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    publisher = connection.channel()
    publisher.confirm_delivery()
    channel.basic_qos(prefetch_count=int(concurrency))

    def settle(tag, future):
        properties = pika.BasicProperties(delivery_mode=2)
        publisher.basic_publish(prefix + ".results", "activity", future.result(), properties, mandatory=True)
        channel.basic_ack(tag)

    def deliver(_channel, method, _properties, body):
        future = asyncio.run_coroutine_threadsafe(perform(body), loop)
        future.add_done_callback(
            lambda future: connection.add_callback_threadsafe(lambda: settle(method.delivery_tag, future))
        )

    channel.basic_consume(prefix + ".actions", deliver)
    print("consuming", file=sys.stderr, flush=True)
    channel.start_consuming()


main()
