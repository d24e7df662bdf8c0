"""Shards of a run as tasks of a Ray cluster: on this machine alone, or on the machines of a running one.

A cluster that is started here listens on the loopback address only, takes no task without a random token, has no
dashboard and sends no usage statistics. Ray starts every process of it and is imported when it is used.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lit_vision.errors import UserError
from lit_vision.predict.inference import exit_on_sigterm, progress_bar
from lit_vision.predict.shards import Shard

_RETRIES = 3  # of a task whose worker died or whose files could not be read for a moment
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
# Ray on Linux listens on all interfaces, even of a cluster of one machine; with the default of Windows and macOS (this
# variable, which it reads when it is imported) it listens on 127.0.0.1.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


def run_on_ray(run: Callable[[Shard], None], shards: Sequence[Shard], address: str | None, cpus: int = 1) -> None:
    """Do all shards as tasks; a task whose worker dies is done again, up to three times.

    Args:
        run: does one shard; is sent to the workers, with all that it holds. The package is installed there, and the
            paths are those of this machine.
        shards: the shards.
        address: HOST:PORT of a running cluster; None: one on this machine is started, and ends with the call.
        cpus: cores of a task. In a cluster with GPUs each task also takes one.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or a shard failed for good.
    """
    with _cluster(address) as ray:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        task = ray.remote(run_task).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES, retry_exceptions=[OSError]
        )
        sent = ray.put(run)
        folder = os.getcwd()
        waiting = {task.remote(sent, shard, folder): shard for shard in shards}
        print(f"{len(shards)} shards on Ray: {ray.cluster_resources().get('CPU', 0):g} CPUs", flush=True)
        with exit_on_sigterm(), progress_bar(len(shards), 0, "shards") as advance:
            while waiting:
                (done, *_), _ = ray.wait(list(waiting))
                shard = waiting.pop(done)
                try:
                    ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise UserError(str(error.cause)) from None
                    raise
                except ray.exceptions.RayError as error:
                    reason = str(error).strip().splitlines()[0]
                    raise UserError(
                        f"--engine ray: shard {shard} failed {_RETRIES + 1} times ({reason}); run the same command "
                        "again to do what is left"
                    ) from error
                advance(1)


def run_task(run: Callable[[Shard], None], shard: Shard, folder: str) -> None:
    """Do one shard in a worker, in the folder that the command was given in."""
    os.chdir(folder)
    run(shard)


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself tries for many minutes.

    Raises:
        UserError: names the address.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error}); give HOST:PORT of a cluster's head, such as "
            "192.168.0.2:6379"
        ) from error


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Connect to a cluster, or start one; yield the package ray; leave or end the cluster."""
    added = {**_QUIET, **({} if address else {**_LOOPBACK, "RAY_AUTH_TOKEN": secrets.token_hex(32)})}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise UserError("--engine ray: Ray is not installed; pip install 'lit-vision[ray]'") from error
        if address:
            _check_reachable(address)
        settings = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        try:
            ray.init(address or "local", log_to_driver=False, configure_logging=False, **settings)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--address {address}: no Ray cluster can be used there ({reason})") from error
        try:
            if not address and ray.util.get_node_ip_address() != "127.0.0.1":  # imported before, by other code
                raise UserError("--engine ray: Ray listens on all interfaces; give --address of a cluster of your own")
            yield ray
        finally:
            ray.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
