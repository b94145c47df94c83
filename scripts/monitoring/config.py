"""The configuration of Prometheus, with the addresses of this machine in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["DEPLOYED", "local_config"]

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "prometheus.yml"
_DISCOVERIES = ("dns_sd_configs", "static_configs")


def local_config(
    targets: Mapping[str, Sequence[str]], *, scrape_interval: str | None = None
) -> str:
    """The deployed configuration with targets of one's own.

    Args:
        targets: The addresses, host:port, of each job; a job without any is left out.
        scrape_interval: In place of the deployed one, also for the rules; such as "1s".

    Returns:
        A configuration file, which may lie anywhere.

    Raises:
        KeyError: A job of the deployed configuration has no entry in `targets`, or the other way.
    """
    config: dict[str, Any] = yaml.safe_load(DEPLOYED.read_text())
    if scrape_interval is not None:
        config["global"] = dict.fromkeys(
            ("scrape_interval", "evaluation_interval"), scrape_interval
        )
    config["rule_files"] = [str(DEPLOYED.parent / path) for path in config["rule_files"]]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    if unknown := targets.keys() ^ jobs.keys():
        raise KeyError(f"not jobs of both: {', '.join(sorted(unknown))}")
    for name, job in jobs.items():
        for discovery in _DISCOVERIES:
            job.pop(discovery, None)
        job["static_configs"] = [{"targets": list(targets[name])}]
    config["scrape_configs"] = [job for name, job in jobs.items() if targets[name]]
    return yaml.safe_dump(config, sort_keys=False)
