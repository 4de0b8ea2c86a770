"""Workers of an asyncio program that share out jobs, each of which is done once.

A job is a key below /jobs/. Whoever puts a key below /taken/ first has the job. That is a transaction, so two workers
never have the same job.

    python examples/embedding/jobs_asyncio.py --jobs 20 --workers 3
"""

from __future__ import annotations

import argparse
import asyncio

from metastore import AsyncKV, Compare, Config, Node, Op


async def take(store: AsyncKV, worker: str) -> bytes | None:
    """A job that nobody has yet; None where there is none."""
    taken = {item.key.removeprefix(b"/taken/") for item in (await store.get_prefix("/taken/", keys_only=True)).kvs}
    for item in (await store.get_prefix("/jobs/", keys_only=True)).kvs:
        job = item.key.removeprefix(b"/jobs/")
        if job not in taken:
            mine = b"/taken/" + job
            done = await store.txn([Compare.missing(mine)], success=[Op.put(mine, worker)])
            if done.succeeded:
                return job
    return None


async def work(store: AsyncKV, worker: str) -> int:
    """Do jobs as long as there are some; how many it were."""
    count = 0
    while (job := await take(store, worker)) is not None:
        await store.put(b"/done/" + job, worker)
        count += 1
    return count


async def main(jobs: int, workers: int, data_dir: str) -> None:
    """Start a node, give it jobs, and have them done."""
    config = Config(node={"data_dir": data_dir}, listen={"client": "127.0.0.1:0"})
    async with Node(config) as node:
        await node.aio.put_many((f"/jobs/{n:04}", b"") for n in range(jobs))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(node.aio, f"worker {n}")) for n in range(workers)]
        done = await node.aio.get_prefix("/done/", count_only=True)
        print(f"{done.count} jobs are done, {sum(task.result() for task in tasks)} were taken")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--data-dir", default=":memory:", help="nothing is kept unless a folder is given")
    options = parser.parse_args()
    asyncio.run(main(options.jobs, options.workers, options.data_dir))
