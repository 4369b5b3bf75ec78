"""What computes for a run: the group of training workers, the pool of decoders, and what travels between them."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "run_engines": "Engines",
        "kept": "KeptEngines",
        "decoder_pool": "DecoderPool",
        "worker_group": "TrainingSession",
        "tasks": "EmbedTask ReadPolicy ScoreTask TrainTask",
    },
)
