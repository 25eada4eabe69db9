# KineMAE in a container, for CPUs or NVIDIA GPUs. From the top of the repository:
#
#   docker build --tag kinemae:cpu .
#   docker build --build-arg TORCH_INDEX=https://pypi.org/simple --tag kinemae:cuda .
#   docker run --rm -v "$PWD:/work" kinemae:cpu data --help
#   docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" kinemae:cuda pretrain CONFIG run_dir=RUN
#
# TORCH_INDEX is the package index of PyTorch: that of builds for CPUs, or PyPI, whose builds for CUDA contain
# all libraries, so the host needs the driver only. EXTRAS="" makes an image for data sets and inference.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=train,s3,http,hub,lora,export,maps

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# Triton calls a C compiler at run time, torch.compile on CPUs g++. NCCL loads libibverbs for InfiniBand and RoCE;
# without it, pods with RDMA devices communicate over TCP.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ibverbs-providers libibverbs1 \
    && rm -rf /var/lib/apt/lists/*

# torch first and alone, from its own index: a later change of KineMAE does not download it again.
COPY pyproject.toml constraints.txt /source/
RUN grep -E "^(torch|torchvision)==" /source/constraints.txt > /source/torch.txt \
    && pip install --index-url "${TORCH_INDEX}" --requirement /source/torch.txt

COPY README.md LICENSE /source/
COPY kinemae /source/kinemae
COPY configs /source/configs
COPY data_tools /source/data_tools
COPY pretrain /source/pretrain
COPY finetune /source/finetune
COPY launch /source/launch
RUN grep -vE "^(torch|torchvision|triton|nvidia-.*|cuda-.*)==" /source/constraints.txt > /source/pins.txt \
    && pip install --constraint /source/pins.txt "/source${EXTRAS:+[$EXTRAS]}" \
    && useradd --uid 1000 --create-home kinemae

USER 1000
WORKDIR /work
ENTRYPOINT ["kinemae"]
CMD ["--help"]
