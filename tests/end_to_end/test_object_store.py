"""A run whose ``output_dir`` is an S3 address, against moto's server, on one machine after another."""

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprec_ray.cluster.runs.run import RunOutcome, run_folder, train_selfplay
from sprec_ray.config.load import load_config
from sprec_ray.config.run import ConfigError
from sprec_ray.storage.artifacts import MARKER
from sprec_ray.storage.mirror import Mirror
from sprec_ray.storage.remote import Storage, open_storage
from tests.fixture_types import Make, Train


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


def post(address: str, content: bytes = b"", *, method: str = "POST") -> None:
    headers = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(address, content, headers, method=method)).close()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket, for a machine with an empty home."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("SPREC_RAY_HOME", str(tmp_path / "home"))
    post(f"http://{endpoint}/moto-api/reset")
    post(f"http://{endpoint}/runs-of-a-team", method="PUT")
    return f"s3://runs-of-a-team/tiny?endpoint_override={endpoint}&scheme=http"


def adapter_of(folder: Path) -> bytes:
    return (folder / "iteration-0" / "preference" / "adapter_model.safetensors").read_bytes()


def names(storage: Storage, name: str) -> set[str]:
    return set(storage.files(name))


@pytest.mark.slow
def test_a_run_killed_on_one_machine_is_continued_from_s3_alone_with_the_same_adapter(
    undisturbed: RunOutcome, train: Train, tiny: Make, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first machine dies before its preference training, and its mirror with it."""
    config = tiny("elsewhere", f"output_dir={bucket}")
    storage = open_storage(bucket)

    class MachineDied(BaseException):
        pass

    push = Mirror.push

    def die_after_pairing(mirror: Mirror, path: Path) -> None:
        push(mirror, path)
        if (path / "iteration-0" / "groups" / MARKER).is_file():
            raise MachineDied

    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "push", die_after_pairing)
        with pytest.raises(MachineDied):
            train(config)
    assert "elsewhere/sft/adapter_model.safetensors" in names(storage, "elsewhere")
    assert not any("preference" in name or "results" in name for name in names(storage, "elsewhere"))
    assert any(name.endswith(MARKER) for name in names(storage, "cache"))
    shutil.rmtree(os.environ["SPREC_RAY_HOME"])

    outcome = train_selfplay(config)  # with decoders and workers of its own, which know nothing yet
    assert outcome.address == "s3://runs-of-a-team/tiny/elsewhere/report.html"
    assert outcome.results == undisturbed.results
    assert adapter_of(run_folder(config)) == adapter_of(undisturbed.report.parent)
    kept = names(storage, "elsewhere")
    assert {"elsewhere/results.json", "elsewhere/report.html", "elsewhere/timeline.jsonl"} <= kept
    assert f"elsewhere/iteration-0/preference/{MARKER}" in kept
    assert not any(part.startswith(".") for name in kept for part in name.split("/"))
    trained = json.loads((storage.read("elsewhere/results.json") or b"").decode())
    assert [row["label"] for row in trained["results"]] == [result.label for result in undisturbed.results]

    shutil.rmtree(os.environ["SPREC_RAY_HOME"])
    again = train(config)
    assert again.was_finished
    assert again.results == outcome.results


def refused(address: str, tmp_path: Path) -> str:
    """The sentence with which an address is refused, before Ray is started."""
    with pytest.raises(ConfigError) as caught:
        train_selfplay(load_config([f"output_dir={address}", "name=never"]))
    assert "\n" not in str(caught.value)
    assert "endpoint_override=" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> bool:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("sprec_ray.cluster.runs.run._connect", forbidden)


@pytest.mark.usefixtures("no_ray")
def test_a_bucket_that_does_not_exist_is_named_before_anything_starts(bucket: str, tmp_path: Path) -> None:
    message = refused(bucket.replace("runs-of-a-team", "no-such-bucket"), tmp_path)
    assert message.startswith("output_dir=s3://no-such-bucket/tiny cannot be used")
    assert message.endswith("create the bucket or correct its name")


@pytest.mark.usefixtures("no_ray")
def test_credentials_that_may_not_write_are_named_before_anything_starts(
    bucket: str, endpoint: str, tmp_path: Path
) -> None:
    """moto lets everybody in until it is asked not to; there are no users, so no credentials are right."""
    post(f"http://{endpoint}/moto-api/reset-auth", b"0")
    try:
        message = refused(bucket, tmp_path)
    finally:
        post(f"http://{endpoint}/moto-api/reset-auth", b"Infinity")
    assert "AWS_ACCESS_KEY_ID" in message


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_an_endpoint_that_does_not_answer_is_named_before_anything_starts(bucket: str, tmp_path: Path) -> None:
    message = refused(bucket.replace("endpoint_override=127.0.0.1", "endpoint_override=127.0.0.2"), tmp_path)
    assert message.endswith("check the network, the region and endpoint_override")
