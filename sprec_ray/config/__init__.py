"""Configurations and how they are read: values, checked before anything starts. No framework, and no file of a run."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "run": "RunConfig ConfigError ModelConfig LoraConfig TrainingConfig DecodingConfig",
        "data": "DataConfig ScratchConfig",
        "methods": "PhaseConfig PreferenceConfig SelfPlayConfig EvaluationConfig CollaborativeConfig",
        "load": "load_config config_to_dict flatten",
        "sweep": "SweepConfig load_sweep",
        "compare": "CompareConfig load_comparison",
    },
)
