"""For `serve deploy` on a cluster: the same application as `castor serve` starts, from the same config."""

from __future__ import annotations

from pathlib import Path

from ray.serve import Application

from castor.config.load import load_file
from castor.config.serve import Serve
from serve.app import build
from serve.targets import require_keys_for_strangers, require_readable_keys, resolve
from serve.versions import Versions


def application(args: dict[str, str]) -> Application:
    """The application of the config file that `args` names as `config`; further ones are options, as gateway.port.

    Raises CastorError for what cannot be served.
    """
    options = [f"{key}={value}" for key, value in args.items() if key != "config"]
    config = load_file(Serve, Path(args["config"]), options)
    require_keys_for_strangers(config.gateway)
    require_readable_keys(config.gateway)
    targets = resolve(config)
    for target in targets.policies:
        Versions(target.versions).forget()  # what is deployed is what the config says, until it is updated
    return build(targets, config)
