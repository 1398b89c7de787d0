# Workers without a GPU: score on servers, augment on servers, select, pack. Build it in the root of the repository:
#   docker build -t REGISTRY/thoughtmill:0.1.0 .
# The versions of Python and Beam must be those of the machine that submits the job.
ARG PYTHON_VERSION=3.11
ARG BEAM_VERSION=2.77.0

FROM python:${PYTHON_VERSION}-slim-bookworm AS wheel
WORKDIR /src
COPY requirements/lock.txt /wheels/lock.txt
RUN python -m pip install --no-cache-dir -c /wheels/lock.txt --upgrade pip setuptools
COPY pyproject.toml README.md LICENSE thoughtmill.py ./
COPY augment augment
COPY configs configs
COPY difficulty difficulty
COPY pipelines pipelines
COPY sharding sharding
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM apache/beam_python${PYTHON_VERSION}_sdk:${BEAM_VERSION} AS beam

FROM python:${PYTHON_VERSION}-slim-bookworm
ARG BEAM_VERSION
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY --from=wheel /wheels /wheels
COPY requirements/lock.txt /wheels/lock.txt
RUN python -m pip install --no-cache-dir -c /wheels/lock.txt --upgrade pip setuptools \
 && wheel="$(ls /wheels/thoughtmill-*.whl)" \
 && python -m pip install --no-cache-dir --no-build-isolation -c /wheels/lock.txt \
      "${wheel}[endpoint,datasets,s3,gcs,azure,fast]" "apache-beam[gcp]==${BEAM_VERSION}" \
 && rm -r /wheels \
 && python -c "import pipelines.run"
# No worker needs to be root: Beam makes its environment below /opt/apache/beam-venv. Dataflow mounts its folders as root
# and wants root: there, build with --build-arg WORKER_USER=0.
ARG WORKER_USER=10001
RUN useradd --uid 10001 --create-home mill \
 && install -d -o mill /opt/apache/beam-venv /models
# Nothing is fetched while a job runs: bake tokenizers and models in below /models, or name a store that is mounted.
ENV PYTHONUNBUFFERED=1 \
    HOME=/home/mill \
    HF_HOME=/models \
    THOUGHTMILL_HOME=/models
USER ${WORKER_USER}
# What a runner starts; `docker run --entrypoint thoughtmill IMAGE --help` gives the command line.
ENTRYPOINT ["/opt/apache/beam/boot"]
