from __future__ import annotations

from pathlib import Path

import pytest

from sprec_ray.config.addresses import holds_credentials, is_remote, lasting, without_options
from sprec_ray.config.load import load_config, make_config
from sprec_ray.config.run import ConfigError

SECRET = "wJalrXUtnFEMI"


def test_folders_and_file_addresses_are_local() -> None:
    assert [is_remote(place) for place in ("runs", "/data/runs", "~/runs", "C:runs", "file:///data/runs")] == [
        False
    ] * 5
    assert [is_remote(place) for place in ("s3://bucket/runs", "gs://bucket", "hdfs://host:8020/runs")] == [True] * 3


def test_results_with_a_relative_path_outlive_the_folder_of_a_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("HOME", "/home/user")
    assert lasting("runs") == Path("runs")
    assert lasting("file:///data/my%20runs") == Path("/data/my runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert lasting("runs") == Path("/home/user/sprec_ray/runs")
    assert lasting("~/runs") == Path("/home/user/runs")
    assert lasting("/data/runs") == Path("/data/runs")


def test_an_address_is_shown_without_its_options() -> None:
    assert without_options("s3://bucket/runs/?endpoint_override=127.0.0.1:9000&scheme=http") == "s3://bucket/runs"


@pytest.mark.parametrize(
    "address",
    [
        f"s3://AKIA:{SECRET}@bucket/runs",
        f"s3://AKIA:{SECRET}/+x@bucket/runs",
        f"s3://bucket/runs?access_key=AKIA&secret_key={SECRET}",
        f"s3://bucket/runs?scheme=http&SECRET_KEY={SECRET}",
        f"https://user:{SECRET}@host/data.csv",
    ],
)
@pytest.mark.parametrize("key", ["output_dir", "data.path", "model.name_or_path"])
def test_credentials_in_an_address_are_refused_and_not_repeated(key: str, address: str) -> None:
    assert holds_credentials(address)
    for load in (
        lambda: load_config([f"{key}={address}"]),
        lambda: load_config([f"{key}={address}", f"{key}=elsewhere"]),  # the report shows the whole command
        lambda: make_config({"output_dir": address}),
    ):
        with pytest.raises(ConfigError, match=r"credentials inside.* set them in the environment") as caught:
            load()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a:b@c",
        "hdfs://user@host:8020/x",
        "hdfs://host:8020/x@y",
        "a:b@c",
        "gs://bucket/x?retry_limit_seconds=3",
        "/a:b@c/d",
    ],
)
def test_other_texts_are_no_credentials(text: str) -> None:
    assert not holds_credentials(text)
