"""Shapes of the formats that no small package publishes a schema of: the fields we use, every other one refused."""

from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
DURATION = {"type": "string", "pattern": r"^\d+[smh]$"}


def record(required: str, optional: str = "", **fields: Any) -> dict[str, Any]:
    """An object of the named fields, texts where nothing else is said."""
    names = [*required.split(), *optional.split()]
    properties = {name: fields.get(name, TEXT) for name in names}
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


TEXTS = many(TEXT)

# kubectl.docs.kubernetes.io, "kustomization".
KUSTOMIZATION = record(
    "apiVersion kind",
    "namespace images configMapGenerator generatorOptions resources components",
    apiVersion={"enum": ["kustomize.config.k8s.io/v1beta1", "kustomize.config.k8s.io/v1alpha1"]},
    kind={"enum": ["Kustomization", "Component"]},
    images=many(record("name", "newName newTag")),
    configMapGenerator=many(record("name literals", "behavior", literals=TEXTS)),
    generatorOptions=record("disableNameSuffixHash", disableNameSuffixHash={"type": "boolean"}),
    resources=TEXTS,
    components=TEXTS,
)

# prometheus.io, "configuration".
PROMETHEUS = record(
    "global scrape_configs",
    **{"global": record("scrape_interval", scrape_interval=DURATION)},
    scrape_configs=many(
        record(
            "job_name file_sd_configs",
            file_sd_configs=many(record("files", "refresh_interval", files=TEXTS, refresh_interval=DURATION)),
        )
    ),
)

# prometheus-operator.dev, API reference, "PodMonitor".
POD_MONITOR = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PodMonitor"},
    metadata=record("name namespace"),
    spec=record(
        "namespaceSelector selector podMetricsEndpoints",
        namespaceSelector=record("matchNames", matchNames=TEXTS),
        selector=record(
            "matchExpressions",
            matchExpressions=many(record("key operator values", operator={"enum": ["In", "NotIn"]}, values=TEXTS)),
        ),
        podMetricsEndpoints=many(
            record(
                "port",
                "interval relabelings",
                interval=DURATION,
                relabelings=many(record("action sourceLabels targetLabel", sourceLabels=TEXTS)),
            )
        ),
    ),
)

# Grafana's dashboard model, schema version 39.
SOURCE = record("type uid", type={"const": "prometheus"})
PANEL = record(
    "id title description type datasource gridPos fieldConfig targets",
    "options",
    id=COUNT,
    description={"type": "string"},
    type={"enum": ["timeseries", "bargauge"]},
    datasource=SOURCE,
    gridPos=record("x y w h", x=COUNT, y=COUNT, w=COUNT, h=COUNT),
    fieldConfig=record("defaults overrides", defaults={"type": "object"}, overrides={"type": "array"}),
    targets=many(record("refId expr legendFormat", "instant", instant={"type": "boolean"})),
    options={"type": "object"},
)
DASHBOARD = record(
    "uid title tags schemaVersion version editable refresh time timezone templating annotations panels",
    tags=TEXTS,
    schemaVersion={"const": 39},
    version=COUNT,
    editable={"type": "boolean"},
    refresh=DURATION,
    time=record("from to"),
    timezone={"type": "string"},
    templating=record("list", list=many({"type": "object", "required": ["name", "type", "query"]})),
    annotations=record("list", list={"type": "array"}),
    panels=many(PANEL),
)
