# The flow in a container: python -m flows.build_model, or a run that a Docker or Kubernetes work pool of prefect.yaml
# starts. Results stay where `.dvc/cache` is mounted (or in a DVC remote) and in the registry of MLFLOW_TRACKING_URI.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    GX_ANALYTICS_ENABLED=false \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=true \
    MLFLOW_DISABLE_TELEMETRY=true \
    HF_HUB_DISABLE_TELEMETRY=1

WORKDIR /project

# The dependencies change less often than the code, so their layer comes first. The CPU build of torch: PyPI's brings
# several GB of CUDA; for a GPU leave --index-url out.
COPY pyproject.toml constraints.txt ./
RUN pip install --index-url https://download.pytorch.org/whl/cpu "torch==$(sed -n 's/^torch==//p' constraints.txt)" \
    && python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['pipeline'], sep='\n')" > /tmp/dependencies.txt \
    && pip install -c constraints.txt -r /tmp/dependencies.txt

COPY vocabgraft ./vocabgraft
COPY tasks ./tasks
COPY flows ./flows
COPY README.md params.yaml dvc.yaml dvc.lock ./
COPY .dvc/config ./.dvc/config
COPY data/raw ./data/raw

# There is no Git repository in the image, and nothing in it needs root.
RUN dvc config --local core.no_scm true \
    && mkdir -p .dvc/cache \
    && useradd --create-home --uid 1000 project \
    && chown -R project /project
USER project

CMD ["python", "-m", "flows.build_model"]
