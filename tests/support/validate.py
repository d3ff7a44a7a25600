"""Checks that no ready tool makes; called by validate.sh.

objects FILE   Kubernetes objects of other makers' kinds, strictly by their definitions
asyncapi FILE  an AsyncAPI 3 document, and that every reference in it leads somewhere
text FILE      JSON, JSON lines, TOML with keys that the relay knows; anything else: not empty
scaling        the query in the ScaledObject is the one that its promtool test evaluates
"""

import json
import pathlib
import sys
import tomllib
import warnings


def strict(schema):
    """The classes let unknown keys pass; a typing error must not."""
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, (dict, list)):
            strict(part)
    if isinstance(schema, dict) and "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def objects(file):
    import jsonschema
    import yaml
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

    known = {kind.__name__: kind for kind in (ScaledObject, ServiceMonitor, PrometheusRule)}
    for thing in yaml.safe_load_all(file.read_text()):
        if "." not in thing["apiVersion"] or ".k8s.io/" in thing["apiVersion"]:
            continue
        schema = strict(known[thing["kind"]].model_json_schema(by_alias=True))
        for error in jsonschema.Draft202012Validator(schema).iter_errors(thing):
            yield f"{thing['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message}"


def references(part):
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from references(inner)


def asyncapi(file):
    import yaml

    warnings.simplefilter("ignore")
    from asyncapi3 import AsyncAPI3

    document = yaml.safe_load(file.read_text())
    try:
        AsyncAPI3.model_validate(document)
    except ValueError as error:
        yield str(error)
    for reference in references(document):
        name, _, pointer = reference.partition("#")
        target = yaml.safe_load((file.parent / name).read_text()) if name else document
        for step in filter(None, pointer.split("/")):
            target = target.get(step) if isinstance(target, dict) else None
        if target is None:
            yield f"{reference} leads nowhere"


def keys(table, prefix=""):
    for key, value in table.items():
        yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


def text(file):
    content = file.read_text()
    if not content.strip():
        yield "empty"
    if file.suffix == ".json":
        json.loads(content)
    if file.suffix == ".jsonl":
        for line in content.splitlines():
            json.loads(line)
    if file.suffix == ".toml":
        defaults = tomllib.loads(pathlib.Path("src/config/defaults.toml").read_text())
        known = set(keys(defaults))
        for key in keys(tomllib.loads(content)):
            if key not in known:
                yield f"{key} is no setting"


def scaling():
    scaled = pathlib.Path("deploy/kubernetes/postgres/scaledobject.yaml").read_text()
    query = scaled.split("query: >-")[1].split("threshold:")[0].split()
    test = pathlib.Path("deploy/prometheus/tests/scaling.yml").read_text()
    if test.split("expr: &query >-")[1].split("eval_time:")[0].split() != query:
        yield "the ScaledObject's query is not the one that deploy/prometheus/tests/scaling.yml tests"


def main(kind, *files):
    checks = {"objects": objects, "asyncapi": asyncapi, "text": text, "scaling": scaling}
    faults = list(checks[kind](*map(pathlib.Path, files)))
    print("\n".join(faults))
    return 1 if faults else 0


sys.exit(main(*sys.argv[1:]))
