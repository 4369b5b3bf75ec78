"""Files: a run's stages and timeline, and the addresses where runs are kept. Knows no content but types."""

from sprec_ray.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(
    __name__,
    {
        "artifacts": "ArtifactError Stage read_json read_rows read_rollouts write_json write_rows write_text",
        "timeline": "Clock Span read_timeline",
        "mirror": "Mirror open_mirror working_folder",
    },
)
