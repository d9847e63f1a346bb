"""The seed's way as a queue worker: pika, and one asyncio subprocess an action.

    python_worker.py URL PREFIX CLIENT CONCURRENCY

Each delivery is one `CLIENT exec`; its result is published and confirmed, then it is acked.
"""
import asyncio
import json
import sys
import threading

import pika

from actions import command, container

url, prefix, client, concurrency = sys.argv[1:5]


async def perform(body):
    action = json.loads(body)
    process = await asyncio.create_subprocess_exec(
        client, "exec", container(action), *command(action), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 8)
    success = process.returncode == 0 and (action["kind"] != "traffic" or stdout.startswith(b"SSH-"))
    result = {"action_id": action["action_id"], "success": success, "stderr": stderr.decode()}
    return json.dumps(result | {"stdout": stdout.decode("latin1")})


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
