# One image for every role: `gridfleet db upgrade`, `scheduler`, `worker`, `page`, `submit`.
# docker-compose.yml says which role runs how.

# that of the scripts that submit: functions travel as bytecode, which another minor version can't run
ARG PYTHON=3.13

FROM python:${PYTHON}-slim-trixie AS build
# a mirror of your own; pip's default without it, and no trace of it in the final image
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
WORKDIR /src
# without pip: nothing is installed into a running container
RUN python -m venv --without-pip /opt/gridfleet
COPY requirements-runtime.lock .
RUN --mount=type=cache,target=/var/cache/pip \
    pip --python /opt/gridfleet/bin/python install --require-hashes -r requirements-runtime.lock
COPY pyproject.toml LICENSE README.md ./
COPY gridfleet gridfleet
COPY scheduler scheduler
COPY worker worker
COPY storage storage
RUN --mount=type=cache,target=/var/cache/pip \
    pip --python /opt/gridfleet/bin/python install --no-deps --no-build-isolation . \
 && pip --python /opt/gridfleet/bin/python uninstall --yes hatchling editables
COPY data /srv/gridfleet/data
COPY examples /srv/gridfleet/examples
# a clone made under a strict umask is readable by its owner only
RUN chmod -R a+rX,go-w /srv/gridfleet


FROM python:${PYTHON}-slim-trixie
LABEL org.opencontainers.image.title="gridfleet" \
      org.opencontainers.image.description="The GridSearchCV you already wrote, on a fleet" \
      org.opencontainers.image.licenses="Apache-2.0"
# HOME: under a read-only root, /tmp is what libraries may write to
ENV PATH=/opt/gridfleet/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    GRIDFLEET_CACHE_DIR=/var/cache/gridfleet \
    GRIDFLEET_HEALTH_FILE=/tmp/gridfleet-health
RUN groupadd --gid 10001 gridfleet \
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin gridfleet \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/cache/gridfleet
COPY --from=build /opt/gridfleet /opt/gridfleet
COPY --from=build /srv/gridfleet /srv/gridfleet
WORKDIR /srv/gridfleet
USER 10001:10001
ENTRYPOINT ["gridfleet"]
CMD ["--help"]
