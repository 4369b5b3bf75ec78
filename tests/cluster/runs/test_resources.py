"""What a run reserves fits the cluster, or is refused in one sentence. GPUs are numbered through all nodes."""

from __future__ import annotations

import pytest

from sprec_ray.cluster.runs.resources import Node, Request, check_fit, pack
from sprec_ray.config.run import ConfigError, DecodingConfig, ModelConfig, RunConfig, TrainingConfig

BOX = [Node(cpus=64, gpus=4)]
TWO_NODES = [Node(cpus=64, gpus=8), Node(cpus=64, gpus=8)]


def config(placement: str, workers: tuple[int, float], decoders: tuple[int, float], **options: object) -> RunConfig:
    model = str(options.pop("model", "somewhere/model"))
    return RunConfig(
        model=ModelConfig(name_or_path=model),
        training=TrainingConfig(num_workers=workers[0], gpus_per_worker=workers[1]),
        decoding=DecodingConfig(
            engine="vllm",
            placement=placement,  # type: ignore[arg-type]
            num_decoders=decoders[0],
            gpus_per_decoder=decoders[1],
            **options,  # type: ignore[arg-type]
        ),
    )


def request(name: str, count: int, gpus: float, cpus: float = 1) -> Request:
    return Request(name=name, count=count, cpus=cpus, gpus=gpus)


def test_shares_above_and_below_one_half_put_one_of_each_on_every_gpu() -> None:
    """Two decoders of 0.51 cannot share a GPU, so each opens its own; a worker of 0.49 fits beside each."""
    places = pack([request("decoder", 4, 0.51), request("worker", 4, 0.49)], BOX)
    assert places == {"decoder": [(0,), (1,), (2,), (3,)], "worker": [(0,), (1,), (2,), (3,)]}


def test_ray_fills_a_gpu_before_it_opens_the_next() -> None:
    places = pack([request("decoder", 2, 0.5), request("worker", 2, 1)], BOX)
    assert places == {"decoder": [(0,), (0,)], "worker": [(1,), (2,)]}


def test_whole_gpus_of_a_process_are_of_one_node() -> None:
    """Three GPUs do not fit the one that is left on each node: 1 + 3 on the first, 3 + 1 on the second."""
    nodes = [Node(cpus=8, gpus=4), Node(cpus=8, gpus=4)]
    assert pack([request("decoder", 2, 3), request("worker", 2, 1)], nodes) == {
        "decoder": [(0, 1, 2), (4, 5, 6)],
        "worker": [(3,), (7,)],
    }
    assert pack([request("decoder", 3, 3)], nodes) is None


def test_a_node_without_cpus_left_holds_nothing_more() -> None:
    assert pack([request("worker", 2, 0, cpus=2)], [Node(cpus=3, gpus=0), Node(cpus=2, gpus=0)]) is not None
    assert pack([request("worker", 2, 0, cpus=2)], [Node(cpus=3, gpus=0), Node(cpus=1, gpus=0)]) is None


@pytest.mark.parametrize(
    ("placement", "workers", "decoders"),
    [("split", (2, 1), (2, 1)), ("colocate", (4, 0.49), (4, 0.51)), ("sequential", (4, 1), (4, 1))],
)
def test_the_documented_layouts_fit_a_box_and_twice_as_many_two_boxes(
    placement: str, workers: tuple[int, float], decoders: tuple[int, float]
) -> None:
    check_fit(config(placement, workers, decoders), BOX)
    four_times = config(placement, (4 * workers[0], workers[1]), (4 * decoders[0], decoders[1]))
    check_fit(four_times, TWO_NODES)
    with pytest.raises(ConfigError, match="the cluster has 4"):
        check_fit(four_times, BOX)


def test_tensor_parallel_decoders_need_their_gpus_on_one_node() -> None:
    nodes = [Node(cpus=8, gpus=2)] * 4
    wide = config("split", (1, 1), (1, 1), tensor_parallel_size=4)
    with pytest.raises(ConfigError, match=r"^no node can hold a decoder with 4 GPUs and 1 CPUs; the largest has 2"):
        check_fit(wide, nodes)
    check_fit(wide, TWO_NODES)


def test_a_process_takes_its_cpus_from_one_node() -> None:
    wide = RunConfig(training=TrainingConfig(cpus_per_worker=6), decoding=DecodingConfig(cpus_per_decoder=1))
    with pytest.raises(ConfigError, match=r"^no node can hold a training worker with 0 GPUs and 6 CPUs"):
        check_fit(wide, [Node(cpus=4, gpus=0)] * 2)


def test_shares_that_do_not_pack_are_refused_although_their_sum_fits() -> None:
    """Shares of 0.6 leave 0.4 of each of four GPUs: five of 0.6 are 3.0 GPUs and fit nowhere."""
    with pytest.raises(ConfigError, match="do not fit the nodes, although their sum does"):
        check_fit(config("split", (1, 0.6), (4, 0.6)), BOX)


def test_two_workers_are_never_put_on_one_gpu() -> None:
    for workers, decoders in [((2, 0.5), (2, 1)), ((4, 0.5), (4, 0.5)), ((4, 0.51), (4, 0.49))]:
        with pytest.raises(ConfigError, match="two training workers on one GPU cannot talk"):
            check_fit(config("split", workers, decoders), BOX)


def test_a_model_that_is_pretrained_first_must_not_share_gpus() -> None:
    """Its workers come before there is a model to decode with, and fill GPUs two by two."""
    with pytest.raises(ConfigError, match=r"model\.name_or_path a model"):
        check_fit(config("colocate", (4, 0.49), (4, 0.51), model="scratch"), BOX)
    check_fit(config("split", (2, 1), (2, 1), model="scratch"), BOX)


def test_a_share_above_one_gpu_is_whole() -> None:
    with pytest.raises(ConfigError, match=r"^training.gpus_per_worker=1.5: .* round it"):
        check_fit(config("split", (1, 1.5), (1, 1)), BOX)
