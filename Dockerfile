# docker build --tag rotator:0.1.0 .
# A mirror or another Python: --build-arg BASE_IMAGE=registry.example/python:3.12-slim
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /build
COPY requirements/ requirements/
# Everything by hash, the build's own setuptools too: its pin is cut out of the developers' list.
RUN python -m venv /opt/rotator \
 && /opt/rotator/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/runtime.txt \
 && sed -n '/^setuptools==/,/[^\\]$/p' requirements/dev.txt >setuptools.txt \
 && python -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r setuptools.txt
COPY pyproject.toml README.md LICENSE ./
COPY rotator/ rotator/
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
 && /opt/rotator/bin/pip install --no-cache-dir --no-deps --no-index dist/*.whl \
 && /opt/rotator/bin/pip uninstall --yes setuptools pip

FROM ${BASE_IMAGE}
COPY --from=build /opt/rotator /opt/rotator
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/rotator && install -d /etc/rotator
ENV PATH=/opt/rotator/bin:$PATH \
    HOME=/var/lib/rotator \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
# The journal and the seal key; without a volume they end with the container.
WORKDIR /var/lib/rotator
VOLUME ["/var/lib/rotator"]
EXPOSE 9109
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["/opt/rotator/bin/python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:9109/livez', timeout=4)"]
ENTRYPOINT ["rotator"]
CMD ["run", "--config", "/etc/rotator/rotator.yaml"]
